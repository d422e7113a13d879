import dataclasses
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nnunet_deconver.figures import panels
from nnunet_deconver.figures.panels import (
    CORRECT,
    ERRORS,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    FAR,
    WRONG_CLASS,
    Case,
    Prediction,
)
from nnunet_deconver.figures.plots import COLUMN

#                      correct  correct  false+  false-  swapped  background
TRUTH = np.array([[[1, 2, 0, 1, 2, 0]]])
PREDICTION = np.array([[[1, 2, 2, 0, 1, 0]]])
CODES = [CORRECT, CORRECT, FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS, 0]


def test_error_map():
    assert panels.error_map(TRUTH, PREDICTION)[0, 0].tolist() == CODES


def test_ignored_voxels_are_no_errors():
    truth = TRUTH.copy()
    truth[0, 0, 2:5] = 3
    assert panels.error_map(truth, PREDICTION, ignore=3)[0, 0].tolist() == [CORRECT, CORRECT, 0, 0, 0, 0]


def test_far_false_positives_are_apart_and_nothing_else_is():
    far = np.ones(TRUTH.shape, bool)
    expected = [FAR if code == FALSE_POSITIVE else code for code in CODES]
    assert panels.error_map(TRUTH, PREDICTION, far=far)[0, 0].tolist() == expected
    assert panels.error_map(TRUTH, PREDICTION, far=~far)[0, 0].tolist() == CODES


def test_error_colors_pixel_by_pixel():
    grey = np.linspace(0, 1, 6)[None]
    picture = np.stack([grey - 0.1, grey, grey + 0.1], -1)  # in color; painted over in grey
    colors = {code: color for code, (_, color) in ERRORS.items()}
    painted = panels.overlay(picture, panels.error_map(TRUTH, PREDICTION)[0], colors)[0]
    for pixel, value, code in zip(painted, grey[0], CODES, strict=True):
        expected = np.full(3, value)
        if code:
            expected = (1 - panels.OPACITY) * expected + panels.OPACITY * np.array(to_rgb(colors[code]))
        np.testing.assert_allclose(pixel, expected)


@pytest.mark.parametrize(("code", "channel"), [(CORRECT, 2), (FALSE_POSITIVE, 1), (FALSE_NEGATIVE, 0)])
def test_correct_is_blue_false_positive_green_false_negative_red(code, channel):
    color = to_rgb(ERRORS[code][1])
    assert int(np.argmax(color)) == channel
    assert color[channel] > 1.5 * sorted(color)[1]


def _codes(*slices):
    codes = np.zeros((5, 4, 4), np.uint8)
    for index, code, voxels in slices:
        flat = codes[index].reshape(-1)
        flat[np.flatnonzero(flat == 0)[:voxels]] = code
    return codes


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([_codes((1, CORRECT, 9), (3, FALSE_POSITIVE, 2), (4, FALSE_NEGATIVE, 3))], 4),
        ([_codes((1, CORRECT, 9), (3, FALSE_POSITIVE, 2), (3, WRONG_CLASS, 2))], 3),
        ([_codes((0, FALSE_POSITIVE, 3), (2, FALSE_POSITIVE, 2)), _codes((2, FALSE_NEGATIVE, 2))], 2),
        ([_codes((1, CORRECT, 9), (3, CORRECT, 4))], 1),
        ([_codes()], 2),
    ],
    ids=["most errors", "all kinds count", "of all methods", "most structure", "nothing"],
)
def test_choose_slice(codes, expected):
    assert panels.choose_slice(np.stack(codes)) == expected


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((9, 9, 9), (1, 1, 1), 0),
        ((9, 9, 9), (1, 1.5, 1), 0),
        ((9, 9, 9), (1, 5, 1), 1),
        ((9, 9, 9), (5, 1, 1), 0),
        ((1, 9, 9), (1, 5, 1), 0),
    ],
    ids=["equal", "nearly equal", "coronal slices", "axial slices", "2D"],
)
def test_volumes_are_cut_as_they_were_acquired(shape, spacing, axis):
    assert panels.choose_axis(shape, spacing) == axis


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5], {"c0": "best"}),
        ([0.5, 0.7], {"c1": "best", "c0": "worst"}),
        ([0.5, math.nan, 0.7], {"c1": "best", "c2": "median", "c0": "worst"}),
        ([0.1, 0.4, 0.3, 0.2, 0.5], {"c4": "best", "c2": "median", "c0": "worst"}),
    ],
    ids=["1 case", "2 cases", "nothing to find", "5 cases"],
)
def test_best_median_worst(scores, expected):
    found = panels.best_median_worst({f"c{number}": score for number, score in enumerate(scores)})
    assert list(found.items()) == list(expected.items())


