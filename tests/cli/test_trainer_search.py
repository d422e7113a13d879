"""The command as a user calls it, on a copy of the installed nnunetv2, and nnU-Net's own search for trainers."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nnunetv2
import pytest

from nnunet_deconver.integration.trainers import shim_folder

# Without arguments more than the names to search for; prints the module of each class found.
SEARCH = """
import pickle, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
for name in sys.argv[1:]:
    found = recursive_find_trainer_class_by_name(name)
    assert pickle.loads(pickle.dumps(found)) is found
    print("found", found.__name__, found.__module__)
"""


@pytest.fixture
def root(tmp_path):
    """A copy of the installed nnunetv2."""
    root = tmp_path / "site-packages" / "nnunetv2"
    shutil.copytree(nnunetv2.__path__[0], root, ignore=shutil.ignore_patterns("nnunet_deconver*"))
    return root


@pytest.fixture
def call(root, tmp_path):
    """A function that runs a command in whose process nnunetv2 is the copy."""

    def call(*command, **variables) -> subprocess.CompletedProcess:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "PYTHONDONTWRITE"))}
        environment = {**inherited, "PYTHONPATH": str(root.parent), **variables}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert "Traceback" not in done.stderr or command[0] == sys.executable, done.stderr
        return done

    return call


@pytest.fixture
def cli(call):
    """A function that runs nnunet-deconver there."""
    return lambda *arguments, **variables: call(
        str(Path(sys.executable).with_name("nnunet-deconver")), *arguments, **variables
    )


@pytest.fixture
def search(call):
    """A function that asks nnU-Net there for trainers; returns the module of each."""

    def search(*names, before: str = "", **variables) -> dict[str, str]:
        done = call(sys.executable, "-c", before + SEARCH, *names, **variables)
        assert done.returncode == 0, done.stderr
        return dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("found "))

    return search


def sources(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_register_status_unregister(root, cli, search):
    before = sources(root)
    status = cli("status")
    assert status.returncode == 1
    assert f"at {root}" in status.stdout
    assert status.stdout.rstrip().endswith("run: nnunet-deconver register")

    assert cli("register").returncode == 0
    written = sorted(sources(root).keys() - before.keys())
    assert [path.name for path in written] == ["nnunet_deconver_planners.py", "nnunet_deconver_trainers.py"]
    names = ("nnUNetTrainerDeconver", "nnUNetTrainerDeconver_5epochs")
    options = ("nnUNetTrainer_7epochs", "nnUNetTrainer_5epochs_seed1", "nnUNetTrainerDTC_7epochs_50iterations_seed1")
    modules = search(*names, *options, "nnUNetTrainer_5epochs")
    assert all(modules[name].startswith("nnunet_deconver.trainers.") for name in names)
    assert {modules[name] for name in options} == {"nnunet_deconver.trainers"}
    assert modules["nnUNetTrainer_5epochs"].startswith("nnunetv2.")
    assert list(written[1].parent.glob("__pycache__/nnunet_deconver_trainers.*.pyc"))

    again = cli("register")
    assert again.returncode == 0
    assert "up to date" in again.stdout
    status = cli("status")
    assert status.returncode == 0, status.stdout
    assert all(f"yes: {path}" in status.stdout for path in written)

    assert cli("unregister").returncode == 0
    assert sources(root) == before
    assert not list(root.rglob("*deconver*"))
    again = cli("unregister")
    assert again.returncode == 0
    assert "nothing to remove" in again.stdout


def test_variable_alone(root, cli, search):
    before = sources(root)
    folder = cli("trainer-path").stdout.rstrip("\n")
    assert folder == str(shim_folder())
    # After a folder of the user's own, as the advice to keep it produces.
    variable = {"nnUNet_extTrainer": f"{root.parent / 'mine'}{os.pathsep}{folder}"}
    (root.parent / "mine").mkdir()
    status = "from nnunet_deconver.cli import main\nassert main(['status']) == 0\n"
    modules = search("nnUNetTrainerDeconver", "nnUNetTrainer_7epochs_seed1", before=status, **variable)
    assert modules["nnUNetTrainerDeconver"].startswith("nnunet_deconver.trainers.")
    assert modules["nnUNetTrainer_7epochs_seed1"] == "nnunet_deconver.trainers"
    assert sources(root) == before


@pytest.mark.parametrize("first, registered", [("mine", True), ("ours", False)])
def test_options_of_a_users_own_trainer(root, cli, search, first, registered):
    mine = root.parent / "mine"
    mine.mkdir()
    base = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    classes = (f"class {name}(nnUNetTrainer): pass" for name in ("Mine", "Mine_seed2", "Only_3epochs"))
    (mine / "mine.py").write_text("\n".join((f"from {base} import nnUNetTrainer", *classes)))
    if registered:
        assert cli("register").returncode == 0
    folders = [str(mine), str(shim_folder())]
    variable = {"nnUNet_extTrainer": os.pathsep.join(folders if first == "mine" else folders[::-1])}
    options = ("Mine_7epochs", "Mine_seed1", "Mine_seed2_seed1", "Only_3epochs_10iterations")
    # Mine_seed2 is a class of the user's, which nnU-Net forgets once it has found it.
    unpickled = "import pickle; pickle.dumps, pickle.loads = lambda found: found, lambda found: found\n"
    modules = search(*options, "Mine_seed2", before=unpickled, **variable)
    assert modules == dict.fromkeys(options, "nnunet_deconver.trainers") | {"Mine_seed2": "mine"}


def test_nnunet_works_on_after_the_plugin_is_uninstalled(root, cli, search):
    assert cli("register").returncode == 0
    uninstalled = "import sys; sys.modules['nnunet_deconver'] = None\n"
    modules = search("nnUNetTrainer_5epochs", before=uninstalled)
    assert modules["nnUNetTrainer_5epochs"].startswith("nnunetv2.")


def test_no_trainer_hides_one_of_nnunet():
    # Registered, ours are found before the variants of nnU-Net.
    from nnunet_deconver import trainers

    folder = Path(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    theirs = {name for path in folder.rglob("*.py") for name in re.findall(r"^class (\w+)", path.read_text(), re.M)}
    assert "nnUNetTrainer_5epochs" in theirs
    assert not theirs & set(trainers.__all__)
