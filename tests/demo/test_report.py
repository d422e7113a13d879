import math

import numpy as np
import pytest

from nnunet_deconver.demo.report import draw_held_out


@pytest.mark.parametrize(
    ("scores", "titles"),
    [
        ([0.5], ["best: c0"]),
        ([0.5, 0.7], ["best: c1", "worst: c0"]),
        ([0.5, 0.9, 0.7], ["best: c1", "median: c2", "worst: c0"]),
        ([0.5, math.nan, 0.7], ["best: c1", "median: c2", "worst: c0"]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], ["best: c4", "median: c2", "worst: c0"]),
    ],
    ids=["1 case", "2 cases", "3 cases", "nothing to find", "5 cases"],
)
def test_best_median_and_worst_case_are_drawn(raw_data, scores, titles, tmp_path, monkeypatch):
    from nnunet_deconver.figures import panels

    truths = [np.ones((2, 3, 4), int) for _ in scores]
    data = raw_data(tmp_path / "Dataset001_A", [(t,) for t in truths], truths)
    dice = {"organ": {f"c{number}": score for number, score in enumerate(scores)}}
    drawn = []
    monkeypatch.setattr(panels, "draw_panels", lambda cases, *_, **__: drawn.extend(cases))
    draw_held_out(data, tmp_path / "Dataset001_A" / "labelsTs", dice, tmp_path / "demo.png", "")
    assert [case.title for case in drawn] == titles
