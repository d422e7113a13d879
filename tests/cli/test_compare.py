import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_deconver import cli
from nnunet_deconver.figures.comparison import axis_label
from nnunet_deconver.metrics.comparison import file_name, name_models
from nnunet_deconver.models.trained_model import TrainedModel
from nnunet_deconver.plans.cost import prediction_cost

DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "file_ending": ".nii.gz",
}
NAME = "Dataset905_Test"
CASES = "abcdef"


def write(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels.astype(np.uint8)), str(path))


def labels(case, shift=0):
    image = np.zeros((6, 10, 16))
    size = 5 + CASES.index(case)
    image[1:5, 2:7, 1 + shift : 1 + shift + size] = 1
    image[2:4, 3:6, 3 + shift : 6 + shift] = 2
    return image


@pytest.fixture
def evaluated(tmp_path):
    """Two evaluations, of a model that is two voxels beside and one that is one voxel beside."""
    (tmp_path / "gt").mkdir()
    (tmp_path / "gt" / "dataset.json").write_text(json.dumps(DATASET))
    for case in CASES:
        write(tmp_path / "gt" / f"{case}.nii.gz", labels(case))
        for model, shift in [("bad", 2), ("good", 1)]:
            write(tmp_path / model / f"{case}.nii.gz", labels(case, shift))
    for model in ("bad", "good"):
        assert evaluate(tmp_path, model) == 0
    return tmp_path


def evaluate(tmp_path, model, *options):
    paths = (tmp_path / "gt", tmp_path / model, "-o", tmp_path / f"{model}_out", "-np", 1, *options)
    return cli.main(["evaluate", *map(str, paths)])


def compare(tmp_path, *arguments):
    return cli.main(["compare", "-o", str(tmp_path / "out"), *map(str, arguments)])


def test_two_evaluations(evaluated, capsys):
    assert compare(evaluated, evaluated / "bad_out", evaluated / "good_out") == 0
    out = evaluated / "out"
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], row["of"]) for row in rows] == [
        (metric, of) for metric in ("dice", "hd95", "nsd_1mm") for of in ("organ", "lesion", "mean over classes")
    ]
    assert {(row["first"], row["second"], row["n"]) for row in rows} == {("bad_out", "good_out", "6")}
    hd95 = next(row for row in rows if (row["metric"], row["of"]) == ("hd95", "organ"))
    assert (float(hd95["mean_first"]), float(hd95["mean_second"]), float(hd95["difference"])) == (2, 1, -1)
    # Six differences of one sign: 2 / 2^6, corrected for three comparisons.
    assert float(hd95["p"]) == pytest.approx(1 / 32)
    assert float(hd95["p_holm"]) == pytest.approx(3 / 32)
    content = json.loads((out / "comparison.json").read_text())
    assert content["cases"] == list(CASES)
    assert {"p", "p_holm", "ci95"} <= set(content["methods"])
    assert content["definitions"]["hd95"]["unit"] == "mm"
    figures = {path.name for path in out.glob("*.png")} | {path.name for path in out.glob("*.svg")}
    names = ("cases_dice", "cases_hd95", "cases_nsd_1mm")
    assert figures == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    printed = capsys.readouterr().out
    assert "hd95 [mm]" in printed
    assert "-1.00 [-1.00, -1.00]" in printed
    assert "6 common cases" in printed


def test_metrics_names_and_costs(evaluated):
    costs = evaluated / "costs.csv"
    costs.write_text("model,parameters\nold,30\nnew,10\n")
    options = ("--names", "old", "new", "--metrics", "assd", "--costs", costs)
    assert compare(evaluated, evaluated / "bad_out", evaluated / "good_out", *options) == 0
    svg = (evaluated / "out" / "cost_assd.svg").read_text()
    assert ">parameters<" in svg
    assert ">old<" in svg
    assert {path.stem for path in (evaluated / "out").glob("*.png")} == {"cases_assd", "cost_assd"}


