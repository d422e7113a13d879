"""Small raw datasets, what the demo refuses, and what nnU-Net prints."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.io import imsave

from nnunet_deconver import cli
from nnunet_deconver.demo import training
from nnunet_deconver.demo.dataset import RawData


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.fixture
def tree():
    """A function of a folder: all its files and folders, with their contents."""
    return _tree


def _describe(folder: Path, **changes):
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "numTraining": 0}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz", **changes}))


def _nifti_dataset(folder: Path, cases: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        labels = np.zeros((4, 12, 10), np.uint8)
        labels[1:3, 2:8, 3:7] = 1
        image = 50 * labels + rng.normal(size=labels.shape)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "imagesTr" / f"c{number:02d}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labelsTr" / f"c{number:02d}.nii.gz"))
    _describe(folder)
    return folder


@pytest.fixture
def nifti_dataset():
    """A function that writes a raw dataset of 3D images and returns its folder."""
    return _nifti_dataset


def _rgb_dataset(folder: Path, cases: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        labels = np.zeros((24, 20), np.uint8)
        labels[4:12, 5:15] = 1
        image = rng.integers(0, 100, (24, 20, 3)).astype(np.uint8)
        image[..., 1] += 100 * labels
        imsave(folder / "imagesTr" / f"eye {number}_0000.png", image, check_contrast=False)
        imsave(folder / "labelsTr" / f"eye {number}.png", labels, check_contrast=False)
    _describe(folder, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    return folder


@pytest.fixture
def rgb_dataset():
    """A function that writes a raw dataset of RGB images and returns its folder."""
    return _rgb_dataset


def _raw_data(folder, images, truths, **changes):
    """A raw dataset with one training case and the held-out cases given as arrays."""
    for split, chosen in (("Tr", slice(1)), ("Ts", slice(None))):
        for name in ("images", "labels"):
            (folder / f"{name}{split}").mkdir(parents=True)
        for number, (channels, truth) in enumerate(zip(images[chosen], truths[chosen], strict=True)):
            for channel, image in enumerate(channels):
                path = folder / f"images{split}" / f"c{number}_{channel:04d}.nii.gz"
                sitk.WriteImage(sitk.GetImageFromArray(image.astype(np.float32)), str(path))
            path = folder / f"labels{split}" / f"c{number}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(truth.astype(np.uint8)), str(path))
    _describe(folder, channel_names={str(i): "MRI" for i in range(len(images[0]))}, **changes)
    return RawData(folder)


@pytest.fixture
def raw_data():
    """A function that writes arrays as a raw dataset and returns it as the demo reads it."""
    return _raw_data


@pytest.fixture
def refuses(tmp_path, capsys, monkeypatch):
    """Asserts that the demo ends with exit code 2 and a message, without a command run or a file written."""
    monkeypatch.setattr(training, "run_command", lambda *_: pytest.fail("a command was run"))

    def check(arguments, words):
        before = _tree(tmp_path)
        out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
        assert cli.main(["demo", *map(str, [*arguments, *out])]) == 2
        error = capsys.readouterr().err
        assert [word for word in words if word not in error] == [], error
        assert "Traceback" not in error
        assert _tree(tmp_path) == before

    return check


TRAINING_OUTPUT = """
2025-01-01 10:00:00.000000: Using torch.compile...
2025-01-01 10:00:00.000000: Epoch {0}
2025-01-01 10:00:00.000000: Current learning rate: 0.001
2025-01-01 10:00:08.000000: train_loss 0.1
2025-01-01 10:00:08.000000: Pseudo dice [np.float32(0.25), np.float32(0.75), nan]
2025-01-01 10:00:08.000000: Epoch time: 8.0 s
"""


@pytest.fixture
def training_output():
    """A function of an epoch: the lines that nnU-Net prints about it."""
    return lambda epoch: TRAINING_OUTPUT.format(epoch).splitlines()
