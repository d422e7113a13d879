"""What `plan --preset` prints runs as it is printed, from plans to evaluation, on small copies of three presets."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TWO_ITERATIONS = Path(__file__).with_name("two_iterations")
DATASET = "Dataset901_Tiny"
STAGES = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "kernel_sizes": [[3, 3]] * 3,
    "strides": [[1, 1], [2, 2], [2, 2]],
}
CONVOLUTIONS = {"n_conv_per_stage": [1] * 3, "n_conv_per_stage_decoder": [1] * 2}

# A preset, what is smaller, and the folds that are trained. Images x epochs / batch stay what the trainer's name says.
SMALL = {
    "glas": (STAGES, {"images": 33}, [0, 1]),
    "wmh-nerdc-256": (STAGES | CONVOLUTIONS, {"images": 356}, [0]),
    "isic-unet-tc-dtc": (STAGES | CONVOLUTIONS, {}, [1]),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_printed_commands_run(warm, tmp_path, name):
    stages, training, folds = SMALL[name]
    small = tmp_path / f"small-{name}.json"
    entries = {"base": name, "title": "Small", "patch_size": [16, 16], "batch_size": 2, "training": training}
    entries["architecture"] = {"arch_kwargs": stages}
    small.write_text(json.dumps(entries | {"folds": {"number": 5, "trained": folds}}))
    variables = {"nnUNet_extTrainer": str(TWO_ITERATIONS)}
    # Folds and models of its own.
    for folder, source in (("raw", warm.raw), ("preprocessed", warm.preprocessed), ("results", None)):
        variables[f"nnUNet_{folder}"] = str(tmp_path / folder)
        if source is not None:
            shutil.copytree(source / DATASET, tmp_path / folder / DATASET)
    shutil.rmtree(tmp_path / "preprocessed" / DATASET / "nnUNetPlans_2d")
    # Of trainings of other tests.
    (tmp_path / "preprocessed" / DATASET / "splits_final.json").unlink(missing_ok=True)

    report = warm.run("nnunet-deconver", "plan", "-d", 901, "--preset", small, **variables)
    lines = report[report.index("\nnext:\n") :].strip().splitlines()[1:]
    programs = [line.split()[0] for line in lines]
    assert programs[0] == "nnUNetv2_preprocess" and programs.count("nnUNetv2_train") == len(folds)
    for line in lines:
        for variable, value in variables.items():
            line = line.replace(f"${variable}", value)
        command, *arguments = shlex.split(line)
        arguments = [str(tmp_path / a) if a.startswith(("predictions_", "evaluation_")) else a for a in arguments]
        arguments += {
            "nnUNetv2_train": ["-device", "cpu"],
            "nnUNetv2_predict": ["-device", "cpu", "-npp", "0", "-nps", "0"],
        }.get(command, [])
        warm.run(command, *arguments, **variables)
    summaries = list(tmp_path.glob("evaluation_*/summary.json"))
    assert len(summaries) == (1 if name == "glas" else len(folds))
    assert not json.loads(summaries[0].read_text())["problems"]
