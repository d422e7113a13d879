"""Stratified folds: how they are made, read and written."""

import json
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_deconver.errors import InputError
from nnunet_deconver.integration.splits import (
    foreground_volumes,
    read_values,
    stratified_splits,
    training_cases,
    write_splits,
)


def volumes(number=60, seed=0):
    """As lesions': over three orders of magnitude."""
    rng = np.random.default_rng(seed)
    return {f"case_{i:03}": float(10 ** rng.uniform(0, 3)) for i in range(number)}


@pytest.mark.parametrize("folds", [2, 5, 8])
def test_folds_part_the_cases(folds):
    values = volumes()
    splits = stratified_splits(values, folds)
    assert sorted(case for split in splits for case in split["val"]) == sorted(values)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(values)
        assert split["train"] == sorted(split["train"]) and split["val"] == sorted(split["val"])
    assert {len(split["val"]) for split in splits} <= {60 // folds, 60 // folds + 1}


def test_every_fold_has_cases_of_every_size():
    """Of 60 cases in 10 bins of 6, each of 5 folds gets at least one of each bin; random folds do not."""
    values = volumes()
    ordered = sorted(values, key=values.get)
    bins = {case: rank // 6 for rank, case in enumerate(ordered)}
    for split in stratified_splits(values, 5):
        assert {bins[case] for case in split["val"]} == set(range(10))


def test_every_fold_has_cases_of_every_class():
    values = {f"case_{i}": "AAAB"[i % 4] for i in range(40)}
    for split in stratified_splits(values, 5):
        assert Counter(values[case] for case in split["val"]) == {"A": 6, "B": 2}


def test_few_numbers_are_classes():
    values = {f"case_{i}": float(i % 10 == 0) for i in range(50)}
    assert all(sum(values[case] for case in split["val"]) == 1 for split in stratified_splits(values, 5))


def test_few_cases_are_one_bin():
    """Eight volumes for eight folds are no eight classes."""
    splits = stratified_splits(volumes(8), 8)
    assert sorted(split["val"] for split in splits) == [[case] for case in sorted(volumes(8))]


def test_the_seed_decides():
    assert stratified_splits(volumes(), seed=1) == stratified_splits(volumes(), seed=1)
    assert stratified_splits(volumes(), seed=1) != stratified_splits(volumes(), seed=2)
    shuffled = dict(reversed(volumes().items()))
    assert stratified_splits(shuffled, seed=1) == stratified_splits(volumes(), seed=1)


def test_equal_volumes_are_of_one_class():
    """Cases without lesions, which are many in some datasets, are shared out evenly."""
    values = volumes(40) | {f"empty_{i}": 0.0 for i in range(20)}
    for split in stratified_splits(values, 5):
        assert sum(values[case] == 0 for case in split["val"]) == 4


@pytest.mark.parametrize(
    "values, options, message",
    [
        (volumes(4), {}, "folds 5: must be 2 to 4, the number of cases"),
        (volumes(), {"folds": 1}, "folds 1: must be 2 to 60"),
        (volumes(), {"seed": -1}, "seed -1: must be 0 to"),
        ({f"case_{i}": f"site {i}" for i in range(12)}, {}, "folds 5: no value has so many cases"),
    ],
)
def test_folds_that_cannot_be(values, options, message):
    with pytest.raises(InputError, match=message):
        stratified_splits(values, **options)


@pytest.fixture
def raw(tmp_path):
    """Three cases, with 8, 16 and 24 voxels of foreground, and others to be ignored."""
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    for case in range(3):
        label = np.zeros((4, 6, 5), np.uint8)
        label[: 1 + case, :4, :2] = 1 + case % 2
        label[3] = 3
        image = sitk.GetImageFromArray(label)
        image.SetSpacing((0.5, 1.0, 4.0))
        sitk.WriteImage(image, str(tmp_path / "labelsTr" / f"c{case}.nii.gz"))
        sitk.WriteImage(image, str(tmp_path / "imagesTr" / f"c{case}_0000.nii.gz"))
    return tmp_path


DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}, "numTraining": 3}
DATASET |= {"file_ending": ".nii.gz"}


