import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_deconver.figures.learned import choose_window, draw_position, draw_sampling
from nnunet_deconver.figures.plots import COLUMN


def check(paths, width, *expected):
    png, svg = paths
    image = imread(png)
    assert image.shape[1] == pytest.approx(300 * width, abs=2)
    assert all((edge[..., :3] == 1).all() for edge in (image[0], image[-1], image[:, 0], image[:, -1]))
    shown = {element.text for element in ElementTree.parse(svg).getroot().iter() if element.tag.endswith("text")}
    assert set(expected) <= shown


@pytest.mark.parametrize("channels", [1, 3])
def test_sampling(tmp_path, channels):
    rng = np.random.default_rng(0)
    truth = np.zeros((24, 40), int)
    truth[4:9, 5:9] = 2
    paths = draw_sampling(
        rng.random((channels, 24, 40)),
        truth,
        rng.normal(size=(2, 24, 40)),
        tmp_path / "a",
        title="model, case",
        limit=1,
    )
    check(paths, 2 * COLUMN, "model, case", "where it samples", "voxels (at most 1 along an axis)")


def test_sampling_of_a_patch_without_truth(tmp_path):
    zero = np.zeros((24, 40))
    check(draw_sampling(zero[None], zero, np.stack([zero, zero]), tmp_path / "a"), 2 * COLUMN, "voxels")


@pytest.mark.parametrize(
    ("truth", "length", "expected"),
    [
        ((slice(20, 24), slice(30, 34)), None, {(20, 23), (30, 33)}),
        (None, (5, 7), {(5, 5), (7, 7)}),
    ],
    ids=["outline", "longest displacement"],
)
def test_the_enlarged_part_holds_what_matters(truth, length, expected):
    mask, lengths = np.zeros((40, 60), bool), np.zeros((40, 60))
    if truth:
        mask[truth] = True
        lengths[0, 0] = 1
    else:
        lengths[length] = 1
    top, left, height, width = choose_window(mask, lengths, 8)
    (first_row, last_row), (first_column, last_column) = sorted(expected, key=lambda ends: ends[0])
    assert (height, width) == (8, 8)
    assert top <= first_row <= last_row < top + 8
    assert left <= first_column <= last_column < left + 8
    assert choose_window(mask[:5], lengths[:5], 8)[2:] == (5, 8)


@pytest.mark.parametrize("rank", [2, 3])
def test_position(tmp_path, rank):
    rng = np.random.default_rng(0)
    shapes = [(20, 24)] if rank == 2 else [(16, 20), (8, 20), (8, 16)]
    maps = [[rng.normal(size=shape) for shape in shapes] for _ in range(2)]
    paths = draw_position(maps, maps, ["organ", "lesion"], tmp_path / "a", spacing=[3, 1, 1][-rank:], title="model")
    texts = ["organ", "lesion", "model", "added to the log-odds", "change of the weights"]
    check(paths, COLUMN * (rank - 1), *texts, *(["axes 2 and 3"] if rank == 3 else []))
