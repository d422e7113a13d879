import csv
import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from nnunet_deconver.errors import InputError
from nnunet_deconver.metrics.cases import EvaluationError
from nnunet_deconver.metrics.comparison import MEAN, holm
from nnunet_deconver.metrics.definitions import Settings
from nnunet_deconver.metrics.measurements import metrics
from nnunet_deconver.studies.report import ModelCost, Result, answer, write_report

NAME, OTHER = "Dataset004_Hippocampus", "Dataset021_DRIVE"
FOLDS = 3
CASES = [f"case_{index:02}" for index in range(12)]
FOLD_OF_CASE = {case: index % FOLDS for index, case in enumerate(CASES)}


def write_evaluation(folder, values, classes, measured=("dice",), **settings):
    """What `evaluate` writes: metrics.csv and summary.json, of case to values (classes,) or (classes, metrics)."""
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "class", "metric", "value", "unit", "note"))
        for case, of_case in values.items():
            for of, numbers in zip(classes, of_case, strict=True):
                for metric, number in zip(measured, np.atleast_1d(numbers), strict=True):
                    writer.writerow((case, of, metric, "" if np.isnan(number) else repr(float(number)), "", ""))
    settings = Settings(**settings)
    definitions = {name: {"unit": each.unit, "definition": ""} for name, each in metrics(settings).items()}
    content = {
        "source": None,
        "settings": asdict(settings),
        "definitions": {metric: definitions[metric] for metric in measured},
        "classes": {of: [index + 1] for index, of in enumerate(classes)},
        "ignore_label": None,
        "problems": {},
        "foreground_mean": {},
    }
    (folder / "summary.json").write_text(json.dumps(content))


def write_log(fold, seconds):
    fold.mkdir(parents=True)
    lines = []
    for epoch, time in enumerate(seconds):
        lines += [f"Epoch {epoch} ", f"train_loss {0.5 - epoch} ", f"val_loss {0.4 - epoch} "]
        lines += ["Pseudo dice [0.5, 0.7] ", f"Epoch time: {time} s "]
    (fold / "training_log_2026_1_1.txt").write_text("\n".join(lines))


@pytest.fixture
def evaluated(tmp_path):
    """Makes a result: values (cases, classes) in its evaluation, and logs with these seconds in each fold."""

    def make(model, values, seed=0, equal="iterations", dataset=NAME, on="cross-validation", seconds=(), **options):
        folder = tmp_path / "study" / dataset / model.replace("/", "_") / f"{equal}_{on}" / str(seed)
        classes = options.pop("classes", ("anterior", "posterior"))
        cases = options.pop("cases", CASES)
        values = np.asarray(values, float)
        write_evaluation(folder / "evaluation", dict(zip(cases, values, strict=True)), classes, **options)
        folds = {fold: folder / f"fold_{fold}" for fold in range(FOLDS)}
        if seconds:
            for path in folds.values():
                write_log(path, seconds)
        held_out = FOLD_OF_CASE if on == "cross-validation" else {}
        return Result(dataset, model, equal, seed, on, folder / "evaluation", folds, held_out)

    return make


@pytest.fixture
def report(tmp_path):
    """Writes a report beside "nnunet", without costs unless some are given."""

    def write(results, costs=None, reference="nnunet", metrics=None, title="A study", missing=(), out="report"):
        out = tmp_path / out
        return write_report(
            results, costs or {}, out, reference=reference, metrics=metrics, title=title, missing=missing
        )

    return write


@pytest.fixture
def values():
    """Values (cases, 2 classes), around a base that models share, from an own stream for each model and seed."""
    base = np.random.default_rng(0).uniform(0.6, 0.8, (len(CASES), 2))

    def draw(stream, shift=0.0, noise=0.004):
        return base + shift + np.random.default_rng(stream).normal(0, noise, base.shape)

    return draw


