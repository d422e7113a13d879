import csv
import json
import math
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_deconver.metrics import evaluation
from nnunet_deconver.metrics.cases import CaseFiles, EvaluationError, pair_folders, read_dataset
from nnunet_deconver.metrics.definitions import Settings

LABELS = {"background": 0, "organ": 1, "lesion": 2}


def write(path, voxels):
    image = sitk.GetImageFromArray(voxels.astype(np.uint8))
    image.SetSpacing((0.5, 0.7, 3.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def folders(tmp_path, number=4, labels=LABELS, highest=2, **changes):
    """References of random labels, predictions that are these moved by a voxel."""
    rng = np.random.default_rng(0)
    for index in range(number):
        voxels = rng.integers(0, highest + 1, (6, 7, 8))
        write(tmp_path / "gt" / f"case_{index}.nii.gz", voxels)
        write(tmp_path / "pred" / f"case_{index}.nii.gz", np.minimum(np.roll(voxels, 1, 2), 2))
    content = {"labels": labels, "file_ending": ".nii.gz"} | changes
    (tmp_path / "pred" / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def evaluate(tmp_path, processes=1, **settings):
    dataset = read_dataset(tmp_path / "pred" / "dataset.json", None, tmp_path / "gt")
    cases, missing, extra = pair_folders(tmp_path / "gt", tmp_path / "pred", ".nii.gz")
    return evaluation.measure_cases(
        cases, missing | extra, dataset, Settings(**settings), tmp_path / "out", processes, {}
    )


def read_table(tmp_path):
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


DATASETS = {
    "labels": {},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]},
    "ignore label": {"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}, "highest": 3},
}


@pytest.mark.parametrize("kind", DATASETS)
def test_dice_and_jaccard_are_nnunets(tmp_path, kind):
    folders(tmp_path, number=2, **DATASETS[kind])
    # A case without a class: Dice is undefined in both.
    write(tmp_path / "gt" / "case_0.nii.gz", np.ones((6, 7, 8)))
    write(tmp_path / "pred" / "case_0.nii.gz", np.ones((6, 7, 8)))
    summary = evaluate(tmp_path)
    found = {(row["case"], row["class"], row["metric"]): row["value"] for row in read_table(tmp_path)}
    regions = {name: tuple(labels) if len(labels) > 1 else labels[0] for name, labels in summary["classes"].items()}
    compared = 0
    for case in ("case_0", "case_1"):
        paths = [str(tmp_path / folder / f"{case}.nii.gz") for folder in ("gt", "pred")]
        expected = compute_metrics(*paths, SimpleITKIO(), list(regions.values()), summary["ignore_label"])["metrics"]
        for name, region in regions.items():
            for ours, theirs in (("dice", "Dice"), ("jaccard", "IoU")):
                value = float(found[case, name, ours] or "nan")
                assert value == pytest.approx(expected[region][theirs], abs=1e-12, nan_ok=True)
                compared += not math.isnan(value)
    assert compared >= 6


def test_what_is_written(tmp_path):
    summary = evaluate(folders(tmp_path), lesions=True, tolerances=(0.5, 3.0))
    rows = read_table(tmp_path)
    metrics = list(summary["definitions"])
    assert list(rows[0]) == ["case", "class", "metric", "value", "unit", "note"]
    assert [(row["case"], row["class"], row["metric"]) for row in rows] == [
        (f"case_{index}", name, metric) for index in range(4) for name in ("organ", "lesion") for metric in metrics
    ]
    assert {"nsd_0.5mm", "nsd_3mm", "lesion_tpr", "hd95", "assd"} < set(metrics)
    units = {row["metric"]: row["unit"] for row in rows}
    assert (units["dice"], units["hd95"], units["volume_reference"]) == ("", "mm", "mm^3")
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert stored == json.loads(json.dumps(summary))
    dices = [float(row["value"]) for row in rows if (row["class"], row["metric"]) == ("organ", "dice")]
    statistics = stored["metrics"]["organ"]["dice"]
    assert statistics["mean"] == pytest.approx(np.mean(dices))
    assert statistics["ci95"][0] <= statistics["mean"] <= statistics["ci95"][1]
    assert "95th percentile" in stored["definitions"]["hd95"]["definition"]
    assert stored["settings"]["surface"] == "area"
    assert {"both_empty", "one_empty", "ignore_label", "image_border", "statistics"} <= set(stored["policies"])
    assert not list((tmp_path / "out").glob("*.unfinished"))


def test_undefined_values_are_empty_in_the_table_and_null_in_the_summary(tmp_path):
    folders(tmp_path, number=2)
    for folder in ("gt", "pred"):
        for case in ("case_0", "case_1"):
            write(tmp_path / folder / f"{case}.nii.gz", np.ones((6, 7, 8)))
    evaluate(tmp_path)
    row = next(row for row in read_table(tmp_path) if (row["class"], row["metric"]) == ("lesion", "dice"))
    assert (row["value"], row["note"]) == ("", "both empty")
    text = (tmp_path / "out" / "summary.json").read_text()
    assert "NaN" not in text
    stored = json.loads(text)
    assert stored["metrics"]["lesion"]["dice"] == {
        "mean": None,
        "std": None,
        "median": None,
        "ci95": [None, None],
        "n": 0,
        "undefined": 2,
    }
    assert stored["empty"] == {"lesion": {"both empty": 2}}


def test_volumes_of_slices_are_areas(tmp_path):
    folders(tmp_path, number=1)
    for folder in ("gt", "pred"):
        write(tmp_path / folder / "case_0.nii.gz", np.ones((1, 7, 8)))
    assert evaluate(tmp_path)["definitions"]["volume_reference"]["unit"] == "mm^2"
    row = next(row for row in read_table(tmp_path) if row["metric"] == "volume_reference")
    assert (float(row["value"]), row["unit"]) == (pytest.approx(7 * 8 * 0.5 * 0.7), "mm^2")


def test_several_processes_find_the_same(tmp_path):
    folders(tmp_path)
    (tmp_path / "pred" / "case_2.nii.gz").write_bytes(b"broken")
    alone = evaluate(tmp_path)
    table = read_table(tmp_path)
    (tmp_path / "out" / "cases.jsonl").unlink()
    assert evaluate(tmp_path, processes=2) == alone
    assert read_table(tmp_path) == table
    assert list(alone["problems"]) == ["case_2"]


def measured(monkeypatch):
    """The names of the cases that are measured from now on."""
    names = []
    original = evaluation.measure_case

    def spy(case, *rest):
        names.append(case.name)
        return original(case, *rest)

    monkeypatch.setattr(evaluation, "measure_case", spy)
    return names


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    folders(tmp_path)
    whole = evaluate(tmp_path)
    (tmp_path / "out" / "cases.jsonl").unlink()
    original = evaluation.measure_case

    def interrupted(case, *rest):
        if case.name == "case_2":
            raise KeyboardInterrupt
        return original(case, *rest)

    monkeypatch.setattr(evaluation, "measure_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path)
    monkeypatch.setattr(evaluation, "measure_case", original)
    with (tmp_path / "out" / "cases.jsonl").open("a") as file:
        file.write('{"case": "case_2", "val')  # killed while it wrote
    names = measured(monkeypatch)
    assert evaluate(tmp_path) == whole
    assert names == ["case_2", "case_3"]
    assert len(read_table(tmp_path)) == 4 * 2 * len(whole["definitions"])


def test_a_case_is_kept_before_the_next_one_is_measured(tmp_path, monkeypatch):
    kept = []
    original = evaluation.measure_case

    def spy(*args):
        kept.append(len((tmp_path / "out" / "cases.jsonl").read_text().splitlines()) - 1)
        return original(*args)

    monkeypatch.setattr(evaluation, "measure_case", spy)
    evaluate(folders(tmp_path))
    assert kept == [0, 1, 2, 3]


def test_new_files_and_failed_cases_are_measured_again(tmp_path, monkeypatch):
    folders(tmp_path)
    (tmp_path / "pred" / "case_1.nii.gz").write_bytes(b"broken")
    assert list(evaluate(tmp_path)["problems"]) == ["case_1"]
    write(tmp_path / "pred" / "case_1.nii.gz", np.ones((6, 7, 8)))
    write(tmp_path / "gt" / "case_3.nii.gz", np.ones((6, 7, 8)))
    names = measured(monkeypatch)
    summary = evaluate(tmp_path)
    assert names == ["case_1", "case_3"]
    assert summary["problems"] == {}
    assert summary["cases"] == 4


def test_cases_that_are_gone_do_not_count(tmp_path):
    folders(tmp_path)
    evaluate(tmp_path)
    for folder in ("gt", "pred"):
        (tmp_path / folder / "case_3.nii.gz").unlink()
    assert evaluate(tmp_path)["cases"] == 3
    assert {row["case"] for row in read_table(tmp_path)} == {"case_0", "case_1", "case_2"}


def test_a_file_of_others_in_the_place_of_measured_cases_is_not_replaced(tmp_path):
    folders(tmp_path)
    path = tmp_path / "out" / "cases.jsonl"
    path.parent.mkdir()
    path.write_text("[]\n")
    with pytest.raises(EvaluationError, match=r"cases\.jsonl: is not what evaluate writes; delete it"):
        evaluate(tmp_path)
    assert path.read_text() == "[]\n"


def test_other_settings_need_another_folder(tmp_path):
    evaluate(folders(tmp_path))
    before = (tmp_path / "out" / "cases.jsonl").read_text()
    with pytest.raises(EvaluationError, match=r"holds an evaluation with other settings: surface area \(now voxels\)"):
        evaluate(tmp_path, surface="voxels")
    assert (tmp_path / "out" / "cases.jsonl").read_text() == before


def test_one_case_does_not_end_the_others(tmp_path, monkeypatch):
    def fail(reference, *rest):
        if reference.max() == 1:
            raise MemoryError("too large")
        return original(reference, *rest)

    original = evaluation.measure
    folders(tmp_path)
    write(tmp_path / "gt" / "case_1.nii.gz", np.ones((6, 7, 8)))
    monkeypatch.setattr(evaluation, "measure", fail)
    summary = evaluate(tmp_path)
    assert summary["problems"] == {"case_1": "MemoryError: too large"}
    assert summary["cases"] == 3


def test_a_process_that_dies_is_reported(tmp_path, monkeypatch):
    class Future:
        def result(self):
            raise BrokenProcessPool

    class Pool:
        def __init__(self, *args, **kwargs):
            pass

        def submit(self, *args):
            return Future()

        def shutdown(self, **kwargs):
            pass

    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(evaluation, "as_completed", list)
    summary = evaluate(folders(tmp_path), processes=2)
    assert len(summary["problems"]) == 4
    assert "a process died" in summary["problems"]["case_0"]


def test_no_case_at_all(tmp_path):
    folders(tmp_path, number=1)
    (tmp_path / "pred" / "case_0.nii.gz").rename(tmp_path / "pred" / "other.nii.gz")
    summary = evaluate(tmp_path)
    assert (summary["cases"], summary["metrics"]) == (0, {})
    assert list(summary["problems"]) == ["case_0", "other"]
    assert read_table(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    folders(tmp_path)
    (tmp_path / "out").write_text("")
    with pytest.raises(EvaluationError, match="out: cannot be written"):
        evaluate(tmp_path)


def test_a_vanished_file_is_the_problem_of_its_case(tmp_path):
    folders(tmp_path, number=1)
    dataset = read_dataset(tmp_path / "pred" / "dataset.json", None, tmp_path / "gt")
    (tmp_path / "pred" / "link.nii.gz").symlink_to(tmp_path / "nowhere")
    case = CaseFiles("link", tmp_path / "gt" / "case_0.nii.gz", tmp_path / "pred" / "link.nii.gz")
    summary = evaluation.measure_cases([case], {}, dataset, Settings(), tmp_path / "out", 1, {})
    assert "cannot be read" in summary["problems"]["link"]
