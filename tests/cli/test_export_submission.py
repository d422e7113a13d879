import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch

from nnunet_deconver.cli import export_submission, main
from nnunet_deconver.cli.errors import CommandError

VERSIONS = {"nnunet-deconver": "0.1.0", "nnunetv2": "2.8.1", "torch": "2.9.0"}


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    """Requirements take long to make; they have tests of their own."""

    def write(folder: Path):
        (folder / "wheels").mkdir()
        (folder / "wheels" / "x.whl").touch()
        (folder / "requirements.txt").touch()
        return VERSIONS

    monkeypatch.setattr(export_submission, "write_requirements", write)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)


def export(model, out, *options) -> int:
    return main(["export-submission", str(model), "-o", str(out), *options])


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


FILES = {
    "Dockerfile",
    "README.md",
    "inference.py",
    "requirements.txt",
    "settings.json",
    "test_run.sh",
    "wheels/x.whl",
}


def test_the_model_apart(trained_model, tmp_path, capsys):
    model = trained_model(folds=(0, 1, 3, "all"))
    out = tmp_path / "out"
    assert export(model, out, "-f", "3", "0", "--no-mirroring", "--output-socket", "lesions") == 0
    assert f"try it:   {out}/test_run.sh INPUT OUTPUT" in capsys.readouterr().out
    assert names(out) == FILES | {"model.tar.gz"}
    assert json.loads((out / "settings.json").read_text()) == {
        "folds": ["3", "0"],
        "checkpoint": "checkpoint_final.pth",
        "mirroring": False,
        "everything_on_device": True,
        "input_sockets": [],
        "output_socket": "lesions",
    }
    with tarfile.open(out / "model.tar.gz") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    folds = {f"fold_{fold}/checkpoint_final.pth" for fold in (0, 3)}
    assert names(tmp_path / "unpacked") == {"plans.json", "dataset.json", *folds}
    for name in folds:
        before, after = (torch.load(root / name, weights_only=False) for root in (model, tmp_path / "unpacked"))
        assert before.keys() - after.keys() == {"optimizer_state", "grad_scaler_state"}
        for key, weight in before["network_weights"].items():
            assert torch.equal(weight, after["network_weights"][key])
    assert (out / "test_run.sh").stat().st_mode & 0o111
    readme = (out / "README.md").read_text()
    assert "nnUNetTrainer, plans testPlans, test, folds 3, 0, checkpoint_final.pth" in readme
    assert "nnunetv2 2.8.1, torch 2.9.0, nnunet-deconver 0.1.0" in readme


def test_an_archive_is_nobodys_and_can_be_read_by_all(tmp_path):
    file = tmp_path / "model" / "fold_0" / "checkpoint.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    file.chmod(0o600)
    if os.getuid() == 0:
        os.chown(file, 1234, 1234)
    export_submission.pack(tmp_path / "model", tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        assert {(entry.name, entry.mode) for entry in tar} == {("fold_0", 0o755), ("fold_0/checkpoint.pth", 0o644)}
        assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in tar} == {(0, 0, "", "")}
    assert not (tmp_path / "model").exists()


def test_the_model_in_the_image(trained_model, tmp_path):
    model = trained_model()
    (model / "fold_0" / "checkpoint_final.pth").rename(model / "fold_0" / "checkpoint_best.pth")
    options = ["--bake-model", "--checkpoint", "checkpoint_best.pth", "--not-on-device"]
    assert export(model, tmp_path / "out", *options) == 0
    assert names(tmp_path / "out") == FILES | {
        f"model/{name}" for name in ("plans.json", "dataset.json", "fold_0/checkpoint_best.pth")
    }
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["checkpoint"], settings["everything_on_device"]) == ("checkpoint_best.pth", False)


