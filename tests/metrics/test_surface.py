import math

import numpy as np
import pytest

from nnunet_deconver.metrics.surface import (
    SURFACES,
    SurfaceDistances,
    average_surface_distances,
    hausdorff_distance,
    normalized_surface_distance,
    surface_distances,
    surface_elements,
)

SPACINGS = {2: [(1.0, 1.0), (0.5, 3.0)], 3: [(1.0, 1.0, 1.0), (3.0, 0.5, 0.7)]}


def box(shape, *sides):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def ball(radius, spacing, shape=None):
    """A ball (or disc) of physical radius in the middle of an image that has room for it."""
    shape = shape or [int(2 * radius / length) + 7 for length in spacing]
    axes = [(np.arange(length) - (length - 1) / 2) * size for length, size in zip(shape, spacing, strict=True)]
    return sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) <= radius**2


def all_metrics(distances, tolerance=1.0):
    return {
        "hd": hausdorff_distance(distances),
        "hd95": hausdorff_distance(distances, 95),
        **average_surface_distances(distances),
        "nsd": normalized_surface_distance(distances, tolerance),
    }


def test_two_voxels_by_hand():
    """The corners of a voxel four voxels further are three and four voxels away, half of the area each."""
    reference, prediction = box((9, 3, 3), (1, 2), (1, 2), (1, 2)), box((9, 3, 3), (5, 6), (1, 2), (1, 2))
    distances = surface_distances(reference, prediction, (3, 1, 1))
    assert all_metrics(distances) == pytest.approx(
        {
            "hd": 12,
            "hd95": 12,
            "assd": 10.5,
            "asd_prediction_to_reference": 10.5,
            "asd_reference_to_prediction": 10.5,
            "nsd": 0,
        }
    )
    nsd = [normalized_surface_distance(distances, tolerance) for tolerance in (8.99, 9, 11.99, 12)]
    assert nsd == pytest.approx([0, 0.5, 0.5, 1])


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_shift_along_an_axis_is_measured_in_its_spacing(surface, rank, axis):
    spacing = SPACINGS[rank][1]
    reference = np.zeros([16] * rank, bool)
    reference[(slice(4, 10),) * rank] = True
    prediction = np.roll(reference, 2, axis)
    distances = surface_distances(reference, prediction, spacing, surface)
    assert hausdorff_distance(distances) == pytest.approx(2 * spacing[axis])
    assert hausdorff_distance(distances, 95) == pytest.approx(2 * spacing[axis])


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("spacing", [*SPACINGS[2], *SPACINGS[3]], ids=str)
def test_concentric_balls_are_the_difference_of_radii_apart(surface, spacing):
    large = ball(12, spacing)
    small = ball(8, spacing, large.shape)
    found = all_metrics(surface_distances(large, small, spacing, surface), tolerance=4 + max(spacing))
    voxel = max(spacing)
    assert found.pop("nsd") == 1
    assert found == pytest.approx(dict.fromkeys(found, 4), abs=0.75 * voxel)
    assert normalized_surface_distance(surface_distances(large, small, spacing, surface), 4 - 1.5 * voxel) < 0.1


@pytest.mark.parametrize("surface", SURFACES)
def test_equal_masks(surface):
    mask = ball(5, (1, 2, 1))
    found = all_metrics(surface_distances(mask, mask, (1, 2, 1), surface), tolerance=0)
    assert found == dict.fromkeys(found, 0) | {"nsd": 1}


def test_touching_cubes():
    """The common face is no distance away, the outer ones a side. A face has 49 whole elements, 7 per edge (which
    marching cubes cuts off at 45 degrees) and one per corner.
    """
    reference, prediction = box((18, 10, 10), (1, 9), (1, 9), (1, 9)), box((18, 10, 10), (9, 17), (1, 9), (1, 9))
    distances = surface_distances(reference, prediction, (1, 1, 1))
    assert hausdorff_distance(distances) == 8
    assert distances.from_reference.min() == 0
    edge, corner = 7 * math.sqrt(0.5), math.sqrt(3) / 8
    common = (49 + 4 * edge + 4 * corner) / (6 * 49 + 12 * edge + 8 * corner)
    assert normalized_surface_distance(distances, 0) == pytest.approx(common)


def test_the_area_of_faces_is_that_of_a_voxels_sides():
    """In the middle of a face of a box, an element is as large as the face of a voxel."""
    spacing = (3.0, 0.5, 0.7)
    positions, weights = surface_elements(box((9, 9, 9), (2, 7), (2, 7), (2, 7)), spacing, "area")
    indices = positions / spacing
    for axis, expected in enumerate([0.5 * 0.7, 3 * 0.7, 3 * 0.5]):
        others = [other for other in range(3) if other != axis]
        on_face = np.isclose(indices[:, axis], 1.5) & np.all(np.abs(indices[:, others] - 4) < 1, axis=1)
        assert np.count_nonzero(on_face) == 4
        assert weights[on_face] == pytest.approx(expected)


@pytest.mark.parametrize(("rank", "area"), [(2, 4 * math.sqrt(0.5)), (3, math.sqrt(3))])
def test_the_area_of_a_voxel(rank, area):
    """Marching cubes cuts its corners off: an octahedron (a square on its tip) through the centres of its faces."""
    _, weights = surface_elements(np.ones([1] * rank, bool), [1] * rank, "area")
    assert weights == pytest.approx(area / 2**rank)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 0.5, 2.0)], ids=str)