@pytest.fixture
def study(evaluated, values):
    """Two models beside nnunet, two seeds, two datasets; "better" is 0.1 above it on the first dataset."""
    results = []
    for seed in (0, 1):
        for stream, (model, shift) in enumerate({"nnunet": 0.0, "better": 0.1, "alike": 0.0}.items(), start=10 * seed):
            for equal in ("iterations", "time"):
                if (model, equal) != ("nnunet", "time"):
                    seconds = (30 + seed, 20, 22 + stream)
                    drawn = values(stream, shift)
                    results.append(evaluated(model, drawn, seed, equal, seconds=seconds))
                    drawn = values(stream + 100, shift / 1000)[:, :1]
                    results.append(evaluated(model, drawn, seed, equal, dataset=OTHER, classes=("vessel",)))
    return results


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pick(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


class Checked(HTMLParser):
    """Holds that tags are closed in order, and collects what the page would load, and its text."""

    def __init__(self, content):
        super().__init__()
        self.open, self.loads, self.text, self.tags = [], [], "", set()
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else(study, report):
    written = report(study, title="Deconver <b> & more", missing=["fold 3 of <alike>: failed"])
    assert all(path.is_file() for path in written.files)
    content = written.page.read_text()
    page = Checked(content)
    assert page.tags.isdisjoint({"script", "link", "b", "alike", "iframe"})
    assert page.loads
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "http" not in content
    assert 'name="viewport"' in content
    assert "Deconver <b> & more" in page.text
    # What is not there comes before anything that could be believed.
    assert page.text.index("fold 3 of <alike>: failed") < page.text.index("In short") < page.text.index(NAME)
    for line in filter(None, answer(written).splitlines()):
        assert line in page.text
    figures = {path.name for path in written.files if path.suffix == ".png"}
    assert figures == {
        f"difference_{NAME}_dice.png",
        f"difference_{OTHER}_dice.png",
        f"hours_{NAME}_dice.png",
        f"training_{NAME}_iterations.png",
        f"training_{NAME}_time.png",
    }
    assert len(page.loads) == len(figures)


def test_names_of_models_are_text(evaluated, report, values):
    name, reference = "<script>alert(1)</script> $x$ & co", '"><b>reference</b>'
    written = report([evaluated(reference, values(0)), evaluated(name, values(1))], reference=reference)
    page = Checked(written.page.read_text())
    assert page.tags.isdisjoint({"script", "b"})
    assert name in page.text
    assert {row["model"] for row in read_table(written.files[1])} == {name}


def test_comparisons_by_hand(evaluated, report):
    flat = np.ones((len(CASES), 2))
    steps = np.arange(len(CASES))[:, None] / 100
    results = [
        evaluated("nnunet", 0.5 * flat, 0),
        evaluated("nnunet", 0.7 * flat, 1),
        evaluated("new", (0.6, 0.8) * flat + steps, 0),
        evaluated("new", (0.7, 0.7) * flat + steps, 2),
    ]
    written = report(results)
    rows = read_table(written.files[1])
    assert [row["class"] for row in rows] == [MEAN, "anterior", "posterior"]
    row = pick(rows, **{"class": "anterior"})
    assert float(row["mean"]) == pytest.approx(0.65 + 0.055)
    assert float(row["mean_reference"]) == pytest.approx(0.6)
    assert float(row["difference"]) == pytest.approx(0.105)
    # Of the seed that both have.
    seed, number = row["difference_by_seed"].split(": ")
    assert (seed, float(number)) == ("0", pytest.approx(0.155))
    assert float(row["seeds_std"]) == pytest.approx(0.1 / math.sqrt(2))
    assert float(row["seeds_std_reference"]) == pytest.approx(0.2 / math.sqrt(2))
    assert (row["cases"], row["folds"], row["seeds"], row["seeds_reference"]) == ("12", "3", "2", "2")
    assert (row["undefined"], row["interval_covers"]) == ("0", "cases and trainings")
    assert float(row["low"]) < 0.105 < float(row["high"])
    # The mean over classes is of each case.
    assert float(pick(rows, **{"class": MEAN})["mean"]) == pytest.approx(0.7 + 0.055)


def test_equal_time_is_compared_with_the_reference_that_defines_it(study, report, evaluated, values):
    rows = read_table(report(study).files[1])
    assert {(row["equal"], row["reference_equal"]) for row in rows} == {
        ("iterations", "iterations"),
        ("time", "iterations"),
    }
    own = [evaluated("nnunet", values(50 + seed, 0.05), seed, "time") for seed in (0, 1)]
    rows = read_table(report([*study, *own], out="own").files[1])
    timed = [row for row in rows if (row["dataset"], row["equal"]) == (NAME, "time")]
    assert {row["reference_equal"] for row in timed} == {"time"}
    assert float(pick(timed, model="better", **{"class": MEAN})["difference"]) == pytest.approx(0.05, abs=0.01)


def test_the_correction_is_for_the_whole_study(study, report):
    rows = read_table(report(study).files[1])
    assert len(rows) == 2 * 2 * (3 + 1)  # models, kinds of training, classes of both datasets
    keys = [(row["dataset"], row["class"], row["equal"], row["model"]) for row in rows]
    assert keys == [
        (dataset, of, equal, model)
        for dataset, classes in ((NAME, (MEAN, "anterior", "posterior")), (OTHER, ("vessel",)))
        for of in classes
        for equal in ("iterations", "time")
        for model in ("better", "alike")
    ]
    corrected = holm([float(row["p"]) for row in rows])
    assert [float(row["p_holm"]) for row in rows] == pytest.approx(corrected)


def test_what_training_took(evaluated, report, values):
    results = [
        evaluated("nnunet", values(0), 0, seconds=(3600, 1800)),
        evaluated("nnunet", values(1), 1, seconds=(3600, 3600)),
        evaluated("new", values(2), 0),
    ]
    costs = {(NAME, "nnunet"): ModelCost(5_600_000, 427e3, 2**30)}
    written = report(results, costs)
    rows = read_table(written.files[2])
    row = pick(rows, model="nnunet")
    found = [float(row[key]) for key in ("trainings", "epochs", "hours", "fastest_epoch_s", "median_epoch_s")]
    assert found == pytest.approx([6, 2, 1.75, 1800, 3600])
    found = [float(row[key]) for key in ("parameters", "flops_per_voxel", "memory_bytes")]
    assert found == [5_600_000, 427e3, 2**30]
    assert (row["seeds"], row["folds"], row["cases"]) == ("2", "3", "12")
    means = values(0).mean(), values(1).mean()
    assert float(row["dice"]) == pytest.approx(np.mean(means))
    assert float(row["dice_seeds_std"]) == pytest.approx(np.std(means, ddof=1))
    # What was not measured is not made up.
    row = pick(rows, model="new")
    assert {row[key] for key in ("epochs", "hours", "parameters", "dice_seeds_std")} == {""}
    text = Checked(written.page.read_text()).text
    assert "5.60" in text
    assert "1.75" in text


def test_cases_can_be_computed_again(study, report):
    written = report(study)
    rows = read_table(written.files[3])
    assert len(rows) == 2 * 5 * len(CASES) * (2 + 1)  # seeds, models and kinds, cases, classes
    chosen = [
        float(row["value"])
        for row in rows
        if (row["dataset"], row["model"], row["equal"], row["class"]) == (NAME, "better", "time", "anterior")
    ]
    row = pick(read_table(written.files[1]), dataset=NAME, model="better", equal="time", **{"class": "anterior"})
    assert float(row["mean"]) == pytest.approx(np.mean(chosen), abs=1e-12)
    assert {row["fold"] for row in rows} == {"0", "1", "2"}


def test_the_order_of_seeds_does_not_matter(study, report):
    written = report(study).files[1].read_bytes()
    shuffled = sorted(study, key=lambda result: -result.seed)
    assert [result.seed for result in shuffled] != [result.seed for result in study]
    assert report(shuffled, out="shuffled").files[1].read_bytes() == written


def test_the_answer_says_what_intervals_allow(study, report):
    costs = {(NAME, "nnunet"): ModelCost(5_600_000, 400e3, 1), (NAME, "better"): ModelCost(2_800_000, 200e3, 1)}
    written = report(study, costs)
    better, alike = (block.splitlines() for block in answer(written).split("\n\n"))
    assert (len(better), len(alike)) == (3, 3)
    assert better[0] == (
        f"better beside nnunet, dice (mean over classes): better on {NAME} (equal iterations and equal time); "
        f"no difference could be shown on {OTHER} (equal iterations and equal time)."
    )
    assert alike[0] == (
        f"alike beside nnunet, dice (mean over classes): no difference could be shown on {NAME} (equal iterations and "
        f"equal time) and {OTHER} (equal iterations and equal time)."
    )
    row = pick(read_table(written.files[1]), dataset=NAME, model="better", equal="time", **{"class": MEAN})
    low, difference, high, p = (float(row[key]) for key in ("low", "difference", "high", "p_holm"))
    assert f"{NAME}, equal time: {difference:+.4f} [{low:+.4f}, {high:+.4f}], p {p:.2g}" in better[1]
    assert "2.80 M parameters (0.50 times), 200 kFLOPs per voxel (0.50 times)" in better[2]
    assert "750 iterations in 3 epochs, 2 seeds, 3 folds, 12 cases" in better[2]
    assert better[2].endswith("Intervals cover other cases and other trainings like these.")


def test_one_seed_shows_nothing_of_another(evaluated, report, values):
    results = [evaluated("nnunet", values(0)), evaluated("new", values(1, 0.1))]
    written = report(results)
    first, _, last = answer(written).splitlines()
    assert first.endswith(f"better with this one seed on {NAME} (equal iterations).")
    assert last.endswith("Intervals cover other cases, not other trainings: that takes several seeds.")
    assert "new and nnunet have one seed. The interval covers cases, not" in " ".join(written.limits)
    assert {row["interval_covers"] for row in read_table(written.files[1])} == {"cases"}
    assert written.limits[0] in Checked(written.page.read_text()).text
    # A second seed of one of the two is not enough.
    written = report([*results, evaluated("new", values(2, 0.1), 1)], out="two")
    assert "nnunet has one seed" in " ".join(written.limits)
    assert "1 seed" not in answer(written).splitlines()[2].replace("(nnunet: 1)", "")
    assert "2 seeds (nnunet: 1)" in answer(written)
    assert {row["interval_covers"] for row in read_table(written.files[1])} == {"cases"}


@pytest.mark.parametrize(
    ("metric", "sign", "verdict"),
    [
        ("hd95", 1, "worse"),
        ("hd95", -1, "better"),
        ("precision", 1, "better"),
        ("volume_difference", 1, "higher"),
        ("volume_difference", -1, "lower"),
    ],
)
def test_which_direction_is_better(evaluated, report, values, metric, sign, verdict):
    # Precision is at most 1; a volume may differ to either side, and its mean is neither good nor bad.
    base = values(0) - 0.7 if metric == "volume_difference" else values(0)
    results = [
        evaluated(model, base + shift + noise * values(1), measured=[metric])
        for model, shift, noise in (("nnunet", 0, 0), ("new", 0.1 * sign, 0.01))
    ]
    written = report(results, metrics=[metric])
    assert {row["verdict"] for row in read_table(written.files[1])} == {verdict}
    side = {"hd95": "left is better", "precision": "right is better"}.get(metric)
    svg = next(path for path in written.files if path.suffix == ".svg").read_text()
    assert (side in svg) if side else ("is better" not in svg)


def test_an_interval_without_zero_may_still_be_chance(evaluated, report, values):
    """Of many comparisons some are small by chance: the corrected p decides."""
    shifts = {"nnunet": 0.0, "slightly": 0.0022, **{f"alike {index}": 0.0 for index in range(12)}}
    results = [evaluated(model, values(stream, shift)) for stream, (model, shift) in enumerate(shifts.items())]
    written = report(results)
    row = pick(read_table(written.files[1]), model="slightly", **{"class": MEAN})
    assert float(row["low"]) > 0
    assert float(row["p"]) < 0.05 < float(row["p_holm"])
    assert row["verdict"] == "no difference shown"


def test_an_unfinished_study(evaluated, report, values):
    results = [evaluated("nnunet", values(seed), seed) for seed in (0, 1)]
    results += [evaluated("new", values(2, 0.1)[:8], 0, cases=CASES[:8]), evaluated("new", values(3, 0.1), 1)]
    results += [
        evaluated("parts", values(4)[:4], 0, cases=CASES[:4]),
        evaluated("parts", values(5)[4:], 1, cases=CASES[4:]),
    ]
    results += [evaluated("alone", values(6)[:, :1], dataset=OTHER, classes=("vessel",))]
    written = report(results, missing=["new, seed 0, fold 2: is running"])
    assert {(row["model"], row["cases"]) for row in read_table(written.files[1])} == {("new", "8")}
    assert written.limits == [
        f"{NAME}, cross-validation: new at equal iterations is compared with nnunet on 8 of 12 cases, those that all "
        "seeds of both have.",
        f"{NAME}, cross-validation: parts at equal iterations is not compared with nnunet: no case is there with all "
        "seeds of both.",
        f"{OTHER}, cross-validation: nnunet has no result, so nothing is compared with it.",
    ]
    assert {row["model"]: row["cases"] for row in read_table(written.files[2])} == {
        "nnunet": "12",
        "new": "8",
        "parts": "0",
        "alone": "12",
    }
    Checked(written.page.read_text())
    only = report(results[:2], out="only")
    assert answer(only) == "Nothing is compared with nnunet yet."
    assert not read_table(only.files[1])


def test_cases_with_undefined_values_are_left_out(evaluated, report, values):
    undefined = values(1)
    undefined[0, 0] = math.nan
    results = [evaluated("nnunet", values(0), 0), evaluated("new", values(2), 0), evaluated("new", undefined, 1)]
    written = report(results)
    rows = read_table(written.files[1])
    assert {row["class"]: (row["cases"], row["undefined"]) for row in rows} == {
        MEAN: ("12", "0"),
        "anterior": ("11", "1"),
        "posterior": ("12", "0"),
    }
    row = pick(rows, **{"class": "anterior"})
    assert float(row["mean_reference"]) == pytest.approx(values(0)[1:, 0].mean())
    assert any("dice, anterior: 1 cases are left out" in limit for limit in written.limits)


def test_a_class_that_is_never_defined(evaluated, report, values):
    results = [evaluated(model, values(stream)) for stream, model in enumerate(("nnunet", "new"))]
    for result in results:
        table = result.evaluation / "metrics.csv"
        table.write_text(re.sub(r"(anterior,dice),[^,]*", r"\1,", table.read_text()))
    row = pick(read_table(report(results).files[1]), **{"class": "anterior"})
    assert (row["cases"], row["difference"], row["p_holm"], row["verdict"]) == ("0", "", "", "not defined")


def test_test_cases_are_of_one_training_a_seed(evaluated, report, values):
    """Ensembles of seeds that differ by 0.05 on all cases: the same numbers in folds would be more trainings."""
    results = []
    for on in ("cross-validation", "test"):
        for seed in (0, 1):
            results += [evaluated("nnunet", values(seed) + 0.05 * seed, seed, on=on)]
            results += [evaluated("new", values(seed + 2) + 0.05 * seed, seed, on=on)]
    written = report(results)
    rows = read_table(written.files[1])
    folds, ensembles = (pick(rows, on=on, **{"class": MEAN}) for on in ("cross-validation", "test"))
    assert (folds["folds"], ensembles["folds"]) == ("3", "1")
    width = [float(row["high"]) - float(row["low"]) for row in (folds, ensembles)]
    assert width[1] > 1.5 * width[0]
    assert f"{NAME} (test cases)" in answer(written)
    assert f"difference_{NAME}_test_dice.png" in {path.name for path in written.files}


def test_metrics_that_only_one_dataset_has(evaluated, report, values):
    results = []
    for stream, model in enumerate(("nnunet", "new")):
        both = np.stack([values(stream), 10 * values(stream)], axis=2)
        results += [evaluated(model, both, measured=["dice", "hd95"])]
        results += [evaluated(model, values(stream), dataset=OTHER)]
    written = report(results, metrics=["hd95", "dice"])
    rows = read_table(written.files[1])
    assert [(row["dataset"], row["metric"]) for row in rows if row["class"] == MEAN] == [
        (NAME, "hd95"),
        (NAME, "dice"),
        (OTHER, "dice"),
    ]
    assert {row["unit"] for row in rows if row["metric"] == "hd95"} == {"mm"}
    assert "hd95 and dice (mean over classes)" in answer(written)
    assert "hd95 [mm]" in Checked(written.page.read_text()).text
    one = report(results, metrics=["hd95"], out="one")
    assert {row["metric"] for path in (one.files[1], one.files[3]) for row in read_table(path)} == {"hd95"}
    figures = one.page.parent / "figures"
    (figures / "own.png").write_text("of the user")
    report(results, metrics=["dice"], out="one")
    left = {path.name for path in figures.iterdir()}
    assert "own.png" in left and not any("hd95" in name for name in left) and f"difference_{NAME}_dice.png" in left
    with pytest.raises(InputError, match="metrics assd: must be among what was measured, dice, hd95"):
        report(results, metrics=["assd"])


def test_many_comparisons_that_nothing_can_pass_are_said(evaluated, report, values):
    classes = [f"class {index}" for index in range(255)]
    drawn = np.repeat(values(0)[:, :1], 255, axis=1)
    written = report([evaluated(model, drawn[:3], cases=CASES[:3], classes=classes) for model in ("nnunet", "new")])
    svg = next(path for path in written.files if path.suffix == ".svg").read_text()
    assert MEAN in svg
    assert "class 7" not in svg  # nobody could look at 256 panels
    assert any("corrected for 256 comparisons, no p can fall below 0.05" in limit for limit in written.limits)


def test_what_cannot_be_reported(evaluated, report, values, tmp_path):
    reference, new = evaluated("nnunet", values(0)), evaluated("new", values(1))
    with pytest.raises(InputError, match="nothing is evaluated yet"):
        report([])
    with pytest.raises(InputError, match="new, seed 0: is there twice"):
        report([reference, new, new])
    with pytest.raises(InputError, match="must be iterations or time, on cross-validation or test"):
        report([reference, replace(new, equal="epochs")])
    with pytest.raises(InputError, match="the fold that held case_00 out must be known"):
        report([reference, replace(new, fold_of_case={})])
    moved = {case: (fold + 1) % FOLDS for case, fold in FOLD_OF_CASE.items()}
    with pytest.raises(InputError, match="new and nnunet were trained on different folds"):
        report([reference, replace(new, fold_of_case=moved)])
    with pytest.raises(EvaluationError, match="evaluated with different settings"):
        report([reference, evaluated("voxels", values(1), surface="voxels")])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out .*file: cannot be written"):
        report([reference, new], out="file")
