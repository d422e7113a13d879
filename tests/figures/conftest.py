import pytest
from matplotlib.image import imread


@pytest.fixture
def check():
    """Checks what a function of figures/ wrote, in the first place that nothing is cut off."""
    return _check


def _check(paths, width, *texts):
    """A PNG that is not empty, of a column's or a page's width, and an SVG with these texts."""
    png, svg = paths
    image = imread(png)
    assert image.shape[1] == pytest.approx(width * 300, abs=2)
    # Nothing is cut off: the outermost pixels are background.
    assert all((edge[..., :3] == 1).all() for edge in (image[0], image[-1], image[:, 0], image[:, -1]))
    assert (image[..., :3] < 0.5).any()
    content = svg.read_text()
    for text in texts:
        assert f">{text}<" in content, text