def test_what_networks_cost_is_counted(trained_model, cross_validated, tmp_path, capsys):
    names = ("nnUNetTrainer", "nnUNetTrainerDeconver", "nnUNetTrainerDTC")
    models = [trained_model(trainer=name) for name in names]
    for model in models:
        cross_validated(model)
    weights = torch.load(models[1] / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    foreign = models[2].rename(models[2].with_name("nnUNetTrainerElsewhere__testPlans__test"))
    models[2] = foreign
    assert compare(tmp_path, *models, "--metrics", "dice") == 0
    costs = json.loads((tmp_path / "out" / "comparison.json").read_text())["costs"]
    assert {kind: list(of_models) for kind, of_models in costs.items()} == {
        "parameters / M": ["nnUNetTrainer", "nnUNetTrainerDeconver"],
        "kFLOPs / voxel": ["nnUNetTrainer", "nnUNetTrainerDeconver"],
    }
    # A checkpoint has a network's parameters, and nnU-Net's decoder holds its encoder a second time.
    own = sum(tensor.numel() for name, tensor in weights.items() if not name.startswith("decoder.encoder."))
    assert costs["parameters / M"]["nnUNetTrainerDeconver"] == own / 1e6
    model = TrainedModel.read(models[1])
    flops = prediction_cost(model.build, 1, (16, 16, 16)).flops
    assert costs["kFLOPs / voxel"]["nnUNetTrainerDeconver"] == pytest.approx(flops / 16**3 / 1000)
    printed = capsys.readouterr().out
    assert printed.count("nnUNetTrainerElsewhere: its network cannot be built here, so its cost is not drawn") == 1
    svg = (tmp_path / "out" / "cost_dice.svg").read_text()
    assert all(f">{text}<" in svg for text in ("parameters / M", "kFLOPs / voxel", "nnUNetTrainerDeconver"))
    assert ">nnUNetTrainerElsewhere<" not in svg
    # Named costs count; what they leave out of a kind is counted.
    file = tmp_path / "costs.csv"
    file.write_text("model,parameters / M\nnnUNetTrainerElsewhere,7\nnnUNetTrainer,8\n")
    assert compare(tmp_path, *models, "--metrics", "dice", "--costs", file) == 0
    named = json.loads((tmp_path / "out" / "comparison.json").read_text())["costs"]
    counted = costs["parameters / M"]["nnUNetTrainerDeconver"]
    assert named == {
        "parameters / M": {"nnUNetTrainer": 8, "nnUNetTrainerDeconver": counted, "nnUNetTrainerElsewhere": 7}
    }


def test_cases_that_not_all_have_are_told(evaluated, capsys):
    (evaluated / "good" / "c.nii.gz").unlink()
    assert evaluate(evaluated, "good", "--chill") == 0
    assert compare(evaluated, evaluated / "bad_out", evaluated / "good_out") == 0
    printed = capsys.readouterr().out
    assert "5 common cases" in printed
    assert "bad_out: 1 cases left out, which not all models have: c" in printed


def test_model_folders_are_evaluated_and_their_training_drawn(evaluated, monkeypatch, capsys):
    preprocessed = evaluated / "preprocessed" / NAME
    preprocessed.mkdir(parents=True)
    (evaluated / "gt").rename(preprocessed / "gt_segmentations")
    monkeypatch.setenv("nnUNet_preprocessed", str(evaluated / "preprocessed"))
    models = []
    for trainer, predictions in [("nnUNetTrainer", "bad"), ("nnUNetTrainerDeconver", "good")]:
        model = evaluated / "results" / NAME / f"{trainer}__nnUNetPlans__3d_fullres"
        (model / "fold_0").mkdir(parents=True)
        (evaluated / predictions).rename(model / "fold_0" / "validation")
        plans = {"dataset_name": NAME, "configurations": {}, "label_manager": "LabelManager"}
        (model / "plans.json").write_text(json.dumps(plans))
        (model / "dataset.json").write_text(json.dumps(DATASET))
        log = "".join(f"x: Epoch {n} \nx: train_loss {-n} \nx: val_loss 0 \nx: Pseudo dice [0.5] \n" for n in range(3))
        (model / "fold_0" / "training_log_2026.txt").write_text(log)
        models.append(model)
    assert compare(evaluated, *models) == 0
    assert "nnUNetTrainerDeconver" in capsys.readouterr().out
    svg = (evaluated / "out" / "training.svg").read_text()
    assert ">nnUNetTrainer<" in svg
    assert ">nnUNetTrainerDeconver<" in svg
    # What was made on the way is an evaluation like any other, of which the model is known.
    evaluation = evaluated / "out" / "evaluations" / "nnUNetTrainer"
    assert json.loads((evaluation / "summary.json").read_text())["source"]["model"] == str(models[0])
    assert compare(evaluated, evaluation, evaluated / "bad_out") == 0


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["r/T__P__3d", "r/TD__P__3d"], ["T", "TD"]),
        (["r/T__P__3d", "r/TD__P__2d"], ["T__3d", "TD__2d"]),
        (["x/a/out", "x/b/out"], ["a/out", "b/out"]),
        (["x/a/out", "y/a/out", "x/b"], ["x/a/out", "y/a/out", "b"]),
    ],
)
def test_names_are_as_short_as_they_can_be(folders, names):
    assert name_models([Path(folder) for folder in folders], None) == names


