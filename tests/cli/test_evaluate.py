import json
import math

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_deconver import cli
from nnunet_deconver.cli import evaluate
from nnunet_deconver.metrics.definitions import EMPTY_POLICIES, PRACTICES
from nnunet_deconver.metrics.lesions import BRATS_RULES
from nnunet_deconver.metrics.surface import SURFACES

DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "file_ending": ".nii.gz",
}
NAME = "Dataset904_Test"


def write(path, voxels, spacing=(1.0, 1.0, 3.0)):
    image = sitk.GetImageFromArray(voxels.astype(np.uint8))
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def voxels(shift=0):
    image = np.zeros((6, 10, 12))
    image[1:5, 2:7, 2 + shift : 7 + shift] = 1
    image[2:4, 3:6, 3 + shift : 6 + shift] = 2
    return image


@pytest.fixture
def folders(tmp_path):
    """References in a raw dataset's folder, and predictions, which are one voxel beside."""
    for case in ("a", "b", "c"):
        write(tmp_path / "raw" / "labelsTr" / f"{case}.nii.gz", voxels())
        write(tmp_path / "pred" / f"{case}.nii.gz", voxels(1))
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(DATASET))
    return tmp_path


def run(tmp_path, *options, references="raw/labelsTr", predictions="pred"):
    paths = [str(tmp_path / folder) for folder in (references, predictions) if folder]
    return cli.main(["evaluate", *paths, "-o", str(tmp_path / "out"), "-np", "1", *options])


def summary(tmp_path):
    return json.loads((tmp_path / "out" / "summary.json").read_text())


def test_the_choices_are_those_of_the_package():
    assert evaluate.SURFACES == SURFACES
    assert evaluate.EMPTY_POLICIES == EMPTY_POLICIES
    assert tuple(BRATS_RULES) == evaluate.BRATS_CHALLENGES
    assert tuple(PRACTICES) == evaluate.PRACTICES


def test_the_table_of_two_folders(folders, capsys):
    assert run(folders, "--lesions", "--brats", "MET", "--tolerance", "0.5", "1") == 0
    printed = capsys.readouterr().out
    table = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert table["metric"].split() == ["metric", "organ", "lesion", "mean", "over", "classes"]
    assert table["hd95 [mm]"].split() == ["hd95", "[mm]", "1.00", "±", "0.00", "1.00", "±", "0.00", "1.00"]
    assert table["nsd_1mm"].split()[1] == "1.0000"
    assert {"dice", "nsd_0.5mm", "lesion_tpr", "brats_hd95 [mm]"} <= table.keys()
    assert "3 cases" in printed
    assert "surface: area; both empty: undefined" in printed
    both = np.count_nonzero((voxels() == 1) & (voxels(1) == 1))
    assert summary(folders)["metrics"]["organ"]["dice"]["mean"] == pytest.approx(both / np.count_nonzero(voxels() == 1))


def test_options_reach_the_definitions(folders, capsys):
    options = ("--surface", "voxels", "--empty", "best", "--one-empty", "100", "--tolerance", "2", "--far", "1.5")
    assert run(folders, *options) == 0
    found = summary(folders)
    assert found["settings"] == {
        "surface": "voxels",
        "tolerances": [2.0],
        "far": [1.5],
        "empty": "best",
        "one_empty": 100.0,
        "lesions": False,
        "panoptic": None,
        "probabilities": False,
        "brats": None,
        "unit": "mm",
        "same_grid": False,
        "like": None,
    }
    assert "distances are 100.0 mm" in found["policies"]["one_empty"]
    assert "as in MONAI" in found["definitions"]["hd95"]["definition"]
    assert "false_positives_beyond_1.5mm [voxels]" in capsys.readouterr().out


def test_like_a_paper_but_for_what_is_chosen(folders, capsys):
    assert run(folders, "--like", "deconver", "--one-empty", "nan", "--panoptic", "0.5") == 0
    assert "like deconver: arXiv 2504.00302, section 4.1, evaluation metrics; distance to" in capsys.readouterr().out
    found = summary(folders)
    chosen = ("like", "surface", "empty", "one_empty", "panoptic", "lesions")
    assert [found["settings"][name] for name in chosen] == ["deconver", "voxels", "best", "nan", 0.5, False]
    assert found["metrics"]["organ"]["recognition_quality"]["mean"] == 1


def save_probabilities(folders, case, change=lambda probabilities: probabilities):
    found = np.stack([voxels(1) == label for label in range(3)]) * 0.8 + 0.1
    with (folders / "pred" / f"{case}.npz").open("wb") as file:
        np.savez_compressed(file, probabilities=change(found.astype(np.float32)))