def test_labels_of_regions_are_named_after_the_smallest():
    classes = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert panels.label_names(classes) == {1: "whole", 2: "core", 3: "enhancing"}


def random_case(title, channels, shape, methods, spacing=(1, 1, 1)):
    rng = np.random.default_rng(0)
    predictions = {method: Prediction(rng.integers(0, 3, shape), 0.5) for method in methods}
    return Case(title, rng.normal(size=(channels, *shape)), rng.integers(0, 3, shape), predictions, spacing)


def texts(path):
    """The texts of an SVG, after checking that it is one."""
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    return {element.text for element in root.iter() if element.tag.endswith("text")}


@pytest.mark.parametrize(
    ("channels", "shape"),
    [(1, (6, 20, 24)), (2, (6, 20, 24)), (3, (1, 20, 24)), (1, (1, 20, 24))],
    ids=["3D", "3D, 2 channels", "RGB", "2D"],
)
@pytest.mark.parametrize("methods", [("one",), ("one", "two", "three")], ids=["1 method", "3 methods"])
def test_png_and_svg(tmp_path, channels, shape, methods):
    cases = [random_case(f"best\ncase {row}", channels, shape, methods) for row in range(2)]
    png, svg = panels.draw_panels(cases, {1: "organ", 2: "lesion"}, tmp_path / "a.b", title="title")
    assert (png.name, svg.name) == ("a.b.png", "a.b.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.png", "a.b.svg"]
    image = imread(png)
    assert image.shape[1] == pytest.approx(300 * COLUMN * (1 if len(methods) == 1 else 2), abs=2)
    # Nothing is cut off: the outermost pixels are background.
    assert all((edge[..., :3] == 1).all() for edge in (image[0], image[-1], image[:, 0], image[:, -1]))
    expected = {"title", "image", "truth", *methods, "Dice 0.50", "best", "case 1", "organ", "lesion"}
    assert expected | {name for code, (name, _) in ERRORS.items() if code != FAR} <= texts(svg)


def test_the_picture_of_a_method_without_prediction_says_so(tmp_path):
    case = random_case("a", 1, (6, 20, 24), ("one", "two"))
    case.predictions["two"] = Prediction(None)
    _, svg = panels.draw_panels([case], {1: "organ"}, tmp_path / "a")
    assert {"no prediction", "Dice 0.50"} <= texts(svg)
    # One class cannot be mistaken for another.
    assert "wrong class" not in texts(svg)


def test_what_is_printed_is_the_slice_with_most_errors_in_the_errors_colors(tmp_path):
    # Slices are 5 mm apart along the last axis; in slice 2 the left half is right, and a quarter each way wrong.
    truth, prediction = np.zeros((4, 4, 3), int), np.zeros((4, 4, 3), int)
    truth[:, :2, 2] = prediction[:, :2, 2] = 1
    truth[:2, 2:, 2] = prediction[2:, 2:, 2] = 1
    truth[:, :, 0] = prediction[:, :, 0] = 1
    case = Case("a", np.zeros((1, 4, 4, 3)), truth, {"m": Prediction(prediction, math.nan)}, (2, 1, 5))
    png, svg = panels.draw_panels([case], {1: "organ"}, tmp_path / "a")
    assert "Dice undefined" in texts(svg)
    pixels = (imread(png)[..., :3] * 255).round().astype(int)
    areas = {}
    for code, (_, color) in ERRORS.items():
        painted = (np.array(to_rgb(color)) * panels.OPACITY * 255).round().astype(int)
        here = np.abs(pixels - painted).max(axis=-1) <= 1
        areas[code] = int(here.sum())
        if code == CORRECT:
            rows, columns = np.nonzero(here)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert areas[WRONG_CLASS] == 0
    assert areas[FALSE_POSITIVE] == pytest.approx(height / 2 * width, rel=0.03)
    # The Dice covers some of the corner above it.
    assert 0.7 < areas[FALSE_NEGATIVE] / areas[FALSE_POSITIVE] < 1
    assert 0.8 < areas[CORRECT] / areas[FALSE_POSITIVE] / 2 < 1
    # Rows are twice as high as columns are wide: of 4 x 2 pixels.
    assert height / width == pytest.approx(4, rel=0.03)


