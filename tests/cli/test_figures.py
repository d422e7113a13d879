import csv
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_deconver import cli
from nnunet_deconver.figures import cases
from nnunet_deconver.figures.cases import choose_cases
from nnunet_deconver.metrics.comparison import Evaluation

LABELS = {"background": 0, "organ": 1, "lesion": 2}
NAME = "Dataset906_Test"
CASES = "abcdef"
KINDS = {
    "3D": {},
    "2D RGB": {"ending": ".png"},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "lesion": 2}, "regions_class_order": [1, 2]},
    "ignore label": {"labels": {**LABELS, "ignore": 3}},
}


def write(path, voxels, spacing=(1.0, 1.0, 3.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        # RGB (3, 1, y, x), or labels of one slice.
        image = sitk.GetImageFromArray(
            np.moveaxis(voxels[:, 0], 0, -1) if voxels.ndim == 4 else voxels[0], isVector=voxels.ndim == 4
        )
    else:
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(spacing)
        # Axes as a patient's in radiologists' pictures: the first slice is at the head.
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    sitk.WriteImage(image, str(path))


def voxels(case, shift=0, flat=False):
    image = np.zeros((1 if flat else 6, 10, 16), np.uint8)
    size = 5 + CASES.index(case)
    image[0 if flat else slice(1, 5), 2:7, 1 + shift : 1 + shift + size] = 1
    image[0 if flat else slice(2, 4), 3:6, 3 + shift : 6 + shift] = 2
    return image


# How far beside the truth a model segments a case: in the first, c is best, a worst, and b in the middle of 5.
SHIFTS = {"one": dict(zip(CASES, (4, 2, 0, 1, 3), strict=False)), "two": dict.fromkeys(CASES, 1)}


def make(root, ending=".nii.gz", labels=LABELS, channels=1, **description):
    """A raw dataset with test labels, and two models' predictions, evaluated."""
    raw, flat = root / "raw" / NAME, ending == ".png"
    rng = np.random.default_rng(0)
    names = ("R", "G", "B") if flat else ("MRI",) * channels
    content = {"channel_names": dict(enumerate(names)), "labels": labels, "file_ending": ending} | description
    for case in CASES[:5]:
        truth = voxels(case, flat=flat)
        if "ignore" in labels:
            truth[..., 8:] = 3
        write(raw / "labelsTs" / f"{case}{ending}", truth)
        for channel in range(channels):
            image = rng.integers(0, 255, (3, *truth.shape) if flat else truth.shape).astype(np.uint8)
            write(raw / "imagesTs" / f"{case}_{channel:04d}{ending}", image)
        for model, shifts in SHIFTS.items():
            write(root / model / f"{case}{ending}", voxels(case, shifts[case], flat))
    for folder in (raw, root / "one", root / "two"):
        (folder / "dataset.json").write_text(json.dumps(content))
    for model in SHIFTS:
        assert evaluate(root, model) == 0
    return root


def evaluate(root, model, *options):
    paths = (root / "raw" / NAME / "labelsTs", root / model, "-o", root / f"{model}_out", "-np", 1, *options)
    return cli.main(["evaluate", *map(str, paths)])


@pytest.fixture
def evaluated(tmp_path):
    return make(tmp_path)


def figures(root, *arguments, models=("one_out", "two_out")):
    return cli.main(["figures", *(str(root / model) for model in models), "-o", str(root / "out"), *arguments])


def texts(path):
    return [element.text for element in ElementTree.parse(path).getroot().iter() if element.tag.endswith("text")]


@pytest.fixture
def drawn(monkeypatch):
    """The cases and classes that are drawn, instead of their picture."""
    calls = {}

    def draw(cases, classes, path, **options):
        calls.update(cases=cases, classes=classes, **options)
        return []

    monkeypatch.setattr(cases, "draw_panels", draw)
    return calls


def mean_dice(root, model, case):
    with (root / f"{model}_out" / "metrics.csv").open(newline="") as file:
        return np.mean(
            [float(row["value"]) for row in csv.DictReader(file) if (row["case"], row["metric"]) == (case, "dice")]
        )


def test_best_median_and_worst_of_two_models(evaluated, capsys):
    assert figures(evaluated) == 0
    out = evaluated / "out"
    assert {path.name for path in out.iterdir()} == {"cases.png", "cases.svg"}
    shown = texts(out / "cases.svg")
    # The first model decides; the second's Dice stands beside.
    corners = [f"Dice {mean_dice(evaluated, model, case):.2f}" for case in "cba" for model in ("one", "two")]
    assert [text for text in shown if text.startswith("Dice")] == corners
    assert {"best", "median", "worst", "one_out", "two_out", "organ", "lesion", "wrong class"} <= set(shown)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    worst = [f"{mean_dice(evaluated, model, 'a'):.4f}" for model in ("one", "two")]
    assert ["worst:", "a", *worst] in printed


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn(tmp_path, kind, drawn):
    make(tmp_path, **KINDS[kind])
    assert figures(tmp_path, "--names", "A", "B", "--cases", "d") == 0
    (case,) = drawn["cases"]
    flat = kind == "2D RGB"
    assert case.title == "d"
    assert case.image.shape == ((3, 1, 10, 16) if flat else (1, 6, 10, 16))
    truth = voxels("d", flat=flat)
    if kind == "ignore label":
        truth[..., 8:] = 3
    np.testing.assert_array_equal(case.truth, truth)
    assert list(case.predictions) == ["A", "B"]
    np.testing.assert_array_equal(case.predictions["A"].labels, voxels("d", 1, flat))
    assert case.predictions["A"].dice == mean_dice(tmp_path, "one", "d")
    assert case.spacing == ((1, 1, 1) if flat else (3, 1, 1))
    assert drawn["ignore"] == (3 if kind == "ignore label" else None)
    assert drawn["classes"] == {1: "whole" if kind == "regions" else "organ", 2: "lesion"}


@pytest.mark.parametrize(
    ("of", "ranked"),
    [(None, {"b": "best", "a": "median", "c": "worst"}), ("lesion", {"c": "best", "b": "median", "a": "worst"})],
    ids=["mean over classes", "one class"],
)
def test_cases_are_ranked_by_what_is_shown(of, ranked):
    dice = {"a": (0.8, 0.1), "b": (0.9, 0.2), "c": (0.1, 0.3)}
    values = {case: {("organ", "dice"): organ, ("lesion", "dice"): lesion} for case, (organ, lesion) in dice.items()}
    evaluation = Evaluation("m", values, {"classes": {"organ": [1], "lesion": [2]}, "problems": {}})
    assert list(choose_cases([evaluation], list(dice), None, of).items()) == list(ranked.items())


@pytest.mark.parametrize("kind", ["regions", "ignore label"])
def test_one_class(tmp_path, kind, drawn):
    make(tmp_path, **KINDS[kind])
    of, members = {"regions": ("whole", (1, 2)), "ignore label": ("organ", (1,))}[kind]
    assert figures(tmp_path, "--class", of) == 0
    assert [case.title for case in drawn["cases"]] == ["best\nc", "median\nb", "worst\na"]
    case = drawn["cases"][1]
    assert drawn["classes"] == {1: of}
    expected = np.isin(voxels("b"), members).astype(int)
    if kind == "ignore label":
        expected[..., 8:] = 3
    np.testing.assert_array_equal(case.truth, expected)
    np.testing.assert_array_equal(case.predictions["one_out"].labels, np.isin(voxels("b", 2), members))
    with (tmp_path / "one_out" / "metrics.csv").open(newline="") as file:
        rows = {(row["case"], row["class"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    assert case.predictions["one_out"].dice == float(rows["b", of, "dice"])


def test_channel_and_plane(tmp_path, drawn):
    make(tmp_path, channels=2)
    assert figures(tmp_path, "--channel", "1", "--plane", "sagittal", "--cases", "b") == 0
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "raw" / NAME / "imagesTs" / "b_0001.nii.gz")))
    np.testing.assert_array_equal(drawn["cases"][0].image, image[None])
    assert drawn["axis"] == 2


@pytest.mark.parametrize("options", [("--far", "2.5"), ("--far", "2.5", "--class", "lesion"), ()])
def test_far_false_positives(tmp_path, options, drawn):
    make(tmp_path)
    (tmp_path / "one_out" / "cases.jsonl").unlink()
    assert evaluate(tmp_path, "one", "--far", "9", "4") == 0
    assert figures(tmp_path, *options, "--cases", "a", models=("one_out",)) == 0
    distance = 2.5 if options else 4
    # Foreground is a box, of both classes together: x to 5, y from 2 to 6, z from 1 to 4 (slices are 3 mm apart).
    z, y, x = np.meshgrid(*map(np.arange, (6, 10, 16)), indexing="ij")
    outside = [
        np.maximum(np.maximum(low - axis, axis - high), 0) * size
        for axis, low, high, size in ((z, 1, 4, 3), (y, 2, 6, 1), (x, 1, 5, 1))
    ]
    np.testing.assert_array_equal(drawn["cases"][0].far, np.sqrt(sum(d**2.0 for d in outside)) > distance)
    assert drawn["far"] == f"false positive beyond {distance:g} mm"


def test_one_channel_of_a_color_image(tmp_path, drawn):
    make(tmp_path, **KINDS["2D RGB"])
    assert figures(tmp_path, "--channel", "2", "--cases", "b") == 0
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "raw" / NAME / "imagesTs" / "b_0000.png")))
    np.testing.assert_array_equal(drawn["cases"][0].image, image[None, None, ..., 2])


