"""Metrics that count voxels: overlap and volume.

Dice and Jaccard are nnU-Net's own (nnunetv2.evaluation.evaluate_predictions.compute_metrics), to the last bit.
"""

import math
from collections.abc import Sequence

import numpy as np


def overlap_metrics(reference: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Dice, Jaccard index, sensitivity and precision of a mask.

    With the numbers TP of voxels in both masks, FP in the prediction alone and FN in the reference alone:
    dice = 2 TP / (2 TP + FP + FN), jaccard = TP / (TP + FP + FN), sensitivity = TP / (TP + FN),
    precision = TP / (TP + FP).

    Args:
        reference: bool, any shape.
        prediction: bool, of the same shape.

    Returns:
        Name to value; NaN for a ratio of zeros.

    Raises:
        ValueError: if the shapes differ.
    """
    check_masks(reference, prediction)
    both = int(np.count_nonzero(reference & prediction))
    in_reference, in_prediction = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    return {
        "dice": ratio(2 * both, in_reference + in_prediction),
        "jaccard": ratio(both, in_reference + in_prediction - both),
        "sensitivity": ratio(both, in_reference),
        "precision": ratio(both, in_prediction),
    }


def volume_metrics(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Volumes and their differences, in the unit of `spacing` to the power of the number of axes, and in percent.

    Args:
        reference: bool, any shape.
        prediction: bool, of the same shape.
        spacing: size of a voxel along each axis.

    Returns:
        Name to value. Differences are prediction minus reference, so that a positive one means too much was
        segmented; relative ones are in percent of the reference, NaN if that is empty.

    Raises:
        ValueError: if the shapes differ.
    """
    check_masks(reference, prediction)
    voxel = math.prod(spacing)
    expected, found = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    relative = 100 * ratio(found - expected, expected)
    return {
        "volume_reference": expected * voxel,
        "volume_prediction": found * voxel,
        "volume_difference": (found - expected) * voxel,
        "absolute_volume_difference": abs(found - expected) * voxel,
        "relative_volume_difference": relative,
        "absolute_relative_volume_difference": abs(relative),
    }


def ratio(numerator: float, denominator: float) -> float:
    """The quotient; NaN where the denominator is zero."""
    return numerator / denominator if denominator else math.nan


def check_masks(reference: np.ndarray, prediction: np.ndarray) -> None:
    """Raises ValueError unless both are masks of one shape."""
    for name, mask in (("reference", reference), ("prediction", prediction)):
        if mask.dtype != bool:
            raise ValueError(f"{name}: must be of dtype bool, got {mask.dtype}")
    if reference.shape != prediction.shape:
        raise ValueError(f"prediction: must have the reference's shape {reference.shape}, got {prediction.shape}")
