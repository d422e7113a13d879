import dataclasses
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch

from nnunet_deconver.cli import main
from nnunet_deconver.errors import InputError
from nnunet_deconver.submission import export as library
from nnunet_deconver.submission.targets import TARGETS

VERSIONS = {"nnunet-deconver": "0.1.0", "nnunetv2": "2.8.1", "torch": "2.14.1+cu126"}


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    """Requirements take long to make; they have tests of their own."""

    def write(folder: Path, torch: str, cuda: str, further):
        assert list(further) == []
        (folder / "requirements-torch.txt").write_text(f"{torch} {cuda}")
        (folder / "wheels").mkdir()
        (folder / "wheels" / "x.whl").touch()
        (folder / "requirements.txt").touch()
        return VERSIONS

    monkeypatch.setattr(library, "write_requirements", write)
    monkeypatch.setattr(library, "installed_torch", lambda: ("2.15.0", "13.2"))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)


def export(model, out, *options) -> int:
    return main(["export-submission", str(model), "-o", str(out), *options])


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


FILES = {
    "Dockerfile",
    "README.md",
    "apptainer.def",
    "inference.py",
    "requirements-torch.txt",
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
        "allow_cpu": False,
        "layout": "sockets",
        "ending": ".mha",
        "input_sockets": [],
        "outputs": [{"probability": None, "folder": "images/lesions"}],
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
    assert "nnunetv2 2.8.1, nnunet-deconver 0.1.0" in readme
    assert "2.14.1 for CUDA 12.6; 2.15.0, as here, has no wheel for it" in readme
    assert (out / "requirements-torch.txt").read_text() == "2.14.1 12.6"


def test_an_archive_is_nobodys_and_can_be_read_by_all(tmp_path):
    file = tmp_path / "model" / "fold_0" / "checkpoint.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    file.chmod(0o600)
    if os.getuid() == 0:
        os.chown(file, 1234, 1234)
    library.pack(tmp_path / "model", tmp_path / "model.tar.gz")
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


OPTIONS = {
    "model apart": (),
    "model in the image": ("--bake-model",),
    "exec": ("--api", "exec"),
    "brats": ("--target", "brats", "--input-sockets", "t1c"),
    "folder": ("--target", "folder"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_dockerfile(trained_model, tmp_path, monkeypatch, kind):
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\nclass Mine(nnUNetTrainer): pass"
    )
    model = trained_model()
    rename_trainer(model, "Mine")
    monkeypatch.setenv("nnUNet_extTrainer", str(own))
    out = tmp_path / "out"
    assert export(model, out, *OPTIONS[kind]) == 0
    lines = instructions(out / "Dockerfile")
    (base,) = (value for name, value in lines if name == "FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim", base)
    copied = [value.split() for name, value in lines if name == "COPY"]
    sources = [source for words in copied for source in words[:-1] if not source.startswith("--")]
    assert all((out / source).exists() for source in sources)
    needed = {"requirements-torch.txt", "requirements.txt", "wheels/", "inference.py", "settings.json", "trainers/"}
    assert needed <= set(sources)
    holds_model = kind in ("model in the image", "brats", "folder")
    assert ("model/" in sources) == holds_model == (out / "model").is_dir() != (out / "model.tar.gz").exists()
    # torch comes first, or the other packages would bring another.
    (install,) = (value for name, value in lines if name == "RUN" and "pip" in value)
    assert install.index("requirements-torch.txt") < install.index("requirements.txt")
    # What runs is a user without rights and the program; no line after the last change of user has more rights.
    users = [value for name, value in lines if name == "USER"]
    assert users == ["algorithm"]
    assert [name for name, _ in lines[-2:]] == ["USER", "ENTRYPOINT"]
    invoked = kind in ("model apart", "model in the image")
    assert json.loads(lines[-1][1]) == ["python", "inference.py", *(["--api", "invoke"] if invoked else [])]
    labels = [value for name, value in lines if name == "LABEL"]
    assert labels == (['org.grand-challenge.api-method="invoke"'] if invoked else [])
    assert any(name == "RUN" and "useradd" in value and "algorithm" in value for name, value in lines)
    assert not any(name == "ADD" for name, _ in lines)
    assert "$" not in (out / "Dockerfile").read_text()


def sections(definition: Path) -> dict[str, list[str]]:
    """The lines of an Apptainer definition, by section; those of the head are in the section ""."""
    found, section = {"": []}, ""
    for line in definition.read_text().splitlines():
        if line.startswith("%"):
            section = line
            found[section] = []
        elif line.strip() and not line.startswith("#"):
            found[section].append(line.strip())
    return found


@pytest.mark.parametrize("kind", OPTIONS)
def test_apptainer_builds_the_same_image(trained_model, tmp_path, kind):
    out = tmp_path / "out"
    assert export(trained_model(trainer="nnUNetTrainerDeconver"), out, *OPTIONS[kind]) == 0
    found = sections(out / "apptainer.def")
    docker = instructions(out / "Dockerfile")
    assert found[""] == ["Bootstrap: docker", f"From: {docker[0][1]}"]
    assert found.keys() == {"", "%files", "%post", "%environment", "%runscript"}
    copied = [line.split() for line in found["%files"]]
    by_docker = [word for name, value in docker if name == "COPY" for word in value.split()[:-1] if word[0] != "-"]
    assert {source for source, _ in copied} == {source.rstrip("/") for source in by_docker}
    assert all((out / source).exists() and target == f"/opt/algorithm/{source}" for source, target in copied)
    assert found["%runscript"] == ['exec python /opt/algorithm/inference.py "$@"']
    commands = " ".join(value for name, value in docker if name == "RUN")
    for command in ("gcc libc6-dev", "--requirement requirements-torch.txt", "--requirement requirements.txt"):
        assert (command in " ".join(found["%post"])) == (command in commands) == True  # noqa: E712
    done = subprocess.run(["sh", "-n"], input="\n".join(found["%post"]), text=True)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "trainer, gpus, expected",
    [
        ("nnUNetTrainerDeconver", {"T4": (7, 5), "A10G": (8, 6)}, True),
        ("nnUNetTrainerDeconver", {}, True),
        ("nnUNetTrainerDeconver", {"T4": (7, 5)}, False),
        ("nnUNetTrainer", {}, False),
    ],
    ids=str,
)
def test_a_compiler_is_in_the_image_where_triton_has_work(
    trained_model, tmp_path, monkeypatch, trainer, gpus, expected
):
    targets = {"folder": dataclasses.replace(TARGETS["folder"], gpus=gpus)}
    monkeypatch.setattr(library, "TARGETS", targets)
    assert export(trained_model(trainer=trainer), tmp_path / "out", "--target", "folder") == 0
    for name in ("Dockerfile", "apptainer.def"):
        assert ("gcc libc6-dev" in (tmp_path / "out" / name).read_text()) == expected
    assert ("has a C compiler" in (tmp_path / "out" / "README.md").read_text()) == expected


OUTPUTS = {
    "none": ("grand-challenge", (), [(None, "images/segmentation")]),
    "socket": ("grand-challenge", ("--output-socket", "x"), [(None, "images/x")]),
    "several": (
        "grand-challenge",
        ("--output", "labels=x", "probability:lesion=y", "probability:background=z"),
        [(None, "images/x"), ("lesion", "images/y"), ("background", "images/z")],
    ),
    "probabilities alone": ("grand-challenge", ("--output", "probability:organ=y"), [("organ", "images/y")]),
    "brats": ("brats", ("--input-sockets", "t1c"), [(None, "")]),
    "brats, named": ("brats", ("--input-sockets", "t1c", "--output", "labels"), [(None, "")]),
    "folder": ("folder", ("--output", "labels", "probability:organ=y"), [(None, ""), ("organ", "y")]),
    "folder, socket": ("folder", ("--output-socket", "x"), [(None, "x")]),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs(trained_model, tmp_path, kind):
    target, options, expected = OUTPUTS[kind]
    assert export(trained_model(), tmp_path / "out", "--target", target, *options) == 0
    outputs = json.loads((tmp_path / "out" / "settings.json").read_text())["outputs"]
    assert [(output["probability"], output["folder"]) for output in outputs] == expected


@pytest.mark.parametrize(
    "channels, suffixes",
    [
        (("t1n", "t1c", "t2w", "t2f"), ["t1n", "t1c", "t2w", "t2f"]),
        (("FLAIR", "T1", "T1ce", "T2"), ["t2f", "t1n", "t1c", "t2w"]),
        (("T1-Gd", "T2_FLAIR"), ["t1c", "t2f"]),
    ],
    ids=str,
)
def test_channels_of_brats_are_known_by_name(trained_model, tmp_path, channels, suffixes):
    assert export(trained_model(channels=channels), tmp_path / "out", "--target", "brats") == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["input_sockets"] == [suffixes]


def test_several_interfaces_and_the_cpu(trained_model, tmp_path):
    options = ["--input-sockets", "a", "b", "--input-sockets", "c", "d", "--allow-cpu"]
    assert export(trained_model(channels=("T1", "T2")), tmp_path / "out", *options) == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["input_sockets"] == [["a", "b"], ["c", "d"]]
    assert settings["allow_cpu"] is True


def test_the_readme_fits_the_target(trained_model, tmp_path):
    model = trained_model(channels=("t1n", "t1c"))
    readmes = {}
    for target in TARGETS:
        assert export(model, tmp_path / target, "--target", target) == 0
        readmes[target] = (tmp_path / target / "README.md").read_text()
        assert "$" not in readmes[target]
        assert ("tar -xzf model.tar.gz" in readmes[target]) == (tmp_path / target / "model.tar.gz").exists()
    assert "`images/SOCKET/<name of the first image>.mha`" in readmes["grand-challenge"]
    assert "files that end in t1n t1c" in readmes["brats"]
    assert "`CASE_0000.nii.gz`, `CASE_0001.nii.gz`" in readmes["folder"]


def test_everybody_can_read_what_is_exported(trained_model, tmp_path):
    """Containers run as any user, and a umask may keep files from others."""
    before = os.umask(0o077)
    try:
        assert export(trained_model(), tmp_path / "out", "--bake-model") == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        needed = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & needed == needed, path


FAKE_DOCKER = """#!/usr/bin/env bash
echo "docker $*" >> "$LOG"
case $1 in
  info) echo "$RUNTIMES" ;;
  inspect) echo "$API" ;;
  run)
    for word in "$@"; do [[ $word == *:/opt/ml/model:ro ]] && ls "${word%%:*}" > "$LOG.model"; done
    if [[ $2 == --detach ]]; then echo the-container; else exit "$CODE"; fi ;;
  exec) cat > "$LOG.request"; exit "$CODE" ;;
esac
"""


@pytest.mark.parametrize("options", [(), ("--bake-model",)], ids=["apart", "baked"])
@pytest.mark.parametrize("runtimes, code", [('{"runc":{}}', 0), ('{"nvidia":{},"runc":{}}', 1)], ids=["cpu", "gpu"])
@pytest.mark.parametrize("api", ["invoke", "exec"])
def test_test_run_calls_docker_as_the_platform_does(trained_model, tmp_path, options, runtimes, code, api):
    """With a docker that writes down what it is asked for; there may be no other where tests run."""
    assert export(trained_model(), tmp_path / "out", "--api", api, *options) == 0
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(FAKE_DOCKER)
    (tmp_path / "bin" / "docker").chmod(0o755)
    (tmp_path / "in put").mkdir()
    log = tmp_path / "log"
    environment = {"LOG": str(log), "CODE": str(code), "RUNTIMES": runtimes, "TMPDIR": str(tmp_path / "in put")}
    environment["API"] = "invoke" if api == "invoke" else "<no value>"
    done = subprocess.run(
        [tmp_path / "out" / "test_run.sh", "in put", "output"],
        cwd=tmp_path,
        env={**os.environ, **environment, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == code
    _, build, inspect, run, *others = log.read_text().splitlines()
    assert build.endswith(f" {tmp_path / 'out'}")
    assert "org.grand-challenge.api-method" in inspect
    assert "--network none --read-only --tmpfs /tmp:exec" in run
    assert f"--volume {tmp_path / 'in put'}:/input:ro" in run
    assert f"--volume {tmp_path / 'output'}:/output" in run
    assert ("--gpus all" in run) == ("nvidia" in runtimes)
    if api == "invoke":
        expected = ["exec --interactive the-container python -", "logs the-container", "rm --force the-container"]
        assert others == [f"docker {command}" for command in expected]
        compile(Path(f"{log}.request").read_text(), "request", "exec")
    else:
        assert not others
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


@pytest.mark.parametrize("name", ["Mine", "Mine_7epochs_seed1"])
def test_a_trainer_of_the_users_own_goes_along(trained_model, tmp_path, monkeypatch, name):
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
    rename_trainer(model, name)
    assert export(model, tmp_path / "out") == 0
    assert names(tmp_path / "out") == FILES | {
        "model.tar.gz",
        "trainers/parts/__init__.py",
        "trainers/parts/recipes.py",
    }


@pytest.mark.parametrize(
    "trainer", ["nnUNetTrainer", "nnUNetTrainer_5epochs", "nnUNetTrainerDeconver_k5", "nnUNetTrainerDTC_7epochs_seed1"]
)
def test_trainers_that_every_container_has(trainer):
    assert library.own_trainers(trainer) is None


def test_trainers_that_no_container_would_have(monkeypatch):
    with pytest.raises(InputError, match=r"trainer Nobody's is not found .* export nnUNet_extTrainer=FOLDER"):
        library.own_trainers("Nobody's")
    monkeypatch.setattr(
        library,
        "search_trainer",
        lambda name: type(name, (), {"__module__": "nnunetv2.training.nnUNetTrainer.by_hand"}),
    )
    with pytest.raises(InputError, match=r"by_hand\.py, which is not a file of nnU-Net's; move it"):
        library.own_trainers("ByHand")


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
    "broken plans": (lambda m: (m / "plans.json").write_text("{"), (), "plans.json: is not JSON"),
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
    "socket that is a path": (None, ("--input-sockets", "a/b"), "--input-sockets 'a/b': must be letters, digits"),
    "sockets": (None, ("--input-sockets", "t1", "t2"), "--input-sockets t1 t2: must be 1, one per channel (0: MRI)"),
    "sockets of files": (
        None,
        ("--target", "folder", "--input-sockets", "t1"),
        "--input-sockets t1: images of this target are told by nnU-Net's numbers",
    ),
    "suffixes": (None, ("--target", "brats"), "the channels (0: MRI) do not say how the names of their files end; add"),
    "api": (None, ("--target", "brats", "--api", "invoke"), "--api invoke: must be exec for --target brats"),
    "cuda": (
        None,
        ("--cuda", "10.2"),
        "--cuda 10.2: must be one of 11.8, 12.1, 12.4, 12.6, 12.8, 12.9, 13.0, 13.2, for",
    ),
    "output": (None, ("--output", "label=x"), "--output label=x: must be labels=SOCKET or probability:NAME=SOCKET"),
    "output of a name": (None, ("--output", "labels:organ=x"), "--output labels:organ=x: must be labels=SOCKET or"),
    "output twice": (None, ("--output", "labels=x", "probability:organ=x"), "each must have a SOCKET of its own"),
    "output in both": (
        None,
        ("--output", "labels=x", "--output-socket", "y"),
        "--output-socket y: is the same as labels=y in --output; name it there",
    ),
    "unknown label": (
        None,
        ("--output", "probability:tumour=x"),
        "--output probability:tumour=x: the model has no tumour; it has background, organ, lesion",
    ),
    "region": (
        lambda m: change(m, "dataset.json", labels={"background": 0, "all": [1, 2], "ignore": 3, "organ": 1}),
        ("--output", "probability:background=x"),
        "the model has no background; it has all, organ",
    ),
    "probability without socket": (
        None,
        ("--output", "probability:organ"),
        "--output probability:organ: must name a socket, as in probability:organ=SOCKET",
    ),
    "probability without folder": (
        None,
        ("--target", "folder", "--output", "labels", "probability:organ"),
        "must name a folder, as in probability:organ=FOLDER; the labels are in /output",
    ),
    "probability for brats": (
        None,
        ("--target", "brats", "--input-sockets", "t1c", "--output", "labels", "probability:organ=x"),
        "--output probability:organ=x: this target takes labels and no other file; leave it out",
    ),
    "folder for brats": (
        None,
        ("--target", "brats", "--input-sockets", "t1c", "--output-socket", "x"),
        "--output labels=x: this target takes labels in /output itself; leave out =x",
    ),
    "path": (None, ("--output", "labels=images/x"), "--output labels=images/x: SOCKET must be the name of a folder"),
    "hidden": (None, ("--output", "labels=.."), "--output labels=..: SOCKET must be the name of a folder"),
    "nothing": (None, ("--output", "labels="), "--output labels=: SOCKET must be the name of a folder"),
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
    done = getattr(library, step)

    def fail(*arguments):
        done(*arguments)
        raise error

    monkeypatch.setattr(library, step, fail)
    assert export(trained_model(), tmp_path / "out") == code
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    if code == 2:
        assert "cannot write there (disk full)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "network, distributions",
    [("monai.networks.nets.BasicUNet", ["monai"]), ("own_network.OwnNetwork", None)],
)
def test_the_package_of_an_adapted_network_travels(
    trained_model, tmp_path, capsys, monkeypatch, network, distributions
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "own_network"))
    model = trained_model()
    plans = json.loads((model / "plans.json").read_text())
    names = {} if distributions else {"input_channels": "in_chans", "num_classes": "n_classes"}
    arch_kwargs = {"network": network, "strides": [[1] * 3, [1] * 3, [16] * 3], "channel_arguments": names}
    plans["configurations"]["test"]["architecture"] = {
        "network_class_name": "nnunet_deconver.networks.Adapted",
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": [],
    }
    (model / "plans.json").write_text(json.dumps(plans))
    told = []
    written = library.write_requirements
    monkeypatch.setattr(library, "write_requirements", lambda *args: told.append(args[-1]) or written(*args[:-1], []))
    code = export(model, tmp_path / "out", "--trust")
    if distributions:
        assert (code, told) == (0, [distributions])
    else:
        assert code == 2
        assert "own_network.OwnNetwork is of no installed package" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
