"""The subcommand as a whole, with commands that only leave the files nnU-Net would."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from skimage.io import imsave

from nnunet_deconver import cli
from nnunet_deconver.demo import run, training
from nnunet_deconver.demo.dataset import RawData
from nnunet_deconver.demo.output_folder import INTERMEDIATE, LOG, MARKER, MODEL, PICTURE, TABLE
from nnunet_deconver.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "tpu"], ["--device tpu", "cpu or cuda"]),
        (["--device", "cuda"], ["--device cuda", "no CUDA device", "take cpu"]),
        (["--trainer", "nnUNetTrainerMissing"], ["--trainer nnUNetTrainerMissing", "nnunet-deconver list"]),
        (["--held-out", "3"], ["--held-out 3", "--dataset"]),
    ],
    ids=["device", "no GPU", "trainer", "held-out"],
)
def test_bad_options(arguments, words, refuses, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuses(arguments, words)


class FakeNNUNet:
    """Predicts the truth without its first foreground voxels; records the commands and their environment."""

    def __init__(self, training_output):
        self.training_output = training_output
        self.commands = []
        self.environment = None

    def __call__(self, command, environment, log, on_line=None):
        from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
        from nnunetv2.utilities.json_export import recursive_fix_for_json_export

        log.open("a").write(" ".join(command))
        self.commands.append(command)
        self.environment = environment
        raw, preprocessed, results = (
            next(Path(environment[f"nnUNet_{name}"]).glob("Dataset*"), Path(environment[f"nnUNet_{name}"]))
            for name in ("raw", "preprocessed", "results")
        )
        data = RawData(raw)
        name = command[0].removeprefix("nnUNetv2_")
        option = dict(zip(command, command[1:], strict=False))
        if name == "plan_and_preprocess":
            axes = 2 if data.is_2d else 3
            network = {"n_stages": 2, "features_per_stage": [32, 64], "strides": [[1] * axes, [2] * axes]}
            plan = {"patch_size": [16] * axes, "batch_size": 2, "architecture": {"arch_kwargs": network}}
            plans = {"plans_name": "nnUNetPlans", "configurations": {option["-c"]: plan}}
            (preprocessed / raw.name).mkdir(parents=True)
            (preprocessed / raw.name / "nnUNetPlans.json").write_text(json.dumps(plans))
        elif name == "train":
            model = results / raw.name / f"{option['-tr']}__{option['-p']}__{command[2]}"
            (model / "fold_0").mkdir(parents=True)
            (model / "fold_0" / "checkpoint_final.pth").touch()
            for line in self.training_output(0):
                on_line(line)
        elif name == "predict":
            Path(option["-o"]).mkdir()
            for number, case in enumerate(data.cases("Ts")):
                _, truth, _ = data.read_held_out(case)
                wrong = np.flatnonzero(truth)[: 10 * number]
                truth.reshape(-1)[wrong] = 0
                file = Path(option["-o"]) / f"{case}{data.ending}"
                if data.is_2d:
                    imsave(file, truth[0].astype(np.uint8), check_contrast=False)
                else:
                    sitk.WriteImage(sitk.GetImageFromArray(truth.astype(np.uint8)), str(file))
        elif name == "evaluate_folder":
            truths, predictions = Path(command[1]), Path(command[2])
            cases = []
            for truth in sorted(truths.glob(f"*{data.ending}")):
                prediction = predictions / truth.name
                cases.append(
                    compute_metrics(str(truth), str(prediction), data.io, list(data.classes.values()), data.ignore)
                )
                recursive_fix_for_json_export(cases[-1])
            save_summary_json({"metric_per_case": cases, "mean": {}}, str(predictions / "summary.json"))


@pytest.fixture
def nnunet(training_output, monkeypatch):
    fake = FakeNNUNet(training_output)
    monkeypatch.setattr(training, "run_command", fake)
    monkeypatch.setattr(run, "PHANTOM_TRAINING", 4)
    monkeypatch.setattr(run, "PHANTOM_HELD_OUT", 3)
    return fake


def rows(path):
    with path.open(newline="") as file:
        return {row[0]: row[1:] for row in csv.reader(file)}


def test_demo_leaves_picture_table_log_and_model(nnunet, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["demo", "--device", "cpu", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([PICTURE, TABLE, LOG, MODEL, MARKER])
    assert (out / MODEL / "fold_0" / "checkpoint_final.pth").exists()
    table = rows(out / TABLE)
    assert list(table) == ["class", "large organ", "small organs", "lesion", "mean"]
    assert table["class"] == ["prediction", "best threshold", "phantom_004", "phantom_005", "phantom_006"]
    cases = [float(value) for value in table["mean"][2:]]
    assert cases[0] == 1 > cases[1] > cases[2]
    assert float(table["mean"][0]) == pytest.approx(np.mean(cases), abs=1e-3)
    assert float(table["mean"][1]) < 0.4
    printed = capsys.readouterr().out
    assert f"{float(table['lesion'][0]):.3f}" in printed
    assert str(out / PICTURE) in printed


def test_commands_are_those_a_person_would_type(nnunet, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["demo", "--device", "cpu", "--out", str(out), "--keep"]) == 0
    names = ["plan_and_preprocess", "train", "predict", "evaluate_folder"]
    assert [command[0] for command in nnunet.commands] == [f"nnUNetv2_{name}" for name in names]
    assert nnunet.commands[1][1:4] == ["990", "3d_fullres", "0"]
    for name in ("raw", "preprocessed", "results"):
        assert nnunet.environment[f"nnUNet_{name}"] == str(out / name)
    assert nnunet.environment["nnUNet_extTrainer"].split(os.pathsep)[0].endswith("shim")
    (split,) = json.loads((out / "preprocessed" / run.PHANTOM / "splits_final.json").read_text())
    assert (len(split["train"]), len(split["val"])) == (3, 1)
    assert not {*split["train"], *split["val"]} & {f"phantom_00{i}" for i in (4, 5, 6)}
    assert all((out / name).is_dir() for name in INTERMEDIATE)


@pytest.mark.parametrize("make", ["nifti_dataset", "rgb_dataset"], ids=["3D", "RGB"])
def test_demo_of_a_dataset_only_reads_it(make, request, tree, nnunet, tmp_path):
    folder = request.getfixturevalue(make)(tmp_path / "data" / "Dataset021_Eyes")
    before = tree(folder)
    arguments = ["demo", "--dataset", str(folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert tree(folder) == before
    assert nnunet.commands[1][2] == ("2d" if make == "rgb_dataset" else "3d_fullres")
    assert (tmp_path / "out" / PICTURE).stat().st_size > 10_000
    assert list(rows(tmp_path / "out" / TABLE)) == ["class", "organ", "mean"]


def test_former_demo_is_replaced_and_other_files_stay(nnunet, tmp_path):
    arguments = ["demo", "--device", "cpu", "--out", str(tmp_path)]
    (tmp_path / "thesis.tex").write_text("mine")
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--overwrite", "--keep"]) == 0
    assert cli.main(arguments) == 0
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert not (tmp_path / "raw").exists()


def test_failing_command_exits_with_2(nnunet, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise InputError("nnUNetv2_plan_and_preprocess failed")

    monkeypatch.setattr(training, "run_command", fail)
    assert cli.main(["demo", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "nnUNetv2_plan_and_preprocess failed" in capsys.readouterr().err