def test_names_of_files_need_no_quotes():
    assert file_name("a/b_c-1.2, Deconver+DTC (5 epochs)") == "a_b_c-1.2_Deconver+DTC_5_epochs_"


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("dice", "Dice"),
        ("hd95", "HD95 [mm]"),
        ("nsd_2mm", "surface Dice at 2mm"),
        ("brats_hd95", "BraTS HD95 [mm]"),
        ("lesion_tpr", "lesion tpr"),
    ],
)
def test_axis_labels(metric, label):
    assert axis_label(metric, {metric: {"unit": "mm" if "hd95" in metric else ""}}) == label


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bad_out"], "bad_out alone cannot be compared; name at least two folders"),
        (["bad_out", "bad_out"], "the same folder is named twice"),
        (["bad_out", "gt"], "gt: is neither what `nnunet-deconver evaluate` wrote"),
        (["bad_out", "good_out", "--names", "x"], "--names x: must be 2 different names, one per folder"),
        (["bad_out", "good_out", "--names", "x", "x"], "--names x x: must be 2 different names"),
        (
            ["bad_out", "good_out", "--metrics", "dice", "dicee"],
            "--metrics dicee: must be among what was measured, dice",
        ),
        (["bad_out", "good_out", "--costs", "no.csv"], "no.csv: cannot be read"),
        (["bad_out", "good_out", "--costs", "gt/dataset.json"], "must have a column model and at least one of numbers"),
        (["bad_out", "good_out", "--costs", "unknown.csv"], "model x must be among bad_out, good_out"),
        (["bad_out", "good_out", "--costs", "text.csv"], "p of bad_out must be a positive number, got many"),
    ],
)
def test_usage_errors_exit_with_2(evaluated, arguments, message, capsys):
    (evaluated / "unknown.csv").write_text("model,p\nx,1\n")
    (evaluated / "text.csv").write_text("model,p\nbad_out,many\n")
    option = next((index for index, word in enumerate(arguments) if word in ("--names", "--metrics")), len(arguments))
    arguments = [
        word if word.startswith("--") or index > option else evaluated / word for index, word in enumerate(arguments)
    ]
    assert compare(evaluated, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (evaluated / "out").exists()


def test_evaluations_with_other_settings_exit_with_2(evaluated, capsys):
    (evaluated / "good_out" / "cases.jsonl").unlink()
    assert evaluate(evaluated, "good", "--surface", "voxels") == 0
    assert compare(evaluated, evaluated / "bad_out", evaluated / "good_out") == 2
    assert "evaluated with different settings" in capsys.readouterr().err
