"""Files that are wrong in every way people and programs get them wrong: an error that names the file, no traceback."""

import copy
import json
import os
import re
from collections import namedtuple

import pytest

from nnunet_deconver import cli

BIG = 10**9


def mutations(base: dict, path: tuple, values) -> list:
    """The base with a field replaced by each of the values, or removed (...)."""
    result = []
    for value in values:
        changed = copy.deepcopy(base)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        if value is ...:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        result.append((".".join(map(str, path)) + f" = {str(value)[:40]}", changed))
    return result


CONFIGURATION = ("configurations", "test")
ARCHITECTURE = (*CONFIGURATION, "architecture")
ARGUMENTS = (*ARCHITECTURE, "arch_kwargs")
WRONG = (None, "x", [], {}, -1, 0, 1.5, True, BIG, "a\nb", [[]], float("nan"))
# Field of plans.json to values that it cannot have.
PLANS = {
    ("configurations",): (..., None, [], "x", 3),
    CONFIGURATION: (..., None, [], "x", {}),
    (*CONFIGURATION, "inherits_from"): (None, 3, "nowhere", "test", []),
    (*CONFIGURATION, "batch_size"): (..., *WRONG),
    (*CONFIGURATION, "patch_size"): (
        ...,
        *WRONG,
        [16, 16],
        [16, 16, "x"],
        [16, 0, 16],
        [16.5, 16, 16],
        [BIG] * 3,
        [17] * 3,
    ),
    ARCHITECTURE: (None, "x", [], {}),
    (*ARCHITECTURE, "network_class_name"): (
        ...,
        None,
        3,
        [],
        "",
        "nnunet_deconver.networks.Nothing",
        "a b",
        "torch",
        "x" * 9999,
    ),
    ARGUMENTS: (..., None, "x", [], {}, {"tanh": 1}),
    (*ARCHITECTURE, "_kw_requires_import"): (..., None, "conv_op", [3], ["nothing"]),
    (*ARGUMENTS, "n_stages"): (..., *WRONG),
    (*ARGUMENTS, "features_per_stage"): (..., None, "x", [], {}, -1, 0, [4, 8], [4, 8, BIG], [4, 8, "x"], [4, 8, None]),
    (*ARGUMENTS, "strides"): (
        ...,
        None,
        "x",
        [],
        {},
        -1,
        [[1] * 3] * 2,
        [[1, 1]] * 3,
        [[1, 1, "x"]] * 3,
        [[0] * 3] * 3,
    ),
    (*ARGUMENTS, "kernel_sizes"): (
        ...,
        None,
        "x",
        [],
        {},
        -1,
        [[3] * 3] * 2,
        [[3, 3]] * 3,
        [[4] * 3] * 3,
        [[BIG] * 3] * 3,
    ),
    (*ARGUMENTS, "conv_op"): (..., None, 3, [], "torch.nn.Conv2d", "torch.nn.ReLU", "torch.nn.nothing"),
    (*ARGUMENTS, "nonlin"): (3, [], "torch.nn.nothing", "torch.nn.Conv3d"),
    (*ARGUMENTS, "no_such_argument"): (3,),
    ("label_manager",): (None, 3, "Nothing", "a/b"),
}
# The same for a Deconver.
DECONVER = {
    (*ARGUMENTS, "source_ratio"): (None, "x", [], 0, -1, 1.5, True, BIG),
    (*ARGUMENTS, "mlp_ratio"): (None, "x", [], 0, -1, True, BIG),
    (*ARGUMENTS, "ndc_groups"): ("x", [], 0, -1, 1.5, 3, True),
    (*ARGUMENTS, "ndc_iterations"): (None, "x", [], 0, -1, 1.5, True),
    (*ARGUMENTS, "upsampling"): (
        "dtc",
        [],
        {},
        {"name": 3},
        {"name": "x"},
        {"name": "dtc", "tanh": "yes"},
        {"name": "dtc", "receptive_field": "x"},
        {"name": "dtc", "receptive_field": -1},
        {"name": "dtc", "x": 1},
    ),
    (*ARGUMENTS, "segmentation_head"): (
        "nerdc",
        [],
        {},
        {"name": []},
        {"name": "nerdc", "bias": "x"},
        {"name": "nerdm", "x": 1},
    ),
}
DATASET = {
    ("labels",): (
        ...,
        None,
        [],
        "x",
        {},
        {"background": 0},
        {"a": 1, "b": 2},
        {"background": 0, "a": "x"},
        {"background": 0, "a": -1},
        {"background": 0, "a": 1.5},
        {"background": 0, "a": []},
        {"background": 0, "a\n": 1},
        {"background": 0, "a": 5},
    ),
    ("file_ending",): (..., None, 3, [], "", "nii", ".x", "./../x", ".nii.gz\n"),
    ("channel_names",): ([], "x", 3, {}, {"0": 3}, {"x": "MRI"}),
    ("regions_class_order",): ("x", 3, ["x"]),
}


