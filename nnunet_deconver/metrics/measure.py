"""All metrics of one case."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nnunet_deconver.metrics.definitions import Metric, Settings
from nnunet_deconver.metrics.lesions import enclosing
from nnunet_deconver.metrics.measurements import Masks, metrics, wanted_measurements


class Value(NamedTuple):
    """A metric of a class in a case.

    Attributes:
        name: of the class.
        metric: its name.
        value: NaN if undefined.
        note: which mask is empty, if one is.
    """

    name: str
    metric: str
    value: float
    note: str


def measure(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    classes: Mapping[str, tuple[int, ...]],
    ignore: int | None,
    settings: Settings,
    probabilities: Mapping[str, np.ndarray] | None = None,
) -> list[Value]:
    """Measures a prediction against its reference.

    Args:
        reference: labels, whole numbers, one to three axes.
        prediction: labels, of the same shape.
        spacing: size of a voxel along each axis, in `settings.unit`.
        classes: name to the labels it is made of: one, or those of a region.
        ignore: label of the reference that marks voxels which do not count; None if there is none.
        settings: what to measure.
        probabilities: with `settings.probabilities`, those of each class, of the same shape.

    Returns:
        The values, class by class.
    """
    diagonal = math.hypot(*(length * size for length, size in zip(reference.shape, spacing, strict=True)))
    table = metrics(settings, reference.ndim)
    boxes = [_boxes(labels) for labels in (reference, prediction)]
    far = far_masks(reference, spacing, classes, ignore, settings.far)
    values = []
    for name, labels in classes.items():
        # Most classes fill a small part of an image: measured there, all is faster.
        here = [found[label] for found in boxes for label in labels if label in found]
        box = enclosing(here) if here and 0 not in labels else tuple(slice(length) for length in reference.shape)
        truth, predicted = (np.isin(whole[box], labels) for whole in (reference, prediction))
        if ignore is not None:
            counts = reference[box] != ignore
            truth, predicted = truth & counts, predicted & counts
        empty = not truth.any(), not predicted.any()
        note = {
            (True, True): "both empty",
            (True, False): "reference empty",
            (False, True): "prediction empty",
        }.get(empty, "")
        voxels = None
        if probabilities is not None:
            everywhere = slice(None) if ignore is None else reference != ignore
            voxels = np.isin(reference, labels)[everywhere].ravel(), probabilities[name][everywhere].ravel()
        distant = {distance: beyond[box] for distance, beyond in far.items()}
        found = {}
        for measurement in wanted_measurements(settings).values():
            found |= measurement.measure(Masks(truth, predicted, spacing, settings, distant, voxels))
        for metric, definition in table.items():
            value = _resolve(found[metric], definition, all(empty), diagonal, settings)
            values.append(Value(name, metric, value, note))
    return values


def far_masks(
    reference: np.ndarray,
    spacing: Sequence[float],
    classes: Mapping[str, tuple[int, ...]],
    ignore: int | None,
    distances: Sequence[float],
) -> dict[float, np.ndarray]:
    """Where what is predicted is far from everything that should be.

    Args:
        reference: labels.
        spacing: size of a voxel along each axis.
        classes: name to the labels it is made of.
        ignore: label of the reference that is no foreground; None if there is none.
        distances: in the unit of `spacing`.

    Returns:
        Distance to mask of the voxels whose centres are further than that from those of all foreground.
    """
    if not distances:
        return {}
    from scipy import ndimage

    foreground = np.isin(
        reference, [label for labels in classes.values() for label in labels if label not in (0, ignore)]
    )
    if foreground.any():
        nearest = np.asarray(ndimage.distance_transform_edt(~foreground, sampling=spacing))
    else:
        nearest = np.full(reference.shape, np.inf)
    # As with tolerances: a voxel exactly at the distance is not beyond it for a spacing's single precision.
    return {distance: nearest > distance * (1 + 1e-6) for distance in distances}


def _resolve(value: float, metric: Metric, both_empty: bool, diagonal: float, settings: Settings) -> float:
    """Puts the settings' policies where a definition ends: at 0 / 0 and at the distance to nothing."""
    if math.isnan(value) and both_empty and settings.empty == "best" and metric.ideal is not None:
        return metric.ideal
    if metric.is_distance and math.isinf(value):
        return diagonal if settings.one_empty == "diagonal" else float(settings.one_empty)
    return value


def _boxes(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """The box around each label but 0."""
    from scipy import ndimage

    return {label: box for label, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None}