def test_model_folders_are_evaluated_and_images_found_in_nnunet_raw(evaluated, monkeypatch, capsys):
    raw, model = evaluated / "raw" / NAME, evaluated / "results" / NAME / "nnUNetTrainerX__nnUNetPlans__3d_fullres"
    (raw / "imagesTs").rename(raw / "imagesTr")
    (raw / "labelsTs").rename(evaluated / "gt_segmentations")
    (model / "fold_3").mkdir(parents=True)
    (evaluated / "one").rename(model / "fold_3" / "validation")
    plans = {
        "dataset_name": NAME,
        "configurations": {"3d_fullres": {"architecture": {}}},
        "label_manager": "LabelManager",
    }
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text((raw / "dataset.json").read_text())
    (evaluated / "gt" / NAME).mkdir(parents=True)
    (evaluated / "gt_segmentations").rename(evaluated / "gt" / NAME / "gt_segmentations")
    monkeypatch.setenv("nnUNet_preprocessed", str(evaluated / "gt"))
    monkeypatch.setenv("nnUNet_raw", str(evaluated / "raw"))
    assert figures(evaluated, models=[model]) == 0
    assert (evaluated / "out" / "cases.png").is_file()
    assert (evaluated / "out" / "evaluations" / model.name / "metrics.csv").is_file()
    # A trainer that is not here: the cases are drawn all the same.
    printed = capsys.readouterr().out
    assert printed.count("its network cannot be built here") == 1
    assert "nnUNetTrainerX" in printed