def run(arguments, capsys) -> str:
    """Runs a command that must end with an error; returns the error."""
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 2, (code, printed.out[-2000:])
    assert printed.err.count("error: ") == 1 and len(printed.err.splitlines()[-1]) < 2000
    return printed.err


@pytest.mark.parametrize("kind", ["stock", "deconver"])
def test_plans_with_a_wrong_field(trained_model, capsys, kind):
    trainer = "nnUNetTrainerDeconver" if kind == "deconver" else "nnUNetTrainer"
    model = trained_model()
    base = json.loads((model / "plans.json").read_text())
    if kind == "deconver":
        from nnunet_deconver.networks.architecture import deconver_architecture

        entry = base["configurations"]["test"]
        entry["architecture"] = deconver_architecture(entry["architecture"])
    survived = []
    for path, values in (DECONVER if kind == "deconver" else PLANS).items():
        for name, plans in mutations(base, path, values):
            (model / "plans.json").write_text(json.dumps(plans))
            try:
                error = run(["summary", "--plans-file", model / "plans.json", "-c", "test", "-tr", trainer], capsys)
                assert (
                    "plans.json" in error or "configuration" in error or trainer in error or "architecture" in error
                ), error
            except (Exception, SystemExit) as problem:
                capsys.readouterr()
                survived.append(f"{name}: {type(problem).__name__} {str(problem)[:300]}")
    assert not survived, "\n".join(survived)


def test_dataset_json_with_a_wrong_field(trained_model, cross_validated, capsys, tmp_path):
    model = trained_model()
    cross_validated(model)
    base = json.loads((model / "dataset.json").read_text())
    survived = []
    for path, values in DATASET.items():
        for number, (name, dataset) in enumerate(mutations(base, path, values)):
            (model / "dataset.json").write_text(json.dumps(dataset))
            out = tmp_path / "out" / f"{path[0]}{number}"
            try:
                code = cli.main(["evaluate", "--model", str(model), "-o", str(out), "-np", "1"])
                printed = capsys.readouterr()
                # What evaluating does not take, exporting does; labels that the files have not are each case's problem.
                if code == 0:
                    code = cli.main(["export-submission", str(model), "-o", str(out / "export")])
                    printed = capsys.readouterr()
                assert code in (1, 2), printed.out[-500:]
                assert "Traceback" not in printed.err
            except (Exception, SystemExit) as problem:
                survived.append(f"{name}: {type(problem).__name__} {str(problem)[:300]}")
    assert not survived, "\n".join(survived)


BYTES = {
    "nothing": b"",
    "binary": bytes(range(256)),
    "cut short": b'{"configurations": {"te',
    "null": b"null",
    "a list": b"[]",
    "a number": b"3",
    "deeply nested": b"[" * 100_000,
    "a huge number": b'{"configurations": ' + b"9" * 10_000 + b"}",
    "another encoding": '{"a": "ä"}'.encode("utf-16"),
}


def place(path, kind):
    """Puts something wrong in the place of a file."""
    if path.exists() or path.is_symlink():
        path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a loop":
        path.symlink_to(path)
    elif kind != "missing":
        path.write_bytes(BYTES[kind])


@pytest.mark.parametrize("kind", [*BYTES, "a folder", "a pipe", "a loop", "missing"])
def test_files_that_are_none(trained_model, cross_validated, capsys, tmp_path, kind):
    model = trained_model()
    cross_validated(model)
    evaluation = tmp_path / "evaluation"
    assert cli.main(["evaluate", "--model", str(model), "-o", str(evaluation), "-np", "1"]) == 0
    costs, twice = tmp_path / "costs.csv", [evaluation, f"{evaluation}/", "--names", "a", "b", "-o", tmp_path / "c"]
    commands = [
        (evaluation / "summary.json", ["compare", *twice]),
        (evaluation / "metrics.csv", ["compare", *twice]),
        (costs, ["compare", *twice, "--costs", costs]),
        (tmp_path / "preset.json", ["summary", "--preset", tmp_path / "preset.json"]),
        (model / "plans.json", ["summary", "--plans-file", model / "plans.json"]),
        (model / "plans.json", ["export-submission", model, "-o", tmp_path / "x"]),
        (model / "dataset.json", ["export-submission", model, "-o", tmp_path / "x"]),
        (model / "fold_0" / "checkpoint_final.pth", ["export-submission", model, "-o", tmp_path / "x"]),
        (model / "fold_0" / "checkpoint_final.pth",
         ["upgrade-checkpoint", model / "fold_0" / "checkpoint_final.pth", "-o", tmp_path / "x", "--head", "nerdc"]),
    ]  # fmt: skip
    survived = []
    for path, arguments in commands:
        kept = path.read_bytes() if path.is_file() else None
        place(path, kind)
        try:
            run(arguments, capsys)
        except (Exception, SystemExit) as problem:
            capsys.readouterr()
            survived.append(f"{arguments[0]} {path.name}: {type(problem).__name__} {str(problem)[:300]}")
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        if kept is not None:
            path.write_bytes(kept)
    # What evaluate keeps: cut short it goes on, otherwise it says what is in the way.
    place(evaluation / "cases.jsonl", kind)
    try:
        code = cli.main(["evaluate", "--model", str(model), "-o", str(evaluation), "-np", "1"])
        replaced = ("nothing", "cut short", "missing", "a huge number", "deeply nested", "a pipe", "a loop")
        assert code == (0 if kind in replaced else 2)
    except (Exception, SystemExit) as problem:
        survived.append(f"cases.jsonl: {type(problem).__name__} {str(problem)[:300]}")
    assert not (tmp_path / "x").exists()
    assert not survived, "\n".join(survived)


