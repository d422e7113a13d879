import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nnunet_deconver import cli
from nnunet_deconver.errors import InputError
from nnunet_deconver.integration import registration

TRAINERS = Path("training", "nnUNetTrainer", "nnunet_deconver_trainers.py")
PLANNERS = Path("experiment_planning", "experiment_planners", "nnunet_deconver_planners.py")
FILES = (TRAINERS, PLANNERS)
MODULES = {TRAINERS: "nnunet_deconver.trainers", PLANNERS: "nnunet_deconver.plans"}

one_file = pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)


@pytest.fixture
def root(tmp_path):
    """An nnunetv2 with the folders that matter here."""
    root = tmp_path / "site-packages" / "nnunetv2"
    for file in FILES:
        (root / file.parent / "__pycache__").mkdir(parents=True)
        for folder in (root, (root / file).parents[1], (root / file).parent):
            (folder / "__init__.py").touch()
        (root / file.with_name("neighbour.py")).touch()
        (root / file.parent / "__pycache__" / "neighbour.cpython-311.pyc").touch()
    return root


@pytest.fixture
def imported(root, monkeypatch):
    """That nnunetv2 as the installed one."""
    module = ModuleType("nnunetv2")
    module.__path__ = [str(root)]
    monkeypatch.setitem(sys.modules, "nnunetv2", module)