def test_volumes_of_labels(raw):
    labels = training_cases(raw, DATASET)
    assert list(labels) == ["c0", "c1", "c2"]
    assert foreground_volumes(labels, DATASET) == {"c0": 16.0, "c1": 32.0, "c2": 48.0}
    # SimpleITK would fill up with zeros what is cut off.
    whole = labels["c1"].read_bytes()
    labels["c1"].write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(InputError, match=r"labelsTr/c1.nii.gz: cannot be read \(is cut short"):
        foreground_volumes(labels, DATASET)
    (raw / "labelsTr" / "c1.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"labelsTr/c1.nii.gz: cannot be read"):
        foreground_volumes(labels, DATASET)
    with pytest.raises(InputError, match="has no folder imagesTr"):
        training_cases(raw / "labelsTr", DATASET)


def test_the_reader_of_labels_is_looked_for_once(raw, monkeypatch):
    from nnunetv2.imageio import reader_writer_registry as registry

    found, calls = registry.determine_reader_writer_from_dataset_json, []
    name = "determine_reader_writer_from_dataset_json"
    monkeypatch.setattr(registry, name, lambda *a, **o: calls.append(a) or found(*a, **o))
    foreground_volumes(training_cases(raw, DATASET), DATASET)
    assert len(calls) == 1


def test_columns_of_a_table(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case,site,age\nc0,Utrecht,61\nc1,Singapore,70.5\nother,,\nc2,Utrecht,55\n")
    cases = ["c0", "c1", "c2"]
    assert read_values(path, cases) == {"c0": "Utrecht", "c1": "Singapore", "c2": "Utrecht"}
    assert read_values(path, cases, "age") == {"c0": 61, "c1": 70.5, "c2": 55}


@pytest.mark.parametrize(
    "content, column, message",
    [
        ("case,site\nc0,A\n", None, "has no site for c1, c2; add them"),
        ("case,site\nc0,A\nc1,B\nc1,A\nc2,A\n", None, "has several lines for c1"),
        ("case,site\nc0,A\nc1,B\nc2,A\n", "age", "column age: .*cases.csv has site"),
        ("case,age\nc0,1\nc1,nan\nc2,3\n", None, "age of c1 is nan; it must be finite, or text"),
        ("case\nc0\n", None, "must have two columns"),
        ("", None, "must have two columns"),
        (b"\xff\xfe\x00", None, "cannot be read as CSV"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, column, message):
    path = tmp_path / "cases.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_values(path, ["c0", "c1", "c2"], column)
    path.unlink()
    with pytest.raises(InputError, match=r"cases.csv: no such file"):
        read_values(path, ["c0"])


class TestWriting:
    @pytest.fixture
    def folders(self, tmp_path):
        preprocessed, results = tmp_path / "preprocessed", tmp_path / "results"
        preprocessed.mkdir()
        return preprocessed, results

    first, second = stratified_splits(volumes(), seed=1), stratified_splits(volumes(), seed=2)

    def test_the_file_is_nnunets(self, folders):
        preprocessed, results = folders
        assert write_splits(self.first, preprocessed, results)
        assert json.loads((preprocessed / "splits_final.json").read_text()) == self.first
        assert not write_splits(self.first, preprocessed, results)
        assert [path.name for path in preprocessed.iterdir()] == ["splits_final.json"]

    def test_other_folds_stay_unless_asked(self, folders):
        preprocessed, results = folders
        write_splits(self.first, preprocessed, results)
        with pytest.raises(FileExistsError, match="exists and has other folds"):
            write_splits(self.second, preprocessed, results)
        with pytest.raises(InputError, match="nnUNet_results is not set"):
            write_splits(self.second, preprocessed, None, overwrite=True)
        assert json.loads((preprocessed / "splits_final.json").read_text()) == self.first
        assert write_splits(self.second, preprocessed, results, overwrite=True)
        assert json.loads((preprocessed / "splits_final.json").read_text()) == self.second

    @pytest.mark.parametrize("there", [True, False], ids=["folds there", "folds gone"])
    def test_folds_that_models_were_trained_on_stay_whatever_is_asked(self, folders, there):
        preprocessed, results = folders
        if there:
            write_splits(self.first, preprocessed, results)
        (results / "nnUNetTrainer__nnUNetPlans__2d" / "fold_3").mkdir(parents=True)
        with pytest.raises(InputError, match=r"models were trained on other folds \(.*fold_3\)"):
            write_splits(self.second, preprocessed, results, overwrite=True)
        assert (preprocessed / "splits_final.json").exists() is there
        if there:
            assert not write_splits(self.first, preprocessed, results)

    def test_models_of_all_cases_have_no_folds(self, folders):
        preprocessed, results = folders
        (results / "nnUNetTrainer__nnUNetPlans__2d" / "fold_all").mkdir(parents=True)
        assert write_splits(self.first, preprocessed, results)

    def test_a_file_that_is_not_a_list_of_folds(self, folders):
        preprocessed, results = folders
        (preprocessed / "splits_final.json").write_text("{}")
        with pytest.raises(InputError, match="must hold a list, got a dict"):
            write_splits(self.first, preprocessed, results, overwrite=True)