@pytest.mark.parametrize("command", ["evaluate", "compare", "figures", "summary", "upgrade", "export"])
def test_a_full_disk(trained_model, cross_validated, capsys, tmp_path, little_space, command):
    model = trained_model()
    cross_validated(model)
    evaluation, out = tmp_path / "evaluation", tmp_path / "out"
    assert cli.main(["evaluate", "--model", str(model), "-o", str(evaluation), "-np", "1"]) == 0
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    arguments = {
        "evaluate": ["evaluate", "--model", model, "-o", out, "-np", 1],
        "compare": ["compare", evaluation, f"{evaluation}/", "--names", "a", "b", "-o", out],
        "figures": ["figures", evaluation, "-o", out],
        "summary": ["summary", "--plans-file", model / "plans.json", "-c", "test", "--plot", tmp_path / "plot.png"],
        "upgrade": ["upgrade-checkpoint", checkpoint, "-o", out, "--head", "nerdc"],
        "export": ["export-submission", model, "-o", out],
    }[command]
    capsys.readouterr()
    with little_space(1000):
        code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 2
    assert "error: " in printed.err and "Traceback" not in printed.err
    # What has its name is whole.
    for path in out.rglob("*.json") if out.is_dir() else ():
        json.loads(path.read_text())
    assert not (tmp_path / "plot.png").exists()
    if command in ("upgrade", "export"):
        assert not out.exists()
    if command == "evaluate":  # goes on where there is space again
        assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize("command", ["upgrade", "export"])
def test_a_disk_with_less_room_than_the_weights_take(trained_model, capsys, tmp_path, monkeypatch, command):
    model, out = trained_model(), tmp_path / "out"
    usage = namedtuple("usage", "total used free")(2**20, 2**20 - 1024, 1024)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    arguments = {
        "upgrade": ["upgrade-checkpoint", model / "fold_0" / "checkpoint_final.pth", "-o", out, "--head", "nerdc"],
        "export": ["export-submission", model, "-o", out],
    }[command]
    assert re.search(r"take 0\.\d MiB, and 0\.0 MiB are free there", run(arguments, capsys))
    assert not out.exists()


@pytest.mark.parametrize("path", ["", "/", ".", ".."])
def test_paths_without_a_name(trained_model, capsys, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    model = trained_model()
    for arguments in (
        ["summary", "--plans-file", path],
        ["summary", "--preset", path],
        ["summary", "--preset", "glas", "--plot", path],
        ["upgrade-checkpoint", path, "-o", tmp_path / "x", "--head", "nerdc"],
        ["export-submission", path, "-o", tmp_path / "x"],
        ["export-submission", model, "-o", path],
        ["evaluate", path, path, "-o", tmp_path / "x"],
        ["evaluate", "--model", path, "-o", tmp_path / "x"],
        ["compare", path, model, "-o", tmp_path / "x"],
        ["figures", path, "-o", tmp_path / "x"],
    ):
        run(arguments, capsys)
    assert not (tmp_path / "x").exists()


def test_names_that_are_too_long(trained_model, capsys, tmp_path):
    model = trained_model()
    long = tmp_path / ("x" * 300)
    for arguments in (
        ["upgrade-checkpoint", model / "fold_0" / "checkpoint_final.pth", "-o", long, "--head", "nerdc"],
        ["export-submission", model, "-o", long],
        ["export-submission", long, "-o", tmp_path / "x"],
        ["evaluate", "--model", model, "-o", long],
        ["compare", long, model, "-o", tmp_path / "x"],
        ["summary", "--plans-file", long],
    ):
        run(arguments, capsys)
