import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nnunet_deconver.cli import panel

#                      correct  correct  false+  false-  swapped  background
TRUTH = np.array([[[1, 2, 0, 1, 2, 0]]])
PREDICTION = np.array([[[1, 2, 2, 0, 1, 0]]])
CODES = [
    panel.CORRECT,
    panel.CORRECT,
    panel.FALSE_POSITIVE,
    panel.FALSE_NEGATIVE,
    panel.WRONG_CLASS,
    0,
]


def test_error_map():
    assert panel.error_map(TRUTH, PREDICTION)[0, 0].tolist() == CODES


def test_ignored_voxels_are_no_errors():
    truth = TRUTH.copy()
    truth[0, 0, 2:5] = 3
    assert panel.error_map(truth, PREDICTION, ignore=3)[0, 0].tolist() == [panel.CORRECT, panel.CORRECT, 0, 0, 0, 0]


def test_error_colors_pixel_by_pixel():
    grey = np.linspace(0, 1, 6)[None]
    colors = {code: color for code, (_, color) in panel.ERRORS.items()}
    painted = panel.overlay(grey, panel.error_map(TRUTH, PREDICTION)[0], colors)[0]
    hues = ["blue", "blue", "green", "red", "orange", "grey"]
    for pixel, value, hue in zip(painted, grey[0], hues, strict=True):
        expected = np.full(3, value)
        if hue != "grey":
            name = {"blue": panel.CORRECT, "green": panel.FALSE_POSITIVE, "red": panel.FALSE_NEGATIVE}
            code = name.get(hue, panel.WRONG_CLASS)
            expected = (1 - panel.OPACITY) * expected + panel.OPACITY * np.array(to_rgb(colors[code]))
        np.testing.assert_allclose(pixel, expected)


@pytest.mark.parametrize(
    ("code", "channel"), [(panel.CORRECT, 2), (panel.FALSE_POSITIVE, 1), (panel.FALSE_NEGATIVE, 0)]
)
def test_correct_is_blue_false_positive_green_false_negative_red(code, channel):
    color = to_rgb(panel.ERRORS[code][1])
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
        (_codes((1, panel.CORRECT, 9), (3, panel.FALSE_POSITIVE, 2), (4, panel.FALSE_NEGATIVE, 3)), 4),
        (_codes((1, panel.CORRECT, 9), (3, panel.FALSE_POSITIVE, 2), (3, panel.WRONG_CLASS, 2)), 3),
        (_codes((1, panel.CORRECT, 9), (3, panel.CORRECT, 4)), 1),
        (_codes(), 2),
    ],
    ids=["most errors", "all kinds count", "most structure", "nothing"],
)
def test_choose_slice(codes, expected):
    assert panel.choose_slice(codes) == expected


@pytest.mark.parametrize(
    ("channels", "shape"),
    [(1, (6, 20, 24)), (2, (6, 20, 24)), (3, (1, 20, 24)), (1, (1, 20, 24))],
    ids=["3D", "3D, 2 channels", "RGB", "2D"],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_draw(tmp_path, channels, shape, rows):
    rng = np.random.default_rng(0)
    cases = [
        panel.Case(
            f"case {row}",
            rng.normal(size=(channels, *shape)),
            rng.integers(0, 3, shape),
            rng.integers(0, 3, shape),
            math.nan if row else 0.5,
        )
        for row in range(rows)
    ]
    panel.draw(cases, {1: "a", 2: "b"}, tmp_path / "demo.png", title="title")
    height, width, _ = imread(tmp_path / "demo.png").shape
    assert width > 1000
    assert height > 300 * rows


def test_rgb_is_shown_in_color_and_the_rest_in_grey():
    image = np.random.default_rng(0).random((3, 8, 8))
    np.testing.assert_array_equal(np.ptp(panel._picture(image, color=False), axis=-1), 0)
    assert np.ptp(panel._picture(image, color=True), axis=-1).max() > 0.5


def test_a_constant_image_can_be_drawn():
    assert np.isfinite(panel._picture(np.ones((1, 4, 4)), color=False)).all()