@pytest.mark.parametrize("folds, chosen", [((2, 0, "all"), ["0", "2"]), (("all",), ["all"])], ids=str)
def test_folds_by_default(trained_model, tmp_path, folds, chosen):
    assert export(trained_model(folds), tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["folds"] == chosen


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("options", [(), ("--bake-model",)], ids=["apart", "baked"])
def test_dockerfile(trained_model, tmp_path, monkeypatch, options):
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\nclass Mine(nnUNetTrainer): pass"
    )
    model = trained_model()
    rename_trainer(model, "Mine")
    monkeypatch.setenv("nnUNet_extTrainer", str(own))
    out = tmp_path / "out"
    assert export(model, out, *options) == 0
    lines = instructions(out / "Dockerfile")
    (base,) = (value for name, value in lines if name == "FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim", base)
    copied = [value.split() for name, value in lines if name == "COPY"]
    sources = [source for words in copied for source in words[:-1] if not source.startswith("--")]
    assert all((out / source).exists() for source in sources)
    assert {"requirements.txt", "wheels/", "inference.py", "settings.json", "trainers/"} <= set(sources)
    assert ("model/" in sources) == bool(options)
    # What runs is a user without rights and the program; no line after the last change of user has more rights.
    users = [value for name, value in lines if name == "USER"]
    assert users == ["algorithm"]
    assert [name for name, _ in lines[-2:]] == ["USER", "ENTRYPOINT"]
    assert json.loads(lines[-1][1]) == ["python", "inference.py"]
    assert any(name == "RUN" and "useradd" in value and "algorithm" in value for name, value in lines)
    assert not any(name == "ADD" for name, _ in lines)
    assert "$" not in (out / "Dockerfile").read_text()


FAKE_DOCKER = """#!/usr/bin/env bash
echo "docker $*" >> "$LOG"
case $1 in
  info) echo "$RUNTIMES" ;;
  run)
    for word in "$@"; do [[ $word == *:/opt/ml/model:ro ]] && ls "${word%%:*}" > "$LOG.model"; done
    exit "$CODE" ;;
esac
"""