def contents(root: Path) -> dict[Path, bytes | None]:
    return {path.relative_to(root): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def states(root: Path) -> dict[Path, str]:
    return {path.relative_to(root): state for path, _, state in registration.registration(root)}


def test_writes_each_file_once(root):
    before = contents(root)
    assert states(root) == dict.fromkeys(FILES, "missing")
    assert registration.register(root) == [root / file for file in FILES]
    assert states(root) == dict.fromkeys(FILES, "current")
    assert contents(root).keys() - before.keys() == set(FILES)
    for file in FILES:
        first_line = (root / file).read_text().splitlines()[0]
        assert first_line.startswith("#")
        assert "nnunet-deconver unregister" in first_line
        os.utime(root / file, (0, 0))

    assert registration.register(root) == []
    assert [(root / file).stat().st_mtime for file in FILES] == [0, 0]


@one_file
def test_file_can_be_read_by_whoever_can_read_its_neighbours(root, file):
    registration.register(root)
    assert (root / file).stat().st_mode == (root / file).with_name("__init__.py").stat().st_mode


@one_file
def test_outdated_file_is_updated(root, file):
    """As after an upgrade from a version that wrote less."""
    registration.register(root)
    (root / file).write_text(registration.MARKER + "from nnunet_deconver.old import *\n")
    assert states(root)[file] == "outdated"
    assert registration.register(root) == [root / file]
    assert states(root) == dict.fromkeys(FILES, "current")


@one_file
def test_missing_file_is_added(root, file):
    registration.register(root)
    (root / file).unlink()
    assert registration.register(root) == [root / file]


def test_unregister_restores_the_folder(root):
    before = contents(root)
    registration.register(root)
    for file in FILES:
        for tag in ("cpython-310", "cpython-313.opt-1"):
            (root / file.parent / "__pycache__" / f"{file.stem}.{tag}.pyc").touch()
    assert registration.unregister(root) == [root / file for file in FILES]
    assert contents(root) == before
    assert registration.unregister(root) == []
    assert contents(root) == before


@one_file
@pytest.mark.parametrize("foreign", ["file", "empty file", "folder", "broken link"])
def test_foreign_file_is_never_touched(root, foreign, file):
    path = root / file
    if foreign == "folder":
        path.mkdir()
    elif foreign == "broken link":
        path.symlink_to("nowhere")
    else:
        path.write_text("" if foreign == "empty file" else f"import torch\n{registration.MARKER}")
    (root / file.parent / "__pycache__" / f"{file.stem}.cpython-311.pyc").touch()
    before = contents(root)
    with pytest.raises(InputError, match="not written by nnunet-deconver"):
        registration.register(root)
    assert registration.unregister(root) == []
    assert contents(root) == before


@pytest.mark.parametrize("failing", ["open", "replace"])
@pytest.mark.parametrize("already", ["", "/lab/trainers"], ids=["unset", "set"])
def test_read_only_folder(root, imported, failing, already, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    opened = Path.open
    if failing == "open":
        monkeypatch.setattr(
            Path, "open", lambda path, mode="r", **o: (refuse if "w" in mode else opened)(path, mode, **o)
        )
    else:
        monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setenv("nnUNet_extTrainer", already)
    before = contents(root)
    assert cli.main(["register"]) == 2
    error = capsys.readouterr().err
    assert str(root) in error
    kept = f"$nnUNet_extTrainer{os.pathsep}" if already else ""
    assert f"export nnUNet_extTrainer={kept}$(nnunet-deconver trainer-path)" in error
    assert contents(root) == before


@one_file
def test_one_of_the_folders_cannot_be_written_to(root, imported, file, monkeypatch, capsys):
    opened = Path.open

    def open_others(path, mode="r", **options):
        if "w" in mode and path.parent == (root / file).parent:
            raise PermissionError(1, "Operation not permitted")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_others)
    before = contents(root)
    assert cli.main(["register"]) == 2
    assert f"{(root / file).parent} (Operation not permitted)" in capsys.readouterr().err
    assert contents(root) == before


@one_file
def test_unregister_takes_what_a_killed_register_left(root, file):
    before = contents(root)
    registration.register(root)
    (root / file).with_name(f".{file.name}.4711.unfinished").write_text("# Writ")
    registration.unregister(root)
    assert contents(root) == before


def test_unregister_from_read_only_folder(root, imported, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    registration.register(root)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert cli.main(["unregister"]) == 2
    assert str(root / TRAINERS) in capsys.readouterr().err


def test_nnunetv2_without_the_folder(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        registration.register(tmp_path)
    assert not list(tmp_path.iterdir())


def test_messages(root, imported, capsys):
    outputs = []
    for subcommand in ["register", "register", "unregister", "unregister"]:
        assert cli.main([subcommand]) == 0
        outputs.append(capsys.readouterr().out)
    assert all(f"wrote {root / file}" in outputs[0] for file in FILES)
    assert "up to date" in outputs[1]
    assert "wrote" not in outputs[1]
    assert all(f"removed {root / file}" in outputs[2] for file in FILES)
    assert "nothing to remove" in outputs[3]


def test_unregister_clears_the_remains_of_an_uninstalled_nnunetv2(root, imported, capsys):
    # What `pip uninstall nnunetv2` leaves of a registered one. As a package without __init__.py it would hide an
    # editable clone.
    registration.register(root)
    for path in root.rglob("*"):
        if path.is_file() and path.relative_to(root) not in FILES:
            path.unlink()
    assert cli.main(["register"]) == 2
    assert cli.main(["unregister"]) == 0
    assert not root.exists()
    assert root.parent.exists()


@one_file
class TestWrittenModule:
    """What nnU-Net gets when it imports a file."""

    @pytest.fixture
    def run(self, root, file):
        registration.register(root)
        code = compile((root / file).read_text(), file, "exec")

        def run() -> dict:
            namespace = {"__name__": f"nnunetv2.{'.'.join(file.with_suffix('').parts)}"}
            exec(code, namespace)
            return namespace

        return run

    def test_exports_what_the_module_does(self, run, file, monkeypatch):
        module = ModuleType(MODULES[file])
        module.__all__ = ["Chosen"]
        module.Chosen = module.helper = object()
        module.__getattr__ = lambda name: name
        monkeypatch.setitem(sys.modules, MODULES[file], module)
        namespace = run()
        assert namespace["Chosen"] is module.Chosen
        assert "helper" not in namespace
        # Trainers with options in their names are made when they are asked for.
        assert namespace.get("__getattr__") is (module.__getattr__ if file == TRAINERS else None)

    @pytest.mark.parametrize("missing", ["package", "module"])
    def test_is_empty_once_the_plugin_is_uninstalled(self, run, file, missing, monkeypatch):
        # The second is what is missing when the uninstalled package has left a folder behind.
        monkeypatch.delitem(sys.modules, MODULES[file], raising=False)
        monkeypatch.setitem(sys.modules, "nnunet_deconver" if missing == "package" else MODULES[file], None)
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
    def test_hides_no_other_error(self, run, file, error, monkeypatch):
        class Broken(ModuleType):
            def __getattr__(self, name):
                raise error

        monkeypatch.setitem(sys.modules, MODULES[file], Broken(MODULES[file]))
        with pytest.raises(ImportError) as raised:
            run()
        assert raised.value is error
