"""What can be asked for, and what each number means: settings, units, ideals and definitions."""

import math
from dataclasses import dataclass

from nnunet_deconver.errors import InputError
from nnunet_deconver.metrics.lesions import BRATS_PENALTY_MM, BRATS_RULES
from nnunet_deconver.metrics.surface import SURFACES

EMPTY_POLICIES = ("nan", "best")
SURFACE_TEXTS = {
    "area": "surface elements at the grid's corners, weighted by marching-cubes area (length in 2D), as in "
    "surface-distance",
    "voxels": "centres of voxels with a face neighbour outside the mask, all of equal weight, as in MONAI and MedPy",
}
PERCENTILE_TEXTS = {
    "area": "the smallest measured distance that holds so much of the surface, as in surface-distance",
    "voxels": "interpolated linearly between measured distances, as in MONAI",
}


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes:
        surface: one of `nnunet_deconver.metrics.surface.SURFACES`.
        tolerances: of the surface Dice, in `unit`.
        far: distances in `unit` beyond which false positives are counted apart.
        empty: the value where reference and prediction are both empty: "nan", undefined and left out of means, as in
            nnU-Net, or "best", the metric's ideal value, as in the Deconver paper.
        one_empty: the distance where one of them is empty: "diagonal" of the image, "nan", or a number in `unit`.
        lesions: whether to count lesions.
        brats: key of `BRATS_RULES` for the lesion-wise scores of BraTS; None for none.
        unit: of lengths: "mm", or "px" for images without spacing.
        same_grid: whether to compare voxel by voxel where origin, direction or spacing of the files differ.
    """

    surface: str = "area"
    tolerances: tuple[float, ...] = (1.0,)
    far: tuple[float, ...] = ()
    empty: str = "nan"
    one_empty: float | str = "diagonal"
    lesions: bool = False
    brats: str | None = None
    unit: str = "mm"
    same_grid: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("surface", SURFACES), ("empty", EMPTY_POLICIES), ("brats", (None, *BRATS_RULES))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}: must be one of {', '.join(map(str, choices))}, got {getattr(self, name)}")
        for name, distances in (("tolerance", self.tolerances), ("far", self.far)):
            for distance in distances:
                if not 0 <= distance < math.inf:
                    raise InputError(f"{name}: must be a number of at least 0, got {distance}")
        if isinstance(self.one_empty, str):
            if self.one_empty not in ("diagonal", "nan"):
                raise InputError(f"one_empty: must be diagonal, nan or a number, got {self.one_empty}")
        elif not 0 <= self.one_empty < math.inf:
            raise InputError(f"one_empty: must be a number of at least 0, got {self.one_empty}")


@dataclass(frozen=True)
class Metric:
    """What a metric is.

    Attributes:
        unit: "" for a ratio.
        ideal: value of a perfect prediction, also of an empty one where nothing is; None if there is no such value.
        definition: one sentence.
        is_distance: whether an empty mask makes it infinite.
        headline: whether the terminal shows it.
    """

    unit: str
    ideal: float | None
    definition: str
    is_distance: bool = False
    headline: bool = False


def tolerance_name(tolerance: float, unit: str) -> str:
    """The name of the surface Dice at a tolerance, such as nsd_1mm."""
    return f"nsd_{tolerance:g}{unit}"


def far_name(distance: float, unit: str) -> str:
    """The name of the false positives beyond a distance, such as false_positives_beyond_5mm."""
    return f"false_positives_beyond_{distance:g}{unit}"


def define_overlap(settings: Settings, rank: int) -> dict[str, Metric]:
    """What `overlap_metrics` measures."""
    return {
        "dice": Metric("", 1, "2 TP / (2 TP + FP + FN) over voxels, as in nnU-Net", headline=True),
        "jaccard": Metric("", 1, "TP / (TP + FP + FN) over voxels, nnU-Net's IoU", headline=True),
        "sensitivity": Metric("", 1, "TP / (TP + FN) over voxels; undefined if the reference is empty", headline=True),
        "precision": Metric("", 1, "TP / (TP + FP) over voxels; undefined if the prediction is empty", headline=True),
    }


def define_surface(settings: Settings, rank: int) -> dict[str, Metric]:
    """What is measured between surfaces."""
    unit, surface = settings.unit, SURFACE_TEXTS[settings.surface]

    def distance(definition: str, headline: bool = False) -> Metric:
        return Metric(unit, 0, f"{definition}; {surface}", is_distance=True, headline=headline)

    table = {
        "hd": distance("Hausdorff distance, the larger of both directions"),
        "hd95": distance(
            "the larger of both directed 95th percentiles of distances between surfaces; percentile: "
            f"{PERCENTILE_TEXTS[settings.surface]}",
            headline=True,
        ),
        "assd": distance("average distance between surfaces, both directions pooled", headline=True),
        "asd_prediction_to_reference": distance(
            "average over the prediction's surface of the distance to the reference's"
        ),
        "asd_reference_to_prediction": distance(
            "average over the reference's surface of the distance to the prediction's"
        ),
    }
    for tolerance in settings.tolerances:
        table[tolerance_name(tolerance, unit)] = Metric(
            "",
            1,
            f"surface Dice: part of both surfaces within {tolerance:g} {unit} of the other; {surface}",
            headline=True,
        )
    return table


def define_far(settings: Settings, rank: int) -> dict[str, Metric]:
    """False positives by their distance."""
    return {
        far_name(distance, settings.unit): Metric(
            "voxels",
            0,
            f"voxels of the prediction further than {distance:g} {settings.unit} from the centre of any foreground "
            "voxel of the reference, whatever its class; all of them if there is none",
            headline=True,
        )
        for distance in settings.far
    }


def define_volume(settings: Settings, rank: int) -> dict[str, Metric]:
    """What `volume_metrics` measures."""
    unit = f"{settings.unit}^{rank}"
    return {
        "volume_reference": Metric(unit, None, "voxels of the reference times the size of a voxel"),
        "volume_prediction": Metric(unit, None, "voxels of the prediction times the size of a voxel"),
        "volume_difference": Metric(unit, 0, "prediction minus reference"),
        "absolute_volume_difference": Metric(unit, 0, "absolute value of prediction minus reference"),
        "relative_volume_difference": Metric("%", 0, "prediction minus reference, in percent of the reference"),
        "absolute_relative_volume_difference": Metric(
            "%",
            0,
            "absolute value of that, the WMH challenge's AVD; undefined if the reference is empty",
            headline=True,
        ),
    }


def define_lesions(settings: Settings, rank: int) -> dict[str, Metric]:
    """What `detection_metrics` counts."""
    lesion = "lesions: connected by faces, edges or corners; matched by one common voxel"
    return {
        "lesion_dice": Metric("", 1, f"2 TPR PPV / (TPR + PPV), the WMH challenge's F1; {lesion}", headline=True),
        "lesion_tpr": Metric("", 1, f"matched lesions of the reference / its lesions; {lesion}", headline=True),
        "lesion_ppv": Metric("", 1, f"matched lesions of the prediction / its lesions; {lesion}", headline=True),
        "lesion_fpr": Metric("", 0, f"1 - PPV, as in the ISBI 2015 challenge; {lesion}", headline=True),
        "lesions_reference": Metric("lesions", None, f"number; {lesion}"),
        "lesions_prediction": Metric("lesions", None, f"number; {lesion}"),
        "lesions_missed": Metric("lesions", 0, f"unmatched ones of the reference; {lesion}"),
        "lesions_false": Metric("lesions", 0, f"unmatched ones of the prediction; {lesion}"),
    }


def define_brats(settings: Settings, rank: int) -> dict[str, Metric]:
    """What `brats_metrics` measures."""
    assert settings.brats is not None
    rule = BRATS_RULES[settings.brats]
    brats = (
        f"BraTS 2023 {settings.brats}: reference joined after {rule.dilation} dilation(s) of 18 neighbours, "
        f"lesions of up to {rule.volume:g} mm^3 left out, matched with all components (of 26 neighbours) that "
        f"touch the dilated lesion; a missed lesion and a component that touches none score Dice 0 and HD95 "
        f"{BRATS_PENALTY_MM:g} mm; without any, 1 and 0"
    )
    return {
        "brats_dice": Metric("", 1, f"mean Dice over lesions and false positives; {brats}", headline=True),
        "brats_hd95": Metric(
            settings.unit, 0, f"mean HD95 (area surface) over lesions and false positives; {brats}", headline=True
        ),
        "brats_found": Metric("lesions", None, f"matched lesions of the reference; {brats}"),
        "brats_missed": Metric("lesions", 0, f"unmatched lesions of the reference; {brats}"),
        "brats_false": Metric("lesions", 0, f"components of the prediction that touch none; {brats}"),
    }


def policies(settings: Settings) -> dict[str, str]:
    """What is done at the edges of the definitions, in sentences for reports."""
    sentences: dict[float | str, str] = {
        "diagonal": "distances are the diagonal of the image",
        "nan": "distances are undefined and left out of means",
    }
    one_empty = sentences.get(settings.one_empty, f"distances are {settings.one_empty} {settings.unit}")
    return {
        "both_empty": {
            "nan": "undefined and left out of means, as in nnU-Net",
            "best": "the ideal value (Dice 1, distance 0), as in the Deconver paper",
        }[settings.empty]
        + "; the scores of BraTS follow their own rule",
        "one_empty": f"Dice, Jaccard and surface Dice are 0; {one_empty}",
        "ignore_label": "voxels with it in the reference count as background in both masks",
        "image_border": "outside the image is background: a mask that touches the border has a surface there",
        "statistics": "std: sample standard deviation (n - 1); ci95: percentile bootstrap of the mean over cases, "
        "10000 resamples, seed 0; n: cases in which the value is defined",
        "foreground_mean": "the mean over classes of their means, as in nnU-Net",
    }
