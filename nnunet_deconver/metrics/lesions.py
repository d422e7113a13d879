"""Metrics that count lesions: connected components of a mask.

Two families, which answer different questions and must not be mixed:

- detection: is a lesion found at all? That of the WMH Segmentation Challenge (Kuijf and others, arXiv 1904.00682, and
  its evaluation.py) and, for the false positive rate, of the ISBI 2015 challenge (Carass and others, NeuroImage 148);
- BraTS 2023: how well is each lesion segmented (github.com/rachitsaluja/BraTS-2023-Metrics, the organisers' code)?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from nnunet_deconver.metrics.overlap import check_masks, overlap_metrics, ratio
from nnunet_deconver.metrics.surface import hausdorff_distance, surface_distances

# HD95, in mm, of a lesion with nothing to measure to: the diagonal of the challenge's images of 240x240x155 voxels.
BRATS_PENALTY_MM = 374.0


@dataclass(frozen=True)
class BratsRule:
    """What a BraTS 2023 challenge counts as a lesion.

    Attributes:
        dilation: voxels by which the reference is dilated.
        volume: reference lesions of up to this volume, in mm^3, do not count.
    """

    dilation: int
    volume: float


BRATS_RULES = {
    "GLI": BratsRule(3, 50),
    "SSA": BratsRule(3, 50),
    "PED": BratsRule(3, 50),
    "MEN": BratsRule(1, 50),
    "MET": BratsRule(1, 2),
}


def detection_metrics(reference: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """How many lesions are found, and how many found ones are none.

    A lesion is a set of voxels of a mask connected by faces, edges or corners. A lesion of the reference is found if
    the prediction has one of its voxels or more; a lesion of the prediction is true if the reference has one of its
    voxels or more. One may overlap with several of the other mask.

    Args:
        reference: bool, one to three axes.
        prediction: bool, of the same shape.

    Returns:
        `lesion_tpr`, the found ones among the reference's lesions; `lesion_ppv`, the true ones among the
        prediction's; `lesion_fpr` = 1 - `lesion_ppv`; `lesion_dice`, the harmonic mean of `lesion_tpr` and
        `lesion_ppv` (the challenge's F1); `lesion_f1`, which counts found, missed and false lesions (ISLES'22);
        `nerd_lesion_dice` and `nerd_lesion_ppv`, which count found lesions of the reference over those of the
        prediction, too, so that they exceed 1 where one of the prediction finds several; the numbers of lesions, and
        their difference. NaN where nothing is there to divide by; `lesion_dice` is 0 if one mask alone is empty.

    Raises:
        ValueError: if the shapes differ.
    """
    check_masks(reference, prediction)
    reference_lesions, expected = label(reference)
    prediction_lesions, found = label(prediction)
    hit = len(np.unique(reference_lesions[prediction & reference]))
    true = len(np.unique(prediction_lesions[prediction & reference]))
    tpr, ppv = ratio(hit, expected), ratio(true, found)
    dice = 2 * tpr * ppv / (tpr + ppv) if hit else ratio(0, expected + found)
    return {
        "lesion_tpr": tpr,
        "lesion_ppv": ppv,
        "lesion_fpr": 1 - ppv,
        "lesion_dice": dice,
        "lesion_f1": ratio(2 * hit, expected + hit + found - true),
        "nerd_lesion_dice": ratio(2 * hit, expected + found),
        "nerd_lesion_ppv": ratio(hit, found),
        "lesions_reference": expected,
        "lesions_prediction": found,
        "lesions_missed": expected - hit,
        "lesions_false": found - true,
        "lesion_count_difference": abs(found - expected),
    }


def panoptic_metrics(reference: np.ndarray, prediction: np.ndarray, threshold: float) -> dict[str, float]:
    """How many lesions are recognised as such, each by one, and how well these are segmented.

    Lesions are matched one to one, those of the largest intersection over union first, as long as it is `threshold` or
    more (as panoptica's NaiveThresholdMatching). Kirillov and others, arXiv 1801.00868, define the rest.

    Args:
        reference: bool, one to three axes.
        prediction: bool, of the same shape.
        threshold: above 0, up to 1.

    Returns:
        `recognition_quality`, matched ones over the mean of both numbers of lesions, NaN without any;
        `segmentation_quality`, the mean intersection over union of matched ones, NaN without any; and
        `panoptic_quality`, the sum of these intersections over unions over the mean of both numbers.

    Raises:
        ValueError: if the shapes differ.
    """
    check_masks(reference, prediction)
    reference_lesions, expected = label(reference)
    prediction_lesions, found = label(prediction)
    both = prediction & reference
    pairs, overlaps = np.unique(
        np.stack([reference_lesions[both], prediction_lesions[both]], axis=1), axis=0, return_counts=True
    )
    sizes = [np.bincount(lesions.ravel()) for lesions in (reference_lesions, prediction_lesions)]
    ious = overlaps / (sizes[0][pairs[:, 0]] + sizes[1][pairs[:, 1]] - overlaps)
    matched: list[float] = []
    taken: tuple[set[int], set[int]] = set(), set()
    for index in np.argsort(-ious, kind="stable"):
        one, other = pairs[index].tolist()
        if ious[index] >= threshold and one not in taken[0] and other not in taken[1]:
            matched.append(float(ious[index]))
            taken[0].add(one)
            taken[1].add(other)
    return {
        "recognition_quality": ratio(2 * len(matched), expected + found),
        "segmentation_quality": ratio(sum(matched), len(matched)),
        "panoptic_quality": ratio(2 * sum(matched), expected + found),
    }


def brats_metrics(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], rule: BratsRule
) -> dict[str, float]:
    """The lesion-wise scores of BraTS 2023.

    Voxels of the reference belong to one lesion if they are connected after the reference was dilated
    (`rule.dilation` times, by faces and edges). A lesion is matched with all components of the prediction that touch
    its dilation, and scored against their union: Dice, and HD95 between surfaces weighted by area. Components that
    touch no dilation are false positives, whatever their size: Dice 0, HD95 `BRATS_PENALTY_MM`, as for a lesion that is
    missed. Lesions of up to `rule.volume` are left out, but what touches them is no false positive. The scores are
    means over lesions and false positives; without any, 1 and 0.

    Args:
        reference: bool, two or three axes.
        prediction: bool, of the same shape.
        spacing: size of a voxel along each axis, in mm.
        rule: one of `BRATS_RULES`.

    Returns:
        `brats_dice`, `brats_hd95` in mm, and numbers: `brats_found` and `brats_missed` lesions of the reference,
        `brats_false` ones of the prediction.

    Raises:
        ValueError: if the shapes differ.
    """
    from scipy import ndimage

    check_masks(reference, prediction)
    rank = reference.ndim
    structure = ndimage.generate_binary_structure(rank, min(rank, 2))
    surroundings, number = label(ndimage.binary_dilation(reference, structure, iterations=rule.dilation))
    components, found = label(prediction)
    touching = (surroundings > 0) & prediction
    pairs = np.unique(np.stack([surroundings[touching], components[touching]], axis=1), axis=0)
    false = found - len(np.unique(pairs[:, 1]))
    surroundings_boxes, component_boxes = ndimage.find_objects(surroundings), ndimage.find_objects(components)
    dices, distances, hits = [], [], 0
    for lesion in range(1, number + 1):
        matched = pairs[pairs[:, 0] == lesion, 1]
        box = enclosing([surroundings_boxes[lesion - 1], *(component_boxes[component - 1] for component in matched)])
        voxels = reference[box] & (surroundings[box] == lesion)
        partner = np.isin(components[box], matched)
        if np.count_nonzero(voxels) * np.prod(spacing) <= rule.volume:
            continue
        hits += bool(len(matched))
        dices.append(overlap_metrics(voxels, partner)["dice"])
        distance = hausdorff_distance(surface_distances(voxels, partner, spacing), 95)
        distances.append(distance if np.isfinite(distance) else BRATS_PENALTY_MM)
    scored = len(dices) + false
    return {
        "brats_dice": float(sum(dices) / scored) if scored else 1.0,
        "brats_hd95": float((sum(distances) + false * BRATS_PENALTY_MM) / scored) if scored else 0.0,
        "brats_found": hits,
        "brats_missed": len(dices) - hits,
        "brats_false": false,
    }


def label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the components of a mask, connected by faces, edges or corners: (labels from 1 on, their number)."""
    from scipy import ndimage

    found = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    return cast(tuple[np.ndarray, int], found)  # scipy comes without types


def enclosing(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The smallest box that holds all the boxes, at least one."""
    return tuple(
        slice(min(along.start for along in axis), max(along.stop for along in axis))
        for axis in zip(*boxes, strict=True)
    )
