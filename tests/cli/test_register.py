import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nnunet_deconver import cli
from nnunet_deconver.cli import register
from nnunet_deconver.cli.errors import CommandError

FOLDER = Path("training", "nnUNetTrainer")
FILE = FOLDER / "nnunet_deconver_trainers.py"


@pytest.fixture
def root(tmp_path):
    """An nnunetv2 with the folder that matters here."""
    root = tmp_path / "site-packages" / "nnunetv2"
    (root / FOLDER / "__pycache__").mkdir(parents=True)
    for folder in (root, root / "training", root / FOLDER):
        (folder / "__init__.py").touch()
    (root / FOLDER / "nnUNetTrainer.py").touch()
    (root / FOLDER / "__pycache__" / "nnUNetTrainer.cpython-311.pyc").touch()
    return root


@pytest.fixture
def imported(root, monkeypatch):
    """That nnunetv2 as the installed one."""
    module = ModuleType("nnunetv2")
    module.__path__ = [str(root)]
    monkeypatch.setitem(sys.modules, "nnunetv2", module)


def contents(root: Path) -> dict[Path, bytes | None]:
    return {path.relative_to(root): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def only_state(root: Path) -> str:
    ((_, _, state),) = register.registration(root)
    return state


def test_writes_one_file_once(root):
    before = contents(root)
    assert only_state(root) == "missing"
    assert register.register(root) == [root / FILE]
    assert only_state(root) == "current"
    assert contents(root).keys() - before.keys() == {FILE}
    first_line = (root / FILE).read_text().splitlines()[0]
    assert first_line.startswith("#")
    assert "nnunet-deconver unregister" in first_line

    os.utime(root / FILE, (0, 0))
    assert register.register(root) == []
    assert (root / FILE).stat().st_mtime == 0


def test_file_can_be_read_by_whoever_can_read_its_neighbours(root):
    register.register(root)
    assert (root / FILE).stat().st_mode == (root / FOLDER / "__init__.py").stat().st_mode


def test_outdated_file_is_updated(root):
    (root / FILE).write_text(register.MARKER + "from nnunet_deconver.old import *\n")
    assert only_state(root) == "outdated"
    assert register.register(root) == [root / FILE]
    assert only_state(root) == "current"


def test_unregister_restores_the_folder(root):
    before = contents(root)
    register.register(root)
    for tag in ("cpython-310", "cpython-313.opt-1"):
        (root / FOLDER / "__pycache__" / f"nnunet_deconver_trainers.{tag}.pyc").touch()
    assert register.unregister(root) == [root / FILE]
    assert contents(root) == before
    assert register.unregister(root) == []
    assert contents(root) == before


@pytest.mark.parametrize("foreign", ["file", "empty file", "folder", "broken link"])
def test_foreign_file_is_never_touched(root, foreign):
    path = root / FILE
    if foreign == "folder":
        path.mkdir()
    elif foreign == "broken link":
        path.symlink_to("nowhere")
    else:
        path.write_text("" if foreign == "empty file" else f"import torch\n{register.MARKER}")
    (root / FOLDER / "__pycache__" / "nnunet_deconver_trainers.cpython-311.pyc").touch()
    before = contents(root)
    with pytest.raises(CommandError, match="not written by nnunet-deconver"):
        register.register(root)
    assert register.unregister(root) == []
    assert contents(root) == before


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
@pytest.mark.parametrize("already", ["", "/lab/trainers"], ids=["unset", "set"])
def test_read_only_folder(root, imported, failing, already, monkeypatch, capsys):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(*{"write_bytes": (Path, "write_bytes"), "replace": (os, "replace")}[failing], refuse)
    monkeypatch.setenv("nnUNet_extTrainer", already)
    before = contents(root)
    assert cli.main(["register"]) == 2
    error = capsys.readouterr().err
    assert str(root / FOLDER) in error
    kept = f"$nnUNet_extTrainer{os.pathsep}" if already else ""
    assert f"export nnUNet_extTrainer={kept}$(nnunet-deconver trainer-path)" in error
    assert contents(root) == before


def test_unregister_from_read_only_folder(root, imported, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    register.register(root)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert cli.main(["unregister"]) == 2
    assert str(root / FILE) in capsys.readouterr().err


def test_nnunetv2_without_the_folder(tmp_path):
    with pytest.raises(CommandError, match="no folder"):
        register.register(tmp_path)
    assert not list(tmp_path.iterdir())


def test_messages(root, imported, capsys):
    outputs = []
    for subcommand in ["register", "register", "unregister", "unregister"]:
        assert cli.main([subcommand]) == 0
        outputs.append(capsys.readouterr().out)
    assert f"wrote {root / FILE}" in outputs[0]
    assert "up to date" in outputs[1]
    assert "wrote" not in outputs[1]
    assert f"removed {root / FILE}" in outputs[2]
    assert "nothing to remove" in outputs[3]


def test_unregister_clears_the_remains_of_an_uninstalled_nnunetv2(root, imported, capsys):
    # What `pip uninstall nnunetv2` leaves of a registered one. As a package without __init__.py it would hide an
    # editable clone.
    register.register(root)
    for path in root.rglob("*"):
        if path.is_file() and path != root / FILE:
            path.unlink()
    assert cli.main(["register"]) == 2
    assert cli.main(["unregister"]) == 0
    assert not root.exists()
    assert root.parent.exists()


class TestWrittenModule:
    """What nnU-Net gets when it imports the file."""

    @pytest.fixture
    def run(self, root):
        register.register(root)
        code = compile((root / FILE).read_text(), FILE, "exec")

        def run() -> dict:
            namespace = {"__name__": "nnunetv2.training.nnUNetTrainer.nnunet_deconver_trainers"}
            exec(code, namespace)
            return namespace

        return run

    def test_exports_the_trainers(self, run, monkeypatch):
        trainers = ModuleType("nnunet_deconver.trainers")
        trainers.__all__ = ["nnUNetTrainerDeconver"]
        trainers.nnUNetTrainerDeconver = trainers.helper = object()
        monkeypatch.setitem(sys.modules, "nnunet_deconver.trainers", trainers)
        namespace = run()
        assert namespace["nnUNetTrainerDeconver"] is trainers.nnUNetTrainerDeconver
        assert "helper" not in namespace

    @pytest.mark.parametrize("missing", ["nnunet_deconver", "nnunet_deconver.trainers"])
    def test_is_empty_once_the_plugin_is_uninstalled(self, run, missing, monkeypatch):
        # The second is what is missing when the uninstalled package has left a folder behind.
        monkeypatch.delitem(sys.modules, "nnunet_deconver.trainers", raising=False)
        monkeypatch.setitem(sys.modules, missing, None)
        assert not [name for name in run() if not name.startswith("__")]

    @pytest.mark.parametrize(
        "error",
        [
            ModuleNotFoundError("No module named 'scipy'", name="scipy"),
            ModuleNotFoundError("No module named 'nnunet_deconver.ops'", name="nnunet_deconver.ops"),
            ImportError("cannot import name 'nnUNetTrainer'", name="nnunet_deconver"),
        ],
        ids=["dependency", "part of the plugin", "name"],
    )
    def test_hides_no_other_error(self, run, error, monkeypatch):
        class Broken(ModuleType):
            def __getattr__(self, name):
                raise error

        monkeypatch.setitem(sys.modules, "nnunet_deconver.trainers", Broken("nnunet_deconver.trainers"))
        with pytest.raises(ImportError) as raised:
            run()
        assert raised.value is error