def test_probabilities_of_nnunet(folders, capsys):
    for case in "abc":
        save_probabilities(folders, case)
    assert run(folders, "--probabilities") == 0
    wrong = np.count_nonzero((voxels() == 2) != (voxels(1) == 2)) / voxels().size
    found = summary(folders)["metrics"]["lesion"]
    assert found["brier"]["mean"] == pytest.approx(wrong * 0.81 + (1 - wrong) * 0.01)
    assert "average_precision" in capsys.readouterr().out
    # New probabilities are measured anew.
    save_probabilities(folders, "b", lambda probabilities: np.full_like(probabilities, 0.5))
    assert run(folders, "--probabilities") == 0
    assert summary(folders)["metrics"]["lesion"]["brier"]["mean"] > found["brier"]["mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda probabilities: probabilities[:2], "shapes differ: reference has (3, 6, 10, 12) with a channel"),
        (lambda probabilities: probabilities[..., :5], "shapes differ"),
        (lambda probabilities: probabilities * 10 - 5, "are not all between 0 and 1"),
        (lambda probabilities: probabilities * np.nan, "are not all between 0 and 1"),
        (lambda probabilities: np.array([{}], object), "cannot be read (ValueError: Object arrays cannot be loaded"),
    ],
    ids=["a channel too few", "another size", "logits", "NaN", "pickled"],
)
def test_probabilities_that_are_none(folders, capsys, change, message):
    save_probabilities(folders, "a")
    save_probabilities(folders, "b", change)
    save_probabilities(folders, "c")
    whole = (folders / "pred" / "c.npz").read_bytes()
    (folders / "pred" / "c.npz").write_bytes(whole[: len(whole) // 2])
    assert run(folders, "--probabilities") == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert "c.npz cannot be read (BadZipFile" in errors
    (folders / "pred" / "c.npz").unlink()
    assert run(folders, "--probabilities") == 1
    assert "c.npz; nnUNetv2_predict writes them with --save_probabilities" in capsys.readouterr().err


def test_empty_masks_are_told(folders, capsys):
    write(folders / "pred" / "a.nii.gz", np.zeros((6, 10, 12)))
    assert run(folders) == 0
    assert "organ: prediction empty in 1" in capsys.readouterr().out
    diagonal = math.hypot(18, 10, 12)
    assert summary(folders)["metrics"]["organ"]["hd95"]["mean"] == pytest.approx((1 + 1 + diagonal) / 3)


def test_what_is_wrong_is_named_case_by_case_and_the_rest_is_measured(folders, capsys):
    write(folders / "pred" / "b.nii.gz", voxels()[:, :9])
    write(folders / "pred" / "d.nii.gz", voxels())
    (folders / "pred" / "c.nii.gz").write_bytes(b"broken")
    write(folders / "raw" / "labelsTr" / "e.nii.gz", voxels())
    assert run(folders) == 1
    errors = capsys.readouterr().err
    assert "4 cases could not be measured" in errors
    for line in (
        "b: shapes differ: reference (6, 10, 12), prediction (6, 9, 12)",
        "c: prediction",
        "d: no reference",
        "e: no prediction",
    ):
        assert f"  {line}" in errors
    found = summary(folders)
    assert found["cases"] == 1
    assert list(found["problems"]) == ["b", "c", "d", "e"]


def test_chill_does_without_predictions(folders):
    (folders / "pred" / "a.nii.gz").unlink()
    assert run(folders) == 1
    assert run(folders, "--chill") == 0
    assert summary(folders)["cases"] == 2


def test_same_grid(folders):
    write(folders / "pred" / "a.nii.gz", voxels(1), spacing=(2.0, 1.0, 1.0))
    assert run(folders) == 1
    assert "geometry differs" in summary(folders)["problems"]["a"]
    (folders / "out" / "cases.jsonl").unlink()
    assert run(folders, "--same-grid") == 0


def test_dataset_json_beside_the_predictions_comes_first(folders):
    content = DATASET | {"labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [1]}
    (folders / "pred" / "dataset.json").write_text(json.dumps(content))
    assert run(folders) == 0
    assert list(summary(folders)["classes"]) == ["whole"]


@pytest.fixture
def model(folders, monkeypatch):
    """A trained model's folder: fold 0 has segmented a, fold 1 has b and lacks c."""
    trained = folders / "results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for fold, case in [("fold_0", "a"), ("fold_1", "b")]:
        write(trained / fold / "validation" / f"{case}.nii.gz", voxels(1))
    plans = {"dataset_name": NAME, "plans_name": "nnUNetPlans", "configurations": {}, "label_manager": "LabelManager"}
    (trained / "plans.json").write_text(json.dumps(plans))
    (trained / "dataset.json").write_text(json.dumps(DATASET))
    preprocessed = folders / "preprocessed" / NAME
    preprocessed.mkdir(parents=True)
    (folders / "raw" / "labelsTr").rename(preprocessed / "gt_segmentations")
    (preprocessed / "splits_final.json").write_text(json.dumps([{"val": ["a"]}, {"val": ["b", "c"]}]))
    monkeypatch.setenv("nnUNet_preprocessed", str(folders / "preprocessed"))
    return trained


def test_cross_validation_of_a_model(folders, model, capsys):
    assert run(folders, "--model", str(model), references=None, predictions=None) == 1
    assert f"c: no prediction: {model / 'fold_1' / 'validation' / 'c.nii.gz'}" in capsys.readouterr().err
    assert summary(folders)["cases"] == 2
    write(model / "fold_1" / "validation" / "c.nii.gz", voxels())
    assert run(folders, "--model", str(model), references=None, predictions=None) == 0
    assert summary(folders)["cases"] == 3


def test_the_model_of_predictions_is_noted(folders, model):
    (folders / "pred" / "dataset.json").write_text(json.dumps(DATASET))
    assert run(folders, "--model", str(model), references=f"preprocessed/{NAME}/gt_segmentations") == 0
    source = summary(folders)["source"]
    assert (source["predictions"], source["model"]) == (str(folders / "pred"), str(model))
    assert source["dataset_json"] == str(folders / "pred" / "dataset.json")
    assert summary(folders)["cases"] == 3


def test_references_of_a_model_may_be_named(folders, model, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    references = f"preprocessed/{NAME}/gt_segmentations"
    assert run(folders, "--model", str(model), references=references, predictions=None) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/raw/labelsTr"], "name two folders, GT and PRED, or a trained model: --model FOLDER"),
        (["{0}/raw/labelsTr", "{0}/nowhere"], "{0}/nowhere: no such folder"),
        (["{0}/raw/labelsTr", "{0}/pred", "--tolerance", "-1"], "tolerance: must be a number of at least 0, got -1.0"),
        (
            ["{0}/raw/labelsTr", "{0}/pred", "--one-empty", "far"],
            "one_empty: must be diagonal, nan or a number, got far",
        ),
        (["{0}/raw/labelsTr", "{0}/pred", "-np", "0"], "--processes 0: must be at least 1"),
        (["{0}/raw/labelsTr", "{0}/pred", "--dataset-json", "{0}/no.json"], "{0}/no.json: no such file"),
        (["{0}/pred", "{0}/pred"], "no dataset.json, which says what the labels are: looked for {0}/pred/dataset.json"),
        (["{0}/raw/labelsTr", "{0}/pred", "--model", "{0}/raw"], "--model {0}/raw: has no plans.json"),
        (["--model", "{0}/raw"], "--model {0}/raw: has no plans.json"),
        (["{0}/raw/labelsTr", "{0}/pred", "-o", "{0}/raw/dataset.json"], "dataset.json: is a file; name a folder"),
    ],
)
def test_usage_errors_exit_with_2(folders, arguments, message, capsys):
    arguments = ["-o", "{0}/out", *arguments]
    assert cli.main(["evaluate", *(argument.format(folders) for argument in arguments)]) == 2
    assert message.format(folders) in capsys.readouterr().err
    assert not (folders / "out").exists()


@pytest.mark.parametrize("variable", [None, "{0}/elsewhere"])
def test_a_model_whose_references_are_not_found(folders, model, variable, monkeypatch, capsys):
    if variable:
        monkeypatch.setenv("nnUNet_preprocessed", variable.format(folders))
    else:
        monkeypatch.delenv("nnUNet_preprocessed")
    assert run(folders, "--model", str(model), references=None, predictions=None) == 2
    error = capsys.readouterr().err
    assert ("is not set" if variable is None else "gt_segmentations: no such folder") in error
    assert "evaluate GT --model" in error


def test_other_settings_into_the_same_folder_exit_with_2(folders, capsys):
    assert run(folders) == 0
    assert run(folders, "--lesions") == 2
    assert "holds an evaluation with other settings: lesions False (now True)" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(folders, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_deconver.metrics.evaluation.measure_case", interrupt)
    assert run(folders) == 130
    assert "the same command goes on from what is in" in capsys.readouterr().err
