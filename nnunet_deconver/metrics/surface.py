"""Metrics that measure distances between two surfaces: Hausdorff distances, average distances, surface Dice.

What the surface of a mask of voxels is, is a choice, and the choice moves the numbers more than most models do
(Podobnik and Vrtovec, arXiv 2410.02630, compare eleven tools). Two are offered, each with its percentiles, such that
each gives a widely used tool's numbers:

- `area`, that of Nikolov and others (arXiv 1809.04430, who defined surface Dice on it) and of the tool
  surface-distance: where the eight voxels around a corner of the grid are not all alike, that corner is a surface
  element; its weight is the area that marching cubes puts between them. Long thin voxels do not distort it:
  a square millimetre counts the same on every face. A percentile is the smallest measured distance within which so
  much of the surface lies.
- `voxels`, that of MONAI (and, but for percentiles, MedPy): each voxel of the mask with a neighbour outside (of 6 in
  3D, 4 in 2D) is a surface element at its centre, and all weigh the same. Percentiles are interpolated linearly
  between measured distances.

What lies outside the image is background in both: a mask that touches the border has a surface there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from nnunet_deconver.metrics.overlap import check_masks

SURFACES = ("area", "voxels")


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances from each surface element of one mask to the nearest of the other, in the unit of the spacing.

    Attributes:
        from_reference: (n,), ascending.
        from_prediction: (m,), ascending.
        reference_weights: (n,), area (length in 2D) or 1.
        prediction_weights: (m,), likewise.
        surface: what was measured between, one of `SURFACES`.
    """

    from_reference: np.ndarray
    from_prediction: np.ndarray
    reference_weights: np.ndarray
    prediction_weights: np.ndarray
    surface: str


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], surface: str = "area"
) -> SurfaceDistances:
    """Measures the distances between the surfaces of two masks, both ways.

    Args:
        reference: bool, one to three axes.
        prediction: bool, of the same shape.
        spacing: size of a voxel along each axis.
        surface: one of `SURFACES`, see above.

    Returns:
        The distances; infinite from a mask that is not empty to one that is, none from an empty mask.

    Raises:
        ValueError: if shapes, spacing or `surface` are not as above.
    """
    check_masks(reference, prediction)
    if len(spacing) != reference.ndim or not all(0 < length < math.inf for length in spacing):
        raise ValueError(
            f"spacing: must be {reference.ndim} positive numbers for masks of shape {reference.shape}, got {spacing}"
        )
    reference_positions, reference_weights = surface_elements(reference, spacing, surface)
    prediction_positions, prediction_weights = surface_elements(prediction, spacing, surface)
    from_reference = _nearest(reference_positions, prediction_positions)
    from_prediction = _nearest(prediction_positions, reference_positions)
    by_reference, by_prediction = np.argsort(from_reference), np.argsort(from_prediction)
    return SurfaceDistances(
        from_reference[by_reference],
        from_prediction[by_prediction],
        reference_weights[by_reference],
        prediction_weights[by_prediction],
        surface,
    )


def hausdorff_distance(distances: SurfaceDistances, percentile: float = 100) -> float:
    """The Hausdorff distance, or a percentile of it: the larger of the two directed ones.

    Both directions are never pooled (as MedPy does): that would let the larger surface outvote the smaller.

    Returns:
        In the unit of the spacing; infinite if one mask is empty, NaN if both are.
    """
    directed = (
        _percentile(distances.from_reference, distances.reference_weights, percentile, distances.surface),
        _percentile(distances.from_prediction, distances.prediction_weights, percentile, distances.surface),
    )
    return float(np.fmax(*directed))  # NaN of an empty surface does not count


def average_surface_distances(distances: SurfaceDistances) -> dict[str, float]:
    """Average distances from one surface to the other, each way and pooled.

    Returns:
        `asd_prediction_to_reference` and `asd_reference_to_prediction`, averages over the surface named first, and
        `assd`, the average over both surfaces together (so that the larger one counts more). In the unit of the
        spacing; all infinite if one mask is empty, NaN if both are.
    """
    from_reference, from_prediction = distances.from_reference, distances.from_prediction
    if not len(from_reference) or not len(from_prediction):
        value = math.nan if len(from_reference) == len(from_prediction) else math.inf
        return {"asd_prediction_to_reference": value, "asd_reference_to_prediction": value, "assd": value}
    reference_weights, prediction_weights = distances.reference_weights, distances.prediction_weights
    total = np.dot(from_reference, reference_weights) + np.dot(from_prediction, prediction_weights)
    return {
        "asd_prediction_to_reference": float(np.average(from_prediction, weights=prediction_weights)),
        "asd_reference_to_prediction": float(np.average(from_reference, weights=reference_weights)),
        "assd": float(total / (reference_weights.sum() + prediction_weights.sum())),
    }


