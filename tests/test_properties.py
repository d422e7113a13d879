"""Whatever is written into a file that somebody edits, the answer is an error that names it, or it is valid.

How many examples, tests/conftest.py says; `make soak` runs these for long, with other seeds.
"""

import argparse
import copy
import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_deconver import cli
from nnunet_deconver.errors import InputError
from nnunet_deconver.integration.plans import check_plans, read_dataset_json
from nnunet_deconver.models.planned import channels_and_labels, plan_of
from nnunet_deconver.models.trainer import build_trained
from nnunet_deconver.networks.architecture import deconver_architecture
from nnunet_deconver.plans import presets

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 40),
        st.sampled_from([10**9, -(10**30), 2**63]),
        st.floats(),
        st.sampled_from(["torch.nn.ReLU", "os.system", "dtc", "nerdc", "inf", "test", "\n", "../x"]),
        st.text(max_size=8),
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("name"), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(content, path=()):
    """All fields of a JSON content, the outermost first."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def edited(draw, content):
    """A content with one to three fields replaced, removed or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(content), key=repr)[:400]))
        if not path:
            continue
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "remove" and isinstance(parent, dict):
            del parent[path[-1]]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=12))] = draw(JSON)
        else:
            parent[path[-1]] = draw(JSON)
    return content


def run(arguments) -> tuple[int, str]:
    """Runs a command; returns its exit code and what it wrote to stderr."""
    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        code = cli.main([str(argument) for argument in arguments])
    return code, errors.getvalue()


@pytest.fixture
def plans(trained_model):
    return json.loads((trained_model() / "plans.json").read_text())


@pytest.mark.parametrize("kind", ["stock", "deconver"])
@given(data=st.data())
def test_plans_build_a_network_or_are_refused(plans, kind, data):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_deconver import trainers

    if kind == "deconver":
        entry = plans["configurations"]["test"]
        entry["architecture"] = (
            deconver_architecture(entry["architecture"]) if "conv_bias" in str(entry) else entry["architecture"]
        )
    content = data.draw(edited(plans))
    dataset = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    try:
        check_plans(content, "plans.json")
        manager, configuration = plan_of(content, "test", "plans.json", trust=False)
        channels, labels = channels_and_labels(manager, configuration, dataset, "plans.json")
        with torch.device("meta"):
            trainer = trainers.nnUNetTrainerDeconver if kind == "deconver" else nnUNetTrainer
            network = build_trained(trainer, manager, configuration, channels, labels.num_segmentation_heads, True)
        assert isinstance(network, torch.nn.Module)
    except InputError as error:
        assert 0 < len(str(error)) < 3000


@given(data=st.data())
def test_dataset_json_is_read_or_refused(tmp_path, data):
    base = {
        "channel_names": {"0": "MRI", "1": "CT"},
        "labels": {"background": 0, "organ": 1, "both": [1, 2]},
        "regions_class_order": [1, 2],
        "file_ending": ".nii.gz",
        "numTraining": 3,
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(data.draw(edited(base))))
    try:
        assert isinstance(read_dataset_json(path)["labels"], dict)
    except InputError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("name", ["isles22-k5", "btcv-dtc"])
@given(data=st.data())
def test_presets_are_read_or_refused(tmp_path, name, data):
    path = tmp_path / "preset.json"
    original = Path(presets.__file__).parent / "presets" / f"{name}.json"
    path.write_text(json.dumps(data.draw(edited(json.loads(original.read_text())))))
    try:
        preset = presets.load_preset(str(path))
        assert issubclass(preset.planner(), ExperimentPlanner)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 3000


@given(data=st.data())
def test_evaluations_are_compared_or_refused(trained_model, cross_validated, tmp_path, data):
    evaluation = tmp_path / "evaluation"
    if not evaluation.exists():
        model = trained_model()
        cross_validated(model)
        assert run(["evaluate", "--model", model, "-o", evaluation, "-np", 1])[0] == 0
        (evaluation / "summary.json").rename(tmp_path / "base.json")
    summary = data.draw(edited(json.loads((tmp_path / "base.json").read_text())))
    (evaluation / "summary.json").write_text(json.dumps(summary))
    from nnunet_deconver.metrics.comparison import compare_evaluations, read_evaluation

    try:
        compare_evaluations([read_evaluation(evaluation, name) for name in "ab"], ["dice"])
    except InputError as error:
        assert 0 < len(str(error)) < 3000


def options_of(command: str) -> list[argparse.Action]:
    """What a subcommand takes."""
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for subcommand in cli.SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    return [action for action in subparsers.choices[command]._actions if not isinstance(action, argparse._HelpAction)]


