"""Metrics of probabilities: how well they rank voxels, and whether they are true."""

import numpy as np

# Of the calibration error, as in Guo and others, arXiv 1706.04599.
BINS = 15


def probability_metrics(reference: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """How good the probabilities of a class are, over voxels.

    Args:
        reference: bool, any shape.
        probability: of the class, from 0 to 1, of the same shape.

    Returns:
        `average_precision`, the area under the curve of precision over recall in steps, as scikit-learn's
        average_precision_score, NaN without reference; `brier`, the mean squared distance from probability to reference
        (Brier, Monthly Weather Review 78, 1950); `calibration_error`, the distance between mean probability and part of
        the reference within `BINS` equal intervals of the probability, weighted by their voxels (arXiv 1706.04599).
        All NaN without voxels.

    Raises:
        ValueError: if the shapes differ.
    """
    if reference.shape != probability.shape:
        raise ValueError(f"shapes differ: reference {reference.shape}, probability {probability.shape}")
    if not reference.size:
        return {"average_precision": np.nan, "brier": np.nan, "calibration_error": np.nan}
    truth, found = reference.ravel(), probability.ravel().astype(np.float64)
    bins = np.minimum((found * BINS).astype(np.intp), BINS - 1)
    expected = np.bincount(bins, found, BINS)
    observed = np.bincount(bins, truth, BINS)
    return {
        "average_precision": _average_precision(truth, found),
        "brier": float(np.mean((found - truth) ** 2)),
        "calibration_error": float(np.abs(expected - observed).sum() / truth.size),
    }


def _average_precision(truth: np.ndarray, found: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, found)) if truth.any() else np.nan
