"""What is printed of a study's files."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "studies" / "tables.py"
specification = importlib.util.spec_from_file_location("study_tables", SCRIPT)
tables = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tables)


def comparison(model, equal, difference, verdict, metric="dice", of="mean over classes"):
    return {
        "dataset": "Dataset004_Hippocampus",
        "on": "cross-validation",
        "equal": equal,
        "model": model,
        "reference": "nnU-Net",
        "metric": metric,
        "unit": "mm" if metric == "hd95" else "",
        "class": of,
        "difference": difference,
        "low": difference - 0.01,
        "high": difference + 0.01,
        "verdict": verdict,
    }


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    folder = tmp_path / "study"
    folder.mkdir()
    compared = [
        comparison("Deconver", "iterations", 0.02, "better"),
        comparison("Deconver", "time", 0.015, "better"),
        comparison("DTC", "iterations", -0.03, "worse"),
        comparison("DTC", "time", 0.001, "no difference shown"),
        # Class after class, as studies write them.
        comparison("Deconver", "iterations", 0.5, "better", of="anterior"),
        comparison("Deconver", "time", 0.25, "no difference shown", of="anterior"),
        comparison("DTC", "iterations", -0.5, "worse", of="anterior"),
        comparison("DTC", "time", -0.25, "worse", of="anterior"),
        comparison("Deconver", "iterations", -0.25, "better", metric="hd95"),
        comparison("Deconver", "iterations", -0.5, "worse", metric="hd95", of="anterior"),
    ]
    models = [
        {
            "dataset": "Dataset004_Hippocampus",
            "on": "cross-validation",
            "equal": "iterations",
            "model": model,
            "dice": 0.8,
            "hd95": 2.345,
            "parameters": 5.6e6,
            "flops_per_voxel": 427e3,
            "epochs": 8,
            "hours": 0.1,
            "fastest_epoch_s": seconds,
        }
        for model, seconds in (("nnU-Net", 10), ("Deconver", 12), ("DTC", 11))
    ]
    for name, rows in (("comparison", compared), ("models", models)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    settings = {"datasets": ["Dataset004_Hippocampus"], "epochs": 8, "iterations": 15, "folds": [0, 1], "seeds": [3, 4]}
    (folder / "study.json").write_text(json.dumps(settings))


def test_the_answer_counts_wins_and_losses():
    said = " ".join(tables.answer(["study"]).split())
    assert "Of 4 comparisons of Dice with nnU-Net (2 networks, Hippocampus, equal iterations and equal time)" in said
    assert "2 are better: Deconver on Hippocampus (equal iterations and time);" in said
    assert "1 is worse: DTC on Hippocampus (equal iterations). In 1, no difference could be shown" in said
    assert "From DTC on Hippocampus at equal iterations: -0.030 [-0.040, -0.020], to Deconver" in said
    assert "Deconver on Hippocampus at equal iterations: +0.020 [+0.010, +0.030]" in said
    assert "on Hippocampus: Deconver 1.20, DTC 1.10." in said
    assert "Limits: 120 iterations, 2 folds, 2 seeds" in said


def test_the_answer_without_wins(monkeypatch):
    monkeypatch.setattr(tables, "headlines", lambda studies: [comparison("DTC", "time", -0.03, "worse")])
    said = " ".join(tables.answer(["study"]).split())
    assert "none is better; 1 is worse: DTC on Hippocampus (equal time). In 0, no difference" in said


def test_the_effect_of_one_model():
    said = " ".join(tables.effect(["study"], "DTC").split())
    assert said == (
        "- **DTC** beside nnU-Net. Hippocampus: -0.030 [-0.040, -0.020] at equal iterations, worse; +0.001 [-0.009, "
        "+0.011] at equal time, no difference shown. An iteration takes 1.10 times as long."
    )
    with pytest.raises(SystemExit, match="DCT: is not compared in study; name one of Deconver, DTC"):
        tables.effect(["study"], "DCT")


def test_datasets_of_several_studies_stand_side_by_side(tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("comparison.csv", "models.csv", "study.json"):
        text = (tmp_path / "study" / name).read_text()
        text = text.replace("Dataset004_Hippocampus", "Dataset021_DRIVE").replace(",8,0.1,10", ",8,0.1,8")
        (tmp_path / "other" / name).write_text(text.replace('"epochs": 8', '"epochs": 6'))
    said = " ".join(tables.effect(["other", "study"], "DTC").split())
    assert "DRIVE: -0.030 [-0.040, -0.020] at equal iterations, worse; " in said
    assert " shown. Hippocampus: -0.030 " in said and said.endswith("An iteration takes 1.38 / 1.10 times as long.")
    said = " ".join(tables.answer(["other", "study"]).split())
    assert "Of 8 comparisons of Dice with nnU-Net (2 networks, DRIVE and Hippocampus," in said
    assert "on DRIVE / Hippocampus: Deconver 1.50 / 1.20, DTC 1.38 / 1.10. Limits: 90 / 120 iterations" in said


def test_differences_are_marked_by_what_they_say():
    lines = tables.differences("study").splitlines()
    assert lines[0] == "| model | equal | metric | mean over classes | anterior |"
    assert (
        lines[2] == "| Deconver | iterations | dice | **+0.0200 [+0.0100, +0.0300]** | **+0.5000 [+0.4900, +0.5100]** |"
    )
    assert lines[4] == "| DTC | iterations | dice | _-0.0300 [-0.0400, -0.0200]_ | _-0.5000 [-0.5100, -0.4900]_ |"
    assert lines[5] == "| DTC | time | dice | +0.0010 [-0.0090, +0.0110] | _-0.2500 [-0.2600, -0.2400]_ |"
    assert lines[6] == "| Deconver | iterations | hd95 / mm | **-0.25 [-0.26, -0.24]** | _-0.50 [-0.51, -0.49]_ |"
    assert len(lines) == 7


def test_costs():
    lines = tables.costs("study").splitlines()
    assert lines[3] == "| Deconver | iterations | 0.800 | 2.35 | 5.60 | 427 | 8 | 6.0 | 12.0 |"


def test_a_study_is_kept_whole_or_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parents[1])
    keep = importlib.import_module("keep_study").keep
    study, results = tmp_path / "study", tmp_path / "results"
    (study / "figures").mkdir()
    for name in ("cases.csv", "figures/dice.png", "figures/dice.svg"):
        (study / name).write_text(name)
    with pytest.raises(SystemExit, match=r"has no report\.html; run: nnunet-deconver study report"):
        keep(study, results)
    assert not results.exists()
    (study / "report.html").write_text("page")
    earlier = results / "study" / "figures" / "earlier.png"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("")
    kept = {path.name for path in keep(study, results).rglob("*") if path.is_file()}
    assert kept == {"study.json", "report.html", "comparison.csv", "models.csv", "cases.csv", "dice.png"}
    with pytest.raises(SystemExit, match="name the study's own folder"):
        keep(results / "study", results)
    assert (results / "study" / "report.html").is_file()
    assert {"commit", "device", "torch"} <= set(json.loads((results / "study.json").read_text()))


def test_a_patch_is_computed_as_two_and_given_back_as_one():
    path = SCRIPT.parent / "trainers" / "no_mirroring.py"
    specification = importlib.util.spec_from_file_location("no_mirroring", path)
    trainers = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(trainers)
    network, seen = torch.nn.Conv3d(1, 2, 3), []
    network.register_forward_hook(lambda _, __, output: seen.append(len(output)))
    patch = torch.rand(1, 1, 5, 6, 7)
    alone = network(patch)
    with pytest.raises(KeyError), trainers._twice(network):
        torch.testing.assert_close(network(patch), alone)
        raise KeyError
    network(patch)
    assert seen == [1, 2, 1]