def normalized_surface_distance(distances: SurfaceDistances, tolerance: float) -> float:
    """Surface Dice: the part of both surfaces that lies within a tolerance of the other (arXiv 1809.04430).

    Args:
        distances: from `surface_distances`.
        tolerance: in the unit of the spacing; a distance equal to it is within.

    Returns:
        From 0 to 1; NaN if both masks are empty.
    """
    total = distances.reference_weights.sum() + distances.prediction_weights.sum()
    if not total:
        return math.nan
    # Files store spacings in single precision: a surface exactly at the tolerance must not fall out for that.
    limit = tolerance * (1 + 1e-6)
    within = distances.reference_weights[distances.from_reference <= limit].sum()
    within += distances.prediction_weights[distances.from_prediction <= limit].sum()
    return float(within / total)


def surface_elements(mask: np.ndarray, spacing: Sequence[float], surface: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the surface of a mask is.

    Args:
        mask: bool, one to three axes.
        spacing: size of a voxel along each axis.
        surface: one of `SURFACES`.

    Returns:
        Positions (n, axes), in the unit of the spacing, and weights (n,).

    Raises:
        ValueError: if `surface` is unknown.
    """
    from scipy import ndimage

    if surface not in SURFACES:
        raise ValueError(f"surface: must be one of {', '.join(SURFACES)}, got {surface}")
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return np.zeros((0, mask.ndim)), np.zeros(0)
    box = found[0]
    origin = np.array([along.start for along in box])
    inside = np.pad(mask[box], 1)
    if surface == "voxels":
        # binary_erosion's default is a cross: neighbours share a face.
        indices = np.argwhere(inside & np.logical_not(ndimage.binary_erosion(inside)))
        weights = np.ones(len(indices))
        first_centre = 0.0
    else:
        codes = _neighbour_codes(inside)
        table = _areas(tuple(float(length) for length in spacing))
        indices = np.argwhere((codes > 0) & (codes < 255))
        weights = table[codes[tuple(indices.T)]]
        first_centre = 0.5  # a corner lies half a voxel beyond the centre
    positions = (indices + origin - 1 + first_centre) * np.asarray(spacing, float)
    return positions, weights


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels around each corner of the grid are set, as bits of a number.

    Bit 4 i + 2 j + k is the voxel at offset (i, j, k). A mask of fewer axes counts as a prism of one unit along those
    that are missing, so that its areas are lengths.

    Args:
        mask: bool, one to three axes, with a margin of background.

    Returns:
        uint8, one less along each axis.
    """
    codes = np.zeros([length - 1 for length in mask.shape], np.uint8)
    missing = 3 - mask.ndim
    for bit in range(8):
        offsets = [(bit >> shift) & 1 for shift in (2, 1, 0)][missing:]
        part = mask[tuple(slice(offset, offset + length) for offset, length in zip(offsets, codes.shape, strict=True))]
        codes |= part.astype(np.uint8) << bit
    return codes


@cache
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """The area of the surface between the voxels around a corner, by code: (256,)."""
    sides = (1.0,) * (3 - len(spacing)) + spacing
    # A triangle's normal, as long as its area, has its components scaled by the two other sides.
    scale = np.array([sides[1] * sides[2], sides[0] * sides[2], sides[0] * sides[1]])
    return np.array([np.linalg.norm(normals * scale, axis=1).sum() for normals in _normals()])


@cache
def _normals() -> list[np.ndarray]:
    """Normals (triangles, 3) of the triangles of each code for voxels of size one, as long as the triangles' areas."""
    from skimage.measure import marching_cubes

    normals = []
    for code in range(256):
        voxels = np.array([(code >> bit) & 1 for bit in range(8)], float)
        # Marching cubes leaves open whether voxels that share no more than an edge are connected. As in
        # surface-distance, those that are fewer are not, whether set or not: a mask and its complement have the
        # same surface.
        if voxels.sum() > 4:
            voxels = 1 - voxels
        if not voxels.any():
            normals.append(np.zeros((0, 3)))
            continue
        vertices, faces, _, _ = marching_cubes(voxels.reshape(2, 2, 2), 0.5, method="lorensen", allow_degenerate=False)
        corners = vertices[faces].astype(float)
        normals.append(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2)
    return normals


def _nearest(positions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance from each position (n, axes) to the nearest of the others: (n,), infinite if there is none."""
    from scipy.spatial import KDTree

    if not len(others):
        return np.full(len(positions), math.inf)
    # Positions on a grid have many equal coordinates, with which the balanced tree takes its time.
    tree = KDTree(others, balanced_tree=False, compact_nodes=False)
    return tree.query(positions)[0]


def _percentile(values: np.ndarray, weights: np.ndarray, percentile: float, surface: str) -> float:
    """A percentile of ascending values after the rule of the surface; NaN if there is none, infinite if they are."""
    if not len(values):
        return math.nan
    if math.isinf(values[-1]):  # then all are, and not fit to be interpolated between
        return math.inf
    if surface == "voxels":
        return float(np.percentile(values, percentile))
    cumulated = np.cumsum(weights)
    # What is summed in another order may miss the exact share by rounding.
    index = np.searchsorted(cumulated, percentile / 100 * cumulated[-1] * (1 - 1e-9))
    return float(values[min(index, len(values) - 1)])
