"""Files that are cut short, corrupt or hold no labels are named, in every format whose readers let them pass."""

import os
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_deconver.integration.images import check_image_file, check_whole_numbers


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 3, (19, 20, 21)).astype(np.uint8)


def write(path, voxels, compressed=True):
    if "nifti2" in path.name:
        nibabel.save(nibabel.Nifti2Image(voxels, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), compressed)
    check_image_file(path)
    check_whole_numbers(path)
    return path.read_bytes()


NAMES = ["a.nii.gz", "a.nii", "nifti2.nii", "nifti2.nii.gz", "a.mha"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [0.5, 0.9, 0.999])
def test_cut_short(tmp_path, labels, name, part):
    content = write(tmp_path / name, labels)
    (tmp_path / name).write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"is cut short|is corrupt"):
        check_image_file(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_a_changed_byte(tmp_path, labels, name):
    content = bytearray(write(tmp_path / name, labels))
    content[len(content) * 3 // 4] ^= 0x55
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="corrupt"):
        check_image_file(tmp_path / name)


@pytest.mark.parametrize("spacing", [0, -1, np.nan, np.inf])
@pytest.mark.parametrize(("name", "place"), [("a.nii", 80), ("nifti2.nii", 112)])
def test_no_spacing(tmp_path, labels, name, place, spacing):
    content = bytearray(write(tmp_path / name, labels))
    struct.pack_into("<f" if place == 80 else "<d", content, place, spacing)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"has the spacing {spacing:g}, 1, 1"):
        check_image_file(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_what_is_no_label(tmp_path, labels, name, value):
    voxels = labels.astype(np.float32)
    write(tmp_path / name, voxels)  # labels may be stored as floating-point numbers
    voxels[3, 4, 5] = value
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name))
    with pytest.raises(ValueError, match="not whole numbers"):
        check_whole_numbers(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="is not a file"):
        check_image_file(tmp_path / "a.nii.gz")
