import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter then; it reads this when it is first imported, by a test.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


LABELS = {"background": 0, "organ": 1, "lesion": 2}


def _write_dataset(
    root: Path, name: str, shape, spacing, *, cases=30, channels=1, labels=LABELS, **description
) -> Path:
    """A dataset after nnUNetv2_extract_fingerprint; returns its preprocessed folder.

    The fingerprint is written by hand, so that the images, which planning only asks for their file format, are tiny.
    """
    raw, preprocessed = root / "raw" / name, root / "preprocessed" / name
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8))
    for case in ("a", "b"):
        for channel in range(channels):
            sitk.WriteImage(image, str(raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz"))
        sitk.WriteImage(image, str(raw / "labelsTr" / f"{case}.nii.gz"))
    described = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(described | description))
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [list(spacing)] * cases,
        "shapes_after_crop": [list(shape)] * cases,
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return preprocessed


@pytest.fixture(scope="session")
def write_dataset():
    """Makes a dataset as it is after nnUNetv2_extract_fingerprint."""
    return _write_dataset
