"""The commands that reproduce a row of the papers."""

import json
import re
from pathlib import Path

import pytest

from nnunet_deconver import plans as package
from nnunet_deconver.cli import main
from nnunet_deconver.metrics.definitions import PRACTICES
from nnunet_deconver.plans.presets import load_preset, preset_names
from nnunet_deconver.plans.reproduction import commands, printed_row, training_length

DATASET = "Dataset021_Some"


def of(name: str, **options) -> list[str]:
    preset = load_preset(name)
    return commands(preset, DATASET, preset.planner().plans_name, options.pop("trainer", None), **options)


def test_a_stratified_cross_validation():
    plans, trainer = "nnUNetPresetGlasPlans", "nnUNetTrainerDeconver_paper_33epochs"
    assert of("glas", unprocessed=["2d"]) == [
        f"nnUNetv2_preprocess -d 21 -plans_name {plans} -c 2d",
        f"nnunet-deconver summary -d 21 -p {plans} -c 2d",
        "nnunet-deconver splits -d 21 --folds 5",
        *(f"nnUNetv2_train 21 2d {fold} -p {plans} -tr {trainer}" for fold in range(5)),
        f"nnunet-deconver evaluate --model $nnUNet_results/{DATASET}/{trainer}__{plans}__2d -o evaluation_glas "
        "--like deconver",
    ]


def test_one_training_and_a_test_set():
    *_, splits, train, predict, evaluate = of("wmh-nerdc-256")
    plans, trainer = "nnUNetPresetWmhNerdc256Plans", "nnUNetTrainer_Adam_1head_64epochs"
    assert splits == "nnunet-deconver splits -d 21 --folds 8"  # 42 of 48 for training
    assert train == f"nnUNetv2_train 21 2d 0 -p {plans} -tr {trainer}"
    assert predict == (
        f"nnUNetv2_predict -i $nnUNet_raw/{DATASET}/imagesTs -o predictions_wmh-nerdc-256_fold_0 -d 21 -c 2d -f 0 "
        f"-p {plans} -tr {trainer}"
    )
    assert evaluate == (
        f"nnunet-deconver evaluate $nnUNet_raw/{DATASET}/labelsTs predictions_wmh-nerdc-256_fold_0 "
        f"--model $nnUNet_results/{DATASET}/{trainer}__{plans}__2d -o evaluation_wmh-nerdc-256_fold_0 --like nerd"
    )


def test_each_folds_best_model_on_the_test_set():
    lines = of("isic-unet-tc-dtc")
    assert not any("splits" in line for line in lines)  # five random folds are nnU-Net's own
    predictions = [line for line in lines if line.startswith("nnUNetv2_predict")]
    assert [re.search(r"-f (\d)", line)[1] for line in predictions] == list("01234")
    assert all(line.endswith("_40epochs -chk checkpoint_best.pth") for line in predictions)
    assert sum(line.endswith("--like dtc") for line in lines) == 5


def test_all_folds_averaged_and_nnunets_own_trainer():
    lines = of("btcv-dtc")
    assert "nnUNetv2_train 21 3d_fullres 4 -p nnUNetPresetBtcvDtcPlans" in lines
    assert lines[-2].endswith("-c 3d_fullres -f 0 1 2 3 4 -p nnUNetPresetBtcvDtcPlans")
    assert "/nnUNetTrainer__nnUNetPresetBtcvDtcPlans__3d_fullres -o evaluation_btcv-dtc --like dtc" in lines[-1]


def test_where_no_length_is_printed_the_usual_trainer_is_named():
    assert of("isles26", trainer="nnUNetTrainerDeconver")[-1] == (
        "nnUNetv2_train 21 3d_fullres 0 -p nnUNetPresetIsles26Plans -tr nnUNetTrainerDeconver"
    )


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "isles22",
            "500 epochs x 200 images (four fifths of 250 cases) / batch 8 = 12,500 iterations = 50 nnU-Net epochs of "
            "250",
        ),
        (
            "la-nerdm-512",
            "90 epochs x 9,504 images (slices in 108 scans of 88) / batch 14 = 61,097 iterations = about 244 nnU-Net "
            "epochs of 250",
        ),
        ("busi-unet-tc", "10,000 iterations = 40 nnU-Net epochs of 250"),
        ("btcv-dtc", None),
    ],
)
def test_the_arithmetic_is_shown(name, text):
    assert training_length(load_preset(name)) == text


def test_the_printed_row():
    text = "table V: 16.18 M parameters; 607.1 kFLOPs / voxel; DSC (%) 77.90; HD95 5.05"
    assert printed_row(load_preset("isles22-g8")) == text
    assert printed_row(load_preset("isles22-i2")) is None


def test_our_commands_have_the_options_that_are_printed(capsys):
    """That they run, end_to_end tests hold for some."""
    printed: dict[str, set] = {}
    for name in preset_names():
        for program, command, *arguments in map(str.split, of(name, unprocessed=["2d"])):
            if program == "nnunet-deconver":
                printed.setdefault(command, set()).update(each for each in arguments if each.startswith("-"))
    assert set(printed) == {"summary", "splits", "evaluate"}
    for command, options in printed.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = set(re.findall(r"--?[a-z-]+", capsys.readouterr().out))
        assert options <= known


def test_presets_measure_as_evaluate_can():
    schema = json.loads((Path(package.__file__).parent / "preset.schema.json").read_text())
    assert schema["properties"]["evaluation"]["properties"]["like"]["enum"] == list(PRACTICES)
