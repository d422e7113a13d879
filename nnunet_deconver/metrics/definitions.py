"""What can be asked for, and what each number means: settings, units, ideals and definitions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_deconver.errors import InputError
from nnunet_deconver.metrics.lesions import BRATS_PENALTY_MM, BRATS_RULES
from nnunet_deconver.metrics.probability import BINS
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
class Practice:
    """How a paper or a challenge measures.

    Attributes:
        settings: of `Settings`, the others as they are.
        source: where it says so.
        open: what it leaves open, or what differs here; "" for nothing.
    """

    settings: Mapping[str, Any]
    source: str
    open: str = ""


# A further one is one entry: `evaluate --like`, its help and docs/metrics.md follow from that.
PRACTICES = {
    "deconver": Practice(
        {"surface": "voxels", "empty": "best"},
        "arXiv 2504.00302, section 4.1, evaluation metrics",
        "distance to an empty mask: not said",
    ),
    "nerd": Practice(
        {"surface": "voxels", "lesions": True},
        "arXiv 2103.04020, section 3.2",
        "connectivity of lesions, surface and LFPR: not defined; take `lesion_fpr` for the latter",
    ),
    "dtc": Practice(
        {"surface": "area", "tolerances": (1.0,)},
        "arXiv 2601.17939, section 4, NSD of Nikolov and others",
        "tolerance: not said, 1 mm here",
    ),
    "brats2023": Practice(
        {"brats": "GLI"}, "github.com/rachitsaluja/BraTS-2023-Metrics", "for other tasks add --brats SSA, PED, MEN, MET"
    ),
    "isles2022": Practice(
        {"lesions": True, "empty": "best"},
        "github.com/ezequieldlrosa/isles22",
        "Dice, `lesion_f1`, `lesion_count_difference` and `absolute_volume_difference`, the last here in mm^3, not ml",
    ),
    "wmh": Practice(
        {"surface": "voxels", "lesions": True, "one_empty": "nan"},
        "github.com/hjkuijf/wmhchallenge, evaluation.py",
        "the challenge takes boundaries within slices, and a recall and precision of 1 where there is no lesion; its "
        "second label is the ignore label of nnU-Net",
    ),
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
        panoptic: intersection over union from which two lesions match in panoptic quality; None for none.
        probabilities: whether to measure probabilities, those of `nnUNetv2_predict --save_probabilities`.
        brats: key of `BRATS_RULES` for the lesion-wise scores of BraTS; None for none.
        unit: of lengths: "mm", or "px" for images without spacing.
        same_grid: whether to compare voxel by voxel where origin, direction or spacing of the files differ.
        like: key of `PRACTICES` that the others follow, see `like`; None for none. Only noted.
    """

    surface: str = "area"
    tolerances: tuple[float, ...] = (1.0,)
    far: tuple[float, ...] = ()
    empty: str = "nan"
    one_empty: float | str = "diagonal"
    lesions: bool = False
    panoptic: float | None = None
    probabilities: bool = False
    brats: str | None = None
    unit: str = "mm"
    same_grid: bool = False
    like: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("surface", SURFACES),
            ("empty", EMPTY_POLICIES),
            ("brats", (None, *BRATS_RULES)),
            ("like", (None, *PRACTICES)),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}: must be one of {', '.join(map(str, choices))}, got {getattr(self, name)}")
        if self.panoptic is not None and not 0 < self.panoptic <= 1:
            raise InputError(f"panoptic: must be above 0 and at most 1, got {self.panoptic}")
        for name, distances in (("tolerance", self.tolerances), ("far", self.far)):
            for distance in distances:
                if not 0 <= distance < math.inf:
                    raise InputError(f"{name}: must be a number of at least 0, got {distance}")
        if isinstance(self.one_empty, str):
            if self.one_empty not in ("diagonal", "nan"):
                raise InputError(f"one_empty: must be diagonal, nan or a number, got {self.one_empty}")
        elif not 0 <= self.one_empty < math.inf:
            raise InputError(f"one_empty: must be a number of at least 0, got {self.one_empty}")


def like(practice: str, **changes: Any) -> Settings:
    """The settings that come closest to what a paper or a challenge measures.

    Args:
        practice: key of `PRACTICES`.
        changes: settings that are chosen otherwise.

    Raises:
        InputError: if there is no such practice.
    """
    settings = PRACTICES[practice].settings if practice in PRACTICES else {}
    return Settings(**{**settings, **changes, "like": practice})


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
        "lesion_f1": Metric(
            "",
            1,
            "2 TP / (2 TP + FP + FN) with TP matched and FN unmatched lesions of the reference, FP unmatched ones of "
            f"the prediction, ISLES'22's F1; {lesion}",
            headline=True,
        ),
        "lesion_tpr": Metric(
            "", 1, f"matched lesions of the reference / its lesions, the NeRD paper's LTPR; {lesion}", headline=True
        ),
        "lesion_ppv": Metric("", 1, f"matched lesions of the prediction / its lesions; {lesion}", headline=True),
        "lesion_fpr": Metric("", 0, f"1 - PPV, as in the ISBI 2015 challenge; {lesion}", headline=True),
        "nerd_lesion_dice": Metric(
            "",
            1,
            "2 x matched lesions of the reference / (lesions of the reference + of the prediction), the NeRD paper's "
            f"LDice, which is printed without the 2; above 1 where one lesion matches several; {lesion}",
        ),
        "nerd_lesion_ppv": Metric(
            "",
            1,
            "matched lesions of the reference / lesions of the prediction, the NeRD paper's LPPV; above 1 where one "
            f"lesion matches several; {lesion}",
        ),
        "lesions_reference": Metric("lesions", None, f"number; {lesion}"),
        "lesions_prediction": Metric("lesions", None, f"number; {lesion}"),
        "lesions_missed": Metric("lesions", 0, f"unmatched ones of the reference; {lesion}"),
        "lesions_false": Metric("lesions", 0, f"unmatched ones of the prediction; {lesion}"),
        "lesion_count_difference": Metric(
            "lesions", 0, f"absolute difference of both numbers, as in ISLES'22; {lesion}", headline=True
        ),
    }


def define_panoptic(settings: Settings, rank: int) -> dict[str, Metric]:
    """What `panoptic_metrics` measures."""
    lesion = (
        "lesions: connected by faces, edges or corners; matched one to one, the largest intersection over union (IoU) "
        f"first, from {settings.panoptic:g} on, as in panoptica"
    )
    return {
        "recognition_quality": Metric(
            "", 1, f"matched lesions / the mean of both numbers of lesions, an F1; {lesion}", headline=True
        ),
        "segmentation_quality": Metric("", 1, f"mean IoU of matched lesions; {lesion}", headline=True),
        "panoptic_quality": Metric(
            "", 1, f"sum of the IoU of matched lesions / the mean of both numbers of lesions; {lesion}", headline=True
        ),
    }


def define_probability(settings: Settings, rank: int) -> dict[str, Metric]:
    """What `probability_metrics` measures."""
    return {
        "average_precision": Metric(
            "",
            1,
            "area under precision over recall of the class's probability over voxels, in steps, as scikit-learn's "
            "average_precision_score; undefined if the reference is empty",
            headline=True,
        ),
        "brier": Metric("", 0, "mean over voxels of (probability - reference)^2", headline=True),
        "calibration_error": Metric(
            "",
            0,
            f"expected calibration error: |mean probability - part in the reference| in {BINS} equal intervals of the "
            "class's probability, weighted by their voxels (arXiv 1706.04599)",
            headline=True,
        ),
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