@pytest.mark.parametrize("options", [(), ("--bake-model",)], ids=["apart", "baked"])
@pytest.mark.parametrize("runtimes, code", [('{"runc":{}}', 0), ('{"nvidia":{},"runc":{}}', 1)], ids=["cpu", "gpu"])
def test_test_run_calls_docker_as_the_platform_does(trained_model, tmp_path, options, runtimes, code):
    """With a docker that writes down what it is asked for; there may be no other where tests run."""
    assert export(trained_model(), tmp_path / "out", *options) == 0
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(FAKE_DOCKER)
    (tmp_path / "bin" / "docker").chmod(0o755)
    (tmp_path / "in put").mkdir()
    log = tmp_path / "log"
    environment = {"LOG": str(log), "CODE": str(code), "RUNTIMES": runtimes, "TMPDIR": str(tmp_path / "in put")}
    done = subprocess.run(
        [tmp_path / "out" / "test_run.sh", "in put", "output"],
        cwd=tmp_path,
        env={**os.environ, **environment, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == code
    _, build, run = log.read_text().splitlines()
    assert build.endswith(f" {tmp_path / 'out'}")
    assert "--network none" in run
    assert f"--volume {tmp_path / 'in put'}:/input:ro" in run
    assert f"--volume {tmp_path / 'output'}:/output" in run
    assert ("--gpus all" in run) == ("nvidia" in runtimes)
    if options:
        assert "/opt/ml/model" not in run
    else:
        assert Path(f"{log}.model").read_text().split() == ["dataset.json", "fold_0", "plans.json"]
    assert not list((tmp_path / "in put").iterdir())  # the unpacked model


def test_test_run_without_arguments_says_how(trained_model, tmp_path):
    assert export(trained_model(), tmp_path / "out") == 0
    done = subprocess.run([tmp_path / "out" / "test_run.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "INPUT OUTPUT" in done.stderr


def rename_trainer(model: Path, name: str):
    path = model / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"trainer_name": name}, path)


def test_a_trainer_of_the_users_own_goes_along(trained_model, tmp_path, monkeypatch):
    own = tmp_path / "own"
    (own / "parts").mkdir(parents=True)
    (own / "parts" / "__init__.py").touch()
    (own / "parts" / "recipes.py").write_text(
        "from nnunet_deconver.trainers import nnUNetTrainerDeconver\nclass Mine(nnUNetTrainerDeconver): epochs = 3"
    )
    (own / "notes.txt").touch()
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join((str(tmp_path / "empty"), str(own))))
    (tmp_path / "empty").mkdir()
    model = trained_model(trainer="nnUNetTrainerDeconver")
    rename_trainer(model, "Mine")
    assert export(model, tmp_path / "out") == 0
    assert names(tmp_path / "out") == FILES | {
        "model.tar.gz",
        "trainers/parts/__init__.py",
        "trainers/parts/recipes.py",
    }


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainer_5epochs", "nnUNetTrainerDeconver_k5"])
def test_trainers_that_every_container_has(trainer):
    assert export_submission.own_trainers(trainer) is None


def test_trainers_that_no_container_would_have(monkeypatch):
    with pytest.raises(CommandError, match=r"trainer Nobody's is not found .* export nnUNet_extTrainer=FOLDER"):
        export_submission.own_trainers("Nobody's")
    monkeypatch.setattr(
        export_submission,
        "find_trainer",
        lambda name: type(name, (), {"__module__": "nnunetv2.training.nnUNetTrainer.by_hand"}),
    )
    with pytest.raises(CommandError, match=r"by_hand\.py, which is not a file of nnU-Net's; move it"):
        export_submission.own_trainers("ByHand")


def change(model: Path, name: str, **values):
    content = json.loads((model / name).read_text()) | values
    (model / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def cascade(model: Path):
    plans = json.loads((model / "plans.json").read_text())
    configurations = plans["configurations"]
    configurations["test"]["previous_stage"] = "low"
    change(model, "plans.json", configurations=configurations | {"low": {}})


BAD_MODELS = {
    "no folder": (lambda m: m.rename(m.with_name("moved")), (), "plans.json: no such file; MODEL must be a trained"),
    "no plans": (lambda m: (m / "plans.json").unlink(), (), "plans.json: no such file"),
    "no dataset": (lambda m: (m / "dataset.json").unlink(), (), "dataset.json: no such file"),
    "broken plans": (lambda m: (m / "plans.json").write_text("{"), (), "plans.json: cannot be read"),
    "other json": (lambda m: change(m, "dataset.json", channel_names=None), (), "dataset.json: has no channel_names"),
    "other plans": (lambda m: change(m, "plans.json", configurations={}), (), "has no configuration test"),
    "no folds": (
        lambda m: (m / "fold_0").rename(m / "old"),
        (),
        "no fold has checkpoint_final.pth; checkpoints there: n",
    ),
    "checkpoint": (None, ("--checkpoint", "checkpoint_best.pth"), "checkpoints there: checkpoint_final.pth; choose"),
    "fold": (None, ("--folds", "0", "7", "all"), "--folds 7 all: "),
    "broken checkpoint": (
        lambda m: (m / "fold_0" / "checkpoint_final.pth").write_text("text"),
        (),
        "cannot be read as a checkpoint",
    ),
    "cascade": (cascade, (), "test continues the predictions of low"),
    "trainer": (lambda m: rename_trainer(m, "Unknown"), (), "trainer Unknown is not found"),
    "sockets": (None, ("--input-sockets", "t1", "t2"), "--input-sockets t1 t2: must be 1, one per channel (0: MRI)"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_models_are_explained_and_leave_nothing(trained_model, tmp_path, capsys, kind):
    break_, options, message = BAD_MODELS[kind]
    model = trained_model()
    if break_ is not None:
        break_(model)
    assert export(model, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_folder_that_exists_is_left_alone(trained_model, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert export(trained_model(), tmp_path / "out") == 2
    assert "out: exists already" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("error, code", [(OSError("disk full"), 2), (KeyboardInterrupt(), 130)], ids=["full", "ctrl-C"])
@pytest.mark.parametrize("step", ["write_requirements", "write_model", "pack", "write_files"])
def test_nothing_half_written_stays(trained_model, tmp_path, monkeypatch, capsys, step, error, code):
    done = getattr(export_submission, step)

    def fail(*arguments):
        done(*arguments)
        raise error

    monkeypatch.setattr(export_submission, step, fail)
    assert export(trained_model(), tmp_path / "out") == code
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    if code == 2:
        assert "cannot write there (disk full)" in capsys.readouterr().err