def test_the_area_of_a_ball_does_not_depend_on_the_spacing(spacing):
    """It exceeds that of the ball by the steps of the voxels, by some 10 to 20 % in any spacing."""
    _, weights = surface_elements(ball(20, spacing), spacing, "area")
    assert weights.sum() == pytest.approx(1.13 * 4 * math.pi * 20**2, rel=0.07)


def test_a_mask_and_its_complement_have_the_same_surface():
    mask = np.random.default_rng(0).random((9, 9, 9)) < 0.5
    inner = (slice(1, -1),) * 3
    surfaces = []
    for inside in (mask, ~mask):
        padded = np.pad(inside, 1, constant_values=inside is not mask)[inner]
        positions, weights = surface_elements(padded, (1, 2, 3), "area")
        index = np.round(positions / (1, 2, 3) - 0.5).astype(int)
        lattice = np.zeros((10, 10, 10))
        lattice[tuple((index + 1).T)] = weights
        surfaces.append(lattice[1:-1, 1:-1, 1:-1])
    assert surfaces[0].any()
    np.testing.assert_allclose(*surfaces)


def test_boundary_voxels_have_a_neighbour_across_a_face():
    mask = box((7, 7), (1, 6), (1, 6))
    mask[5, 5] = False  # makes (4, 4) touch the outside by a corner only
    positions, weights = surface_elements(mask, (1, 1), "voxels")
    found = {tuple(position) for position in positions.astype(int).tolist()}
    assert (4, 4) not in found
    assert found == {(i, j) for i, j in np.argwhere(mask).tolist() if {i, j} & {1, 5}} | {(4, 5), (5, 4)}
    assert (weights == 1).all()


@pytest.mark.parametrize("surface", SURFACES)
def test_the_border_of_the_image_is_a_surface(surface):
    mask = np.ones((6, 6), bool)
    inside = surface_elements(mask, (1, 1), surface)
    in_a_larger_image = surface_elements(np.pad(mask, 3), (1, 1), surface)
    np.testing.assert_array_equal(inside[0], in_a_larger_image[0] - 3)
    np.testing.assert_array_equal(inside[1], in_a_larger_image[1])


def test_a_percentile_is_the_smallest_distance_that_holds_so_much_of_the_surface():
    def hd95(far, weight=1.0):
        from_reference = np.array([0.0] * (20 - far) + [5.0] * far)
        weights = np.array([1.0] * (20 - far) + [weight] * far)
        return hausdorff_distance(SurfaceDistances(from_reference, np.zeros(1), weights, np.ones(1), "area"), 95)

    assert hd95(far=1) == 0  # 19 of 20 elements are 95 %
    assert hd95(far=2) == 5
    assert hd95(far=1, weight=1.1) == 5
    assert hd95(far=2, weight=0.4) == 0


def test_rounding_does_not_move_a_percentile():
    """95 of 100 elements of a third each are 95 %, whatever their sum rounds to."""
    from_reference, weights = np.array([0.0] * 95 + [5.0] * 5), np.full(100, 1 / 3)
    assert np.cumsum(weights)[94] < 0.95 * np.cumsum(weights)[99]
    assert hausdorff_distance(SurfaceDistances(from_reference, np.zeros(1), weights, np.ones(1), "area"), 95) == 0


def test_percentiles_of_voxels_are_interpolated():
    distances = SurfaceDistances(np.array([0.0] * 18 + [3.0, 5.0]), np.zeros(1), np.ones(20), np.ones(1), "voxels")
    assert hausdorff_distance(distances, 95) == pytest.approx(3 + 0.05 * 2)


@pytest.mark.parametrize("surface", SURFACES)
def test_directions_are_not_pooled(surface):
    """A hundred elements that fit must not hide one of the other mask that does not."""
    distances = SurfaceDistances(np.array([7.0]), np.zeros(100), np.ones(1), np.ones(100), surface)
    assert hausdorff_distance(distances, 95) == 7
    averages = average_surface_distances(distances)
    assert averages == pytest.approx(
        {"asd_reference_to_prediction": 7, "asd_prediction_to_reference": 0, "assd": 7 / 101}
    )


def test_averages_name_their_direction():
    """A prediction that lies in the reference's surface is near to it, but not the other way round."""
    reference, prediction = np.ones((20, 20), bool), box((20, 20), (0, 20), (0, 2))
    averages = average_surface_distances(surface_distances(reference, prediction, (1, 1)))
    assert averages["asd_prediction_to_reference"] < 1.5
    assert averages["asd_reference_to_prediction"] > 5


def test_the_tolerance_is_met_in_single_precision():
    distances = SurfaceDistances(np.array([3 * float(np.float32(0.1))]), np.zeros(0), np.ones(1), np.zeros(0), "area")
    assert distances.from_reference[0] > 0.3
    assert normalized_surface_distance(distances, 0.3) == 1


@pytest.mark.parametrize("surface", SURFACES)
def test_empty_masks(surface):
    empty, mask = np.zeros((5, 5), bool), box((5, 5), (1, 3), (1, 3))
    for pair in [(empty, mask), (mask, empty)]:
        found = all_metrics(surface_distances(*pair, (1, 1), surface))
        assert found == dict.fromkeys(found, math.inf) | {"nsd": 0}
    found = all_metrics(surface_distances(empty, empty, (1, 1), surface))
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 1), "mesh"), "surface: must be one of area, voxels, got mesh"),
        (((1, 1, 1), "area"), r"spacing: must be 2 positive numbers for masks of shape \(4, 4\), got \(1, 1, 1\)"),
        (((1, 0), "area"), "spacing: must be 2 positive numbers"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        surface_distances(np.ones((4, 4), bool), np.ones((4, 4), bool), *arguments)
