"""All that is measured of a class in a case: the registry of metrics.

A further metric is a function of two masks, a function that defines what it returns, and one entry in `MEASUREMENTS`;
tables, summaries and lists follow from that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nnunet_deconver.extensions import load_extensions
from nnunet_deconver.metrics.definitions import (
    Metric,
    Settings,
    define_brats,
    define_far,
    define_lesions,
    define_overlap,
    define_panoptic,
    define_probability,
    define_surface,
    define_volume,
    far_name,
    tolerance_name,
)
from nnunet_deconver.metrics.lesions import BRATS_RULES, brats_metrics, detection_metrics, panoptic_metrics
from nnunet_deconver.metrics.overlap import overlap_metrics, volume_metrics
from nnunet_deconver.metrics.probability import probability_metrics
from nnunet_deconver.metrics.surface import (
    average_surface_distances,
    hausdorff_distance,
    normalized_surface_distance,
    surface_distances,
)


@dataclass(frozen=True)
class Masks:
    """A class in a case.

    Attributes:
        reference: bool, one to three axes; False where the reference has the ignore label.
        prediction: bool, of the same shape, likewise.
        spacing: size of a voxel along each axis, in `settings.unit`.
        settings: what to measure.
        probabilities: with `settings.probabilities`, reference and probability of all voxels that count, in and out of
            the masks, one axis each; else None.
        beyond: for each distance of `settings.far`, where all foreground of the reference is further away.
    """

    reference: np.ndarray
    prediction: np.ndarray
    spacing: Sequence[float]
    settings: Settings
    beyond: Mapping[float, np.ndarray] = field(default_factory=dict)
    probabilities: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Measurement:
    """Metrics that are measured together.

    Attributes:
        source: where they are defined.
        measure: from masks to the value of each; NaN where it is undefined, infinite for the distance to nothing.
        define: from settings and the number of axes to what each is; the same names.
        wanted: whether the settings ask for it.
    """

    source: str
    measure: Callable[[Masks], Mapping[str, float]]
    define: Callable[[Settings, int], Mapping[str, Metric]]
    wanted: Callable[[Settings], bool] = lambda settings: True


def _surface(masks: Masks) -> dict[str, float]:
    settings = masks.settings
    distances = surface_distances(masks.reference, masks.prediction, masks.spacing, settings.surface)
    found = {"hd": hausdorff_distance(distances), "hd95": hausdorff_distance(distances, 95)}
    found |= average_surface_distances(distances)
    for tolerance in settings.tolerances:
        found[tolerance_name(tolerance, settings.unit)] = normalized_surface_distance(distances, tolerance)
    return found


def _far(masks: Masks) -> dict[str, float]:
    return {
        far_name(distance, masks.settings.unit): float(np.count_nonzero(masks.prediction & beyond))
        for distance, beyond in masks.beyond.items()
    }


def _measure_brats(masks: Masks) -> dict[str, float]:
    assert masks.settings.brats is not None
    return brats_metrics(masks.reference, masks.prediction, masks.spacing, BRATS_RULES[masks.settings.brats])


def _panoptic(masks: Masks) -> dict[str, float]:
    assert masks.settings.panoptic is not None
    return panoptic_metrics(masks.reference, masks.prediction, masks.settings.panoptic)


def _probability(masks: Masks) -> dict[str, float]:
    assert masks.probabilities is not None
    return probability_metrics(*masks.probabilities)


# In the order of tables.
MEASUREMENTS = {
    "overlap": Measurement("nnU-Net", lambda masks: overlap_metrics(masks.reference, masks.prediction), define_overlap),
    "surface": Measurement("surface-distance, MONAI", _surface, define_surface),
    "far": Measurement("nnunet-deconver", _far, define_far, lambda settings: bool(settings.far)),
    "volume": Measurement(
        "WMH challenge",
        lambda masks: volume_metrics(masks.reference, masks.prediction, masks.spacing),
        define_volume,
    ),
    "lesions": Measurement(
        "challenges WMH, ISBI 2015, ISLES'22, and arXiv 2103.04020",
        lambda masks: detection_metrics(masks.reference, masks.prediction),
        define_lesions,
        lambda settings: settings.lesions,
    ),
    "panoptic": Measurement(
        "arXiv 1801.00868", _panoptic, define_panoptic, lambda settings: settings.panoptic is not None
    ),
    "probability": Measurement(
        "scikit-learn, arXiv 1706.04599", _probability, define_probability, lambda settings: settings.probabilities
    ),
    "brats": Measurement(
        "BraTS 2023",
        _measure_brats,
        define_brats,
        lambda settings: settings.brats is not None,
    ),
}
BUILT_IN = tuple(MEASUREMENTS)


def wanted_measurements(settings: Settings) -> dict[str, Measurement]:
    """What the settings ask for, by name."""
    return {name: each for name, each in MEASUREMENTS.items() if each.wanted(settings)}


def metrics(settings: Settings, rank: int = 3) -> dict[str, Metric]:
    """All metrics measured under the settings, by name, in the order of tables.

    Args:
        settings: what to measure.
        rank: number of spatial axes, which volumes have in their unit.
    """
    table = {}
    for measurement in wanted_measurements(settings).values():
        table |= measurement.define(settings, rank)
    return table


load_extensions()