def test_far_false_positives_are_counted_in_the_corner_and_in_the_legend(tmp_path):
    truth, prediction, far = (np.zeros((3, 6, 6), int) for _ in range(3))
    truth[1, :2] = prediction[1, :3] = 1
    prediction[1, 5] = prediction[2, 5, :2] = 1
    far[:, 4:] = 1
    case = Case("a", np.zeros((1, 3, 6, 6)), truth, {"m": Prediction(prediction, 0.5)}, far=far.astype(bool))
    png, svg = panels.draw_panels([case], {1: "organ"}, tmp_path / "a", far="false positive beyond 2 mm")
    # In the picture is one slice, in the corner the whole case.
    assert {"Dice 0.50", "8 far", "false positive", "false positive beyond 2 mm"} <= texts(svg)
    pixels = (imread(png)[..., :3] * 255).round().astype(int)
    painted = (np.array(to_rgb(ERRORS[FAR][1])) * panels.OPACITY * 255).round().astype(int)
    rows, columns = np.nonzero(np.abs(pixels - painted).max(axis=-1) <= 1)
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(6, rel=0.05)
    _, svg = panels.draw_panels([dataclasses.replace(case, far=None)], {1: "organ"}, tmp_path / "b")
    assert not any("far" in text or "beyond" in text for text in texts(svg))


def test_the_segmentation_can_stand_before_its_errors(tmp_path):
    case = random_case("a", 1, (6, 20, 24), ("prediction",))
    (png,) = panels.draw_panels([case], {1: "organ"}, tmp_path / "a", segmentations=True, formats=("png",))
    assert imread(png).shape[1] == pytest.approx(300 * 2 * COLUMN, abs=2)


def test_rgb_is_shown_in_color_and_the_rest_in_grey():
    image = np.random.default_rng(0).random((3, 8, 8))
    np.testing.assert_array_equal(np.ptp(panels.to_rgb_picture(image, color=False), axis=-1), 0)
    assert np.ptp(panels.to_rgb_picture(image, color=True), axis=-1).max() > 0.5


@pytest.mark.parametrize(("shape", "colored"), [((3, 1, 8, 8), True), ((3, 2, 8, 8), False)], ids=["RGB", "3 channels"])
def test_the_image_is_printed_in_color_and_what_lies_under_errors_in_grey(tmp_path, shape, colored):
    image = np.zeros(shape)
    image[0] = 1  # red
    empty = np.zeros(shape[1:], int)
    png, _ = panels.draw_panels([Case("a", image, empty, {"m": Prediction(empty, 1)})], {}, tmp_path / "a")
    red = (imread(png)[..., :3] * 255 == (255, 0, 0)).all(axis=-1)
    columns = np.nonzero(red)[1]
    third = red.shape[1] / 3
    assert (len(columns) > 0.6 * third**2 and columns.max() < 1.2 * third) if colored else not len(columns)


def test_a_constant_image_can_be_drawn():
    assert np.isfinite(panels.to_rgb_picture(np.ones((1, 4, 4)), color=False)).all()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("nnUNetTrainer_5epochs", ["nnUNetTrainer_", "5epochs"]),
        ("a\nb", ["a", "b"]),
        ("abcdefghijklmnopqrst", ["abcdefghijklmno", "pqrst"]),
        ("word " * 20, ["word word word", "word word word", "word word word…"]),
    ],
)
def test_long_names_are_broken(text, lines):
    assert panels._wrapped(text, 15).split("\n") == lines