# What is wrong with a case is told, and the rest is drawn


def spoil_missing(root):
    (root / "two" / "b.nii.gz").unlink()


def spoil_shape(root):
    write(root / "two" / "b.nii.gz", voxels("b")[:, :8])


def spoil_rank(root):
    sitk.WriteImage(sitk.GetImageFromArray(voxels("b")[0]), str(root / "two" / "b.nii.gz"))


def spoil_content(root):
    (root / "two" / "b.nii.gz").write_bytes(b"no image")


def spoil_label(root):
    write(root / "two" / "b.nii.gz", voxels("b") * 3)


SPOILT = {
    spoil_missing: "no prediction",
    spoil_shape: "shapes differ",
    spoil_rank: "reference is 3D, prediction 2D",
    spoil_content: "prediction {}/two/b.nii.gz is cut short or corrupt",
    spoil_label: "prediction has labels 3, 6",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_prediction_that_cannot_be_shown(evaluated, spoil, capsys):
    spoil(evaluated)
    told = f"not drawn: two_out, b: {SPOILT[spoil].format(evaluated)}"
    # Before the evaluation is made anew, and after.
    for _ in range(2):
        assert figures(evaluated, "--cases", "a", "b") == 1
        assert told in capsys.readouterr().err
        shown = texts(evaluated / "out" / "cases.svg")
        assert (shown.count("no prediction"), sum(text.startswith("Dice") for text in shown)) == (1, 3)
        assert evaluate(evaluated, "two") == 1
        capsys.readouterr()
    # Not chosen by itself, but told.
    assert figures(evaluated) == 1
    assert told in capsys.readouterr().err
    assert "no prediction" not in texts(evaluated / "out" / "cases.svg")


def test_a_prediction_made_anew_has_not_the_dice_that_was_measured(evaluated, capsys):
    write(evaluated / "two" / "b.nii.gz", voxels("b", 3))
    assert figures(evaluated, "--cases", "b") == 1
    assert "two_out, b: its files have changed since they were evaluated; evaluate again" in capsys.readouterr().err
    assert "no prediction" in texts(evaluated / "out" / "cases.svg")


def test_other_references_are_told(evaluated, capsys):
    labels = evaluated / "raw" / NAME / "labelsTs"
    other = labels.rename(evaluated / "raw" / NAME / "labelsOther")
    for case in CASES[:5]:
        write(labels / f"{case}.nii.gz", voxels(case, 1))
    assert evaluate(evaluated, "two") == 0
    path = evaluated / "one_out" / "summary.json"
    path.write_text(path.read_text().replace(str(labels), str(other)))
    assert figures(evaluated, "--images", str(other.with_name("imagesTs")), "--cases", "b") == 1
    assert "two_out, b: its reference is not that of one_out" in capsys.readouterr().err


def test_a_case_without_image_is_told(evaluated, capsys):
    images = evaluated / "raw" / NAME / "imagesTs"
    (images / "a_0000.nii.gz").unlink()
    write(images / "b_0000.nii.gz", voxels("b")[:4])
    assert figures(evaluated, "--cases", "a", "b", "c") == 1
    told = capsys.readouterr().err
    assert f"not drawn: a: no image a_0000.nii.gz: looked in {images}" in told
    assert "not drawn: b: shapes differ: reference (6, 10, 16)" in told
    assert "c" in texts(evaluated / "out" / "cases.svg")


def test_without_any_image_nothing_is_written(evaluated, capsys):
    (evaluated / "raw" / NAME / "imagesTs").rename(evaluated / "elsewhere")
    assert figures(evaluated) == 1
    assert capsys.readouterr().err.count("--images FOLDER") == 3
    assert not list((evaluated / "out").iterdir())
    assert figures(evaluated, "--images", str(evaluated / "elsewhere")) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "a", "x"], "--cases x: must be among what was evaluated, such as a, b, c, d, e"),
        (["--class", "liver"], "--class liver: must be among organ, lesion"),
        (["--channel", "1"], "--channel 1: the images have the channels 0 to 0"),
        (["--channel", "-1"], "--channel -1: the images have the channels 0 to 0"),
        (["--far", "-1"], "--far -1.0: must be a number of at least 0"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--names", "x"], "--names x: must be 2 different names"),
    ],
)
def test_usage_errors_exit_with_2(evaluated, arguments, message, capsys):
    assert figures(evaluated, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (evaluated / "out" / "cases.png").exists()


def test_folders_that_do_not_fit_exit_with_2(evaluated, capsys):
    assert figures(evaluated, models=["raw"]) == 2
    assert "is neither what `nnunet-deconver evaluate` wrote" in capsys.readouterr().err
    (evaluated / "out").write_text("")
    assert figures(evaluated) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
