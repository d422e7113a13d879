import json
import os

import numpy as np
import pytest

from nnunet_deconver.demo.dataset import RawData, read_dataset


def describe(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(name):
    return lambda folder: (folder / name).unlink()


def with_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def with_description(**changes):
    return lambda folder: describe(folder, **changes)


def with_second_channel_but_for_one_case(folder):
    describe(folder, channel_names={"0": "T1", "1": "T2"})
    for first in (folder / "imagesTr").glob("*_0000.nii.gz"):
        if first.name != "c04_0000.nii.gz":
            first.with_name(first.name.replace("_0000", "_0001")).write_bytes(first.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("dataset.json"), ["no dataset.json", "dataset_format.md"]),
        (with_text("dataset.json", "{"), ["cannot read", "dataset.json", "mend"]),
        (with_text("dataset.json", '{"labels": {}}'), ["channel_names", "file_ending", "add"]),
        (with_description(labels={"organ": 1}), ["refuses the labels", "ackground", "mend"]),
        (with_description(file_ending=".mha"), ["found 0 cases", "_0000.mha", "5 at least"]),
        (without("labelsTr/c03.nii.gz"), ["c03", "labelsTr", "add it"]),
        (with_text("imagesTr/c00_0000.nii.gz", "no image"), ["cannot read its images", "file_ending"]),
        (with_second_channel_but_for_one_case, ["c04", "c04_0001.nii.gz", "add it"]),
    ],
    ids=["no json", "bad json", "keys", "labels", "no cases", "no label", "no image", "no channel"],
)
def test_spoilt_dataset(nifti_dataset, spoil, words, tmp_path, refuses):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    spoil(folder)
    refuses(["--dataset", folder], ["--dataset", "Dataset123_Organ", *words])


def test_missing_or_misnamed_dataset(nifti_dataset, tmp_path, refuses):
    nowhere = tmp_path / "Dataset001_Nowhere"
    refuses(["--dataset", nowhere], ["--dataset", str(nowhere), "no such folder"])
    misnamed = nifti_dataset(tmp_path / "Organ")
    refuses(["--dataset", misnamed], ["--dataset", "Organ", "three digits", "rename"])


def test_too_few_cases(nifti_dataset, tmp_path, refuses):
    few = nifti_dataset(tmp_path / "Dataset123_Organ", cases=4)
    refuses(["--dataset", few], ["--dataset", "found 4 cases", "5 at least"])


@pytest.mark.parametrize("number", [0, -1, 7, 10])
def test_held_out_leaves_enough_cases(nifti_dataset, number, tmp_path, refuses):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    arguments = ["--dataset", folder, "--held-out", number]
    refuses(arguments, [f"--held-out {number}", "from 1 to 6", "10 cases"])


@pytest.mark.parametrize(("cases", "held_out", "expected"), [(5, None, 1), (10, None, 2), (10, 4, 4)])
def test_held_out_cases(nifti_dataset, cases, held_out, expected, tmp_path):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ", cases)
    dataset, again = (read_dataset(folder, held_out) for _ in range(2))
    assert len(dataset.held_out) == expected
    assert sorted([*dataset.training, *dataset.held_out]) == [f"c{number:02d}" for number in range(cases)]
    assert dataset == again


def test_links_have_nnunets_names_and_leave_the_dataset_alone(nifti_dataset, tree, tmp_path):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    before = tree(folder)
    dataset = read_dataset(folder)
    raw = tmp_path / "out" / "raw" / dataset.name
    dataset.link(raw)
    assert tree(folder) == before
    for split, cases in (("Tr", dataset.training), ("Ts", dataset.held_out)):
        assert {path.name for path in (raw / f"images{split}").iterdir()} == {f"{case}_0000.nii.gz" for case in cases}
        assert {path.name for path in (raw / f"labels{split}").iterdir()} == {f"{case}.nii.gz" for case in cases}
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == len(dataset.training) == 8
    data = RawData(raw)
    assert (data.number, data.is_2d, data.classes) == ("123", False, {"organ": 1})
    image, truth, spacing = data.read_held_out(data.cases("Ts")[0])
    assert (image.shape, truth.shape, list(spacing)) == ((1, 4, 12, 10), (4, 12, 10), [1, 1, 1])


def test_files_listed_in_the_description(nifti_dataset, tmp_path):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    (folder / "imagesTr").rename(folder / "scans")
    listed = {
        f"case{number}": {"images": [f"scans/c{number:02d}_0000.nii.gz"], "label": f"labelsTr/c{number:02d}.nii.gz"}
        for number in range(6)
    }
    describe(folder, dataset=listed)
    raw = tmp_path / "out" / folder.name
    read_dataset(folder).link(raw)
    data = RawData(raw)
    assert sorted(data.cases("Tr") + data.cases("Ts")) == sorted(listed)
    number = int(data.cases("Ts")[0][-1])
    assert os.path.samefile(data.images("Ts", f"case{number}")[0], folder / "scans" / f"c{number:02d}_0000.nii.gz")
    assert "dataset" not in data.description


def test_spacing_files_of_tif_come_along(tmp_path):
    import tifffile

    folder = tmp_path / "Dataset123_Organ"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(5):
        volume = np.random.default_rng(number).integers(0, 2, (4, 8, 8)).astype(np.uint8)
        tifffile.imwrite(folder / "imagesTr" / f"c{number}_0000.tif", volume)
        tifffile.imwrite(folder / "labelsTr" / f"c{number}.tif", volume)
        for name in ("imagesTr", "labelsTr"):
            (folder / name / f"c{number}.json").write_text('{"spacing": [3, 1, 2]}')
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 5,
        "file_ending": ".tif",
        "overwrite_image_reader_writer": "Tiff3DIO",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    read_dataset(folder).link(tmp_path / "out" / folder.name)
    data = RawData(tmp_path / "out" / folder.name)
    assert data.read_held_out(data.cases("Ts")[0])[2] == [3, 1, 2]


def test_rgb_images_are_2d(rgb_dataset, tmp_path):
    folder = rgb_dataset(tmp_path / "Dataset021_Eyes")
    read_dataset(folder).link(tmp_path / "out" / folder.name)
    data = RawData(tmp_path / "out" / folder.name)
    assert data.is_2d
    image, truth, _ = data.read_held_out(data.cases("Ts")[0])
    assert (image.shape, truth.shape) == ((3, 1, 24, 20), (1, 24, 20))


def test_regions_and_ignore_label(nifti_dataset, tmp_path):
    folder = nifti_dataset(tmp_path / "Dataset123_Tumor", 5)
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    describe(folder, labels=labels, regions_class_order=[1, 2, 3])
    read_dataset(folder).link(tmp_path / "out" / folder.name)
    data = RawData(tmp_path / "out" / folder.name)
    assert data.classes == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}
    assert data.ignore == 4