# Options that every command line has already.
SET = ("out", "processes", "dataset")
WORDS = st.one_of(
    st.sampled_from(
        ["0", "1", "-1", "1e9", "1000000000", "nan", "inf", "-inf", "2.5", "", " ", "x", "a/b", "../x", "ä"]
    ),
    st.sampled_from(
        ["Dice", "dice", "organ", "lesion", "all", "dtc", "nerdc", "nerdm", "norm", "deconver", "glas", "2d"]
    ),
    st.sampled_from(["test", "labels=a", "probability:organ=b", "12.8", "nnUNetTrainerDeconver", "x" * 300, "a\nb"]),
    st.text(max_size=6).filter(lambda text: "\0" not in text),
)


@pytest.mark.parametrize(
    "command", ["plan", "summary", "upgrade-checkpoint", "evaluate", "compare", "figures", "export-submission", "list"]
)
@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_command_lines(trained_model, cross_validated, write_dataset, tmp_path, monkeypatch, command, data):
    work = tmp_path / "work"
    evaluation, model = (
        tmp_path / "evaluation",
        tmp_path / "results" / "Dataset900_Test" / "nnUNetTrainer__testPlans__test",
    )
    if not work.exists():
        cross_validated(trained_model())
        assert run(["evaluate", "--model", model, "-o", evaluation, "-np", 1])[0] == 0
        write_dataset(tmp_path, "Dataset901_Test", (40, 50, 60), (1, 1, 1))
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        (tmp_path / "empty").mkdir()
        work.mkdir()
    monkeypatch.chdir(work)
    # Wheels take seconds each, and depend on nothing that is drawn here.
    monkeypatch.setattr("nnunet_deconver.submission.packages.make_wheel", lambda distribution, folder: folder / "a.whl")
    validation, truth = (
        model / "fold_0" / "validation",
        tmp_path / "preprocessed" / "Dataset900_Test" / "gt_segmentations",
    )
    checkpoint, out = model / "fold_0" / "checkpoint_final.pth", work / "out"
    right = {
        "plan": ["-d", "901", "--overwrite"],
        "summary": ["--plans-file", model / "plans.json", "-c", "test"],
        "upgrade-checkpoint": [checkpoint, "-o", out, "--head", "nerdc"],
        "evaluate": [truth, validation, "-o", out, "-np", "1", "--dataset-json", model / "dataset.json"],
        "compare": [evaluation, evaluation, "-o", out, "--names", "a", "b"],
        "figures": [evaluation, "-o", out],
        "export-submission": [model, "-o", out],
        "list": [],
    }[command]
    paths = st.sampled_from(
        [model, evaluation, checkpoint, model / "plans.json", truth, validation, tmp_path / "empty", work / "missing"]
    )
    line = [command, *map(str, right)]
    # A word may be another, or one too many; and there may be more options, with values they take or any.
    if data.draw(st.sampled_from([False, False, True])):
        place = data.draw(st.integers(1, len(line)))
        line[place : place + data.draw(st.integers(0, 1))] = [str(data.draw(st.one_of(paths, WORDS)))]
    options = [option for option in options_of(command) if option.option_strings and option.dest not in SET]
    for option in data.draw(st.lists(st.sampled_from(options), max_size=3)) if options else ():
        usual = st.sampled_from(
            [*map(str, option.choices or {int: [0, 1, 3], float: [1, 2.5]}.get(option.type, ["a"]))]
        )
        value = st.one_of(usual, usual, usual, paths.map(str), WORDS)
        most = {0: 0, None: 1}.get(option.nargs, 3)
        line += [option.option_strings[-1], *data.draw(st.lists(value, min_size=min(most, 1), max_size=most))]
    before = {path for path in tmp_path.rglob("*") if work not in path.parents}
    try:
        code, error = run(line)
    except SystemExit as left:  # of argparse
        code, error = left.code, ""
    event(f"exit code {code}")
    assert code in (0, 1, 2) and "Traceback" not in error
    after = {path for path in tmp_path.rglob("*") if work not in path.parents}
    assert not [path for path in before ^ after if path.name.endswith("unfinished")]
    shutil.rmtree(out, ignore_errors=True)


@given(content=st.binary(max_size=300), name=st.sampled_from(["summary.json", "metrics.csv", "cases.jsonl"]))
def test_bytes_for_an_evaluation(trained_model, cross_validated, tmp_path, content, name):
    evaluation = tmp_path / "evaluation"
    if not evaluation.exists():
        model = trained_model()
        cross_validated(model)
        (tmp_path / "model").symlink_to(model)
        assert run(["evaluate", "--model", model, "-o", evaluation, "-np", 1])[0] == 0
        for path in evaluation.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for kept in ("summary.json", "metrics.csv", "cases.jsonl"):
        (evaluation / kept).write_bytes((tmp_path / kept).read_bytes())
    (evaluation / name).write_bytes(content)
    if name == "cases.jsonl":
        code, error = run(["evaluate", "--model", (tmp_path / "model").resolve(), "-o", evaluation, "-np", 1])
    else:
        code, error = run(["compare", evaluation, f"{evaluation}/", "--names", "a", "b", "-o", tmp_path / "out"])
    assert code in (0, 2)
    assert "Traceback" not in error
