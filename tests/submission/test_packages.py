import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import nnunet_deconver
from nnunet_deconver.errors import InputError
from nnunet_deconver.ops.cpu_kernels import compiled_kernels
from nnunet_deconver.submission import packages


def wheel_of(folder: Path, **keywords) -> Path:
    """A wheel of this package as it is installed here."""
    folder.mkdir(**keywords)
    return packages.make_wheel(packages.installed_distribution("nnunet-deconver"), folder)


def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return wheel_of(tmp_path_factory.mktemp("packages") / "wheels")


def test_the_wheel_installs_and_is_complete(wheel, tmp_path):
    """The command runs from it, and it has what other exports and nnU-Net's search for trainers need."""
    pip("--no-deps", "--no-index", "--target", tmp_path, wheel)
    script = (
        "import nnunet_deconver, nnunet_deconver.networks, nnunet_deconver.plans, nnunet_deconver.trainers\n"
        "from nnunet_deconver.cli import main\n"
        "main(['trainer-path'])\n"
        "print(nnunet_deconver.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    package = tmp_path / "nnunet_deconver"
    assert done.stdout.split() == [str(package / "shim"), str(package / "__init__.py")]
    here = Path(nnunet_deconver.__file__).parent
    for folder in ("submission", "shim"):
        names = {path.name for path in (here / folder).iterdir() if path.name != "__pycache__"}
        assert names <= {path.name for path in (package / folder).iterdir()}


def test_kernels_stay_on_the_system_they_were_compiled_for(wheel, tmp_path, monkeypatch):
    """A container is Linux; where this is Linux too, they come along."""
    kernels = [name for name in files(wheel) if name.endswith(".so")]
    assert bool(kernels) == bool(compiled_kernels())
    assert not wheel.name.endswith("any.whl")
    pip("--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    (installed,) = metadata.distributions(path=[str(tmp_path / "site")])
    monkeypatch.setattr(packages.sys, "platform", "darwin")
    for number, distribution in enumerate((installed, packages.installed_distribution("nnunet-deconver"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        elsewhere = packages.make_wheel(distribution, folder)
        assert elsewhere.name.endswith("-py3-none-any.whl")
        assert not [name for name in files(elsewhere) if name.endswith(".so")]
        pip("--no-deps", "--no-index", "--target", folder / "site", elsewhere)


def test_a_wheel_of_installed_files_equals_the_one_they_came_from(wheel, tmp_path):
    pip("--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    (installed,) = metadata.distributions(path=[str(tmp_path / "site")])
    assert any(file.suffix == ".pyc" for file in installed.files)
    again = packages.make_wheel(installed, tmp_path)
    assert again.name == wheel.name
    before, after = files(wheel), files(again)
    record = next(name for name in before if name.endswith("RECORD"))
    assert sorted(before.pop(record).split()) == sorted(after.pop(record).split())
    assert before == after


def tree(folder: Path) -> dict[Path, tuple]:
    """Everything below a folder, with its time of change and its content."""
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


@pytest.fixture(params=["git", "no git", "unpacked"])
def clone(request, tmp_path, monkeypatch) -> Path:
    """An editable clone as work leaves it, in a repository of its own or in none."""
    source = tmp_path / "clone"
    packages._copy_source(Path(__file__).parents[2], source)
    (source / "nnunet_deconver.egg-info").mkdir()
    (source / "nnunet_deconver.egg-info" / "SOURCES.txt").write_text("nnunet_deconver/deleted_long_ago.py")
    (source / "build" / "lib" / "nnunet_deconver").mkdir(parents=True)
    (source / "build" / "lib" / "nnunet_deconver" / "deleted_long_ago.py").touch()
    if request.param != "unpacked":
        git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
            subprocess.run([*git, *command], check=True)
        (source / "CHANGELOG.md").unlink()
    (source / "nnunet_deconver" / "shim" / "new.py").touch()
    if request.param == "no git":
        monkeypatch.setenv("PATH", "/nowhere")
    return source


def test_a_clone_stays_as_it_is(clone, tmp_path):
    before = tree(clone)
    (tmp_path / "wheels").mkdir()
    wheel = packages._build("nnunet-deconver", clone, tmp_path / "wheels")
    assert tree(clone) == before
    assert {"nnunet_deconver/shim/new.py", "nnunet_deconver/trainers/__init__.py"} <= files(wheel).keys()
    assert not [name for name in files(wheel) if "deleted_long_ago" in name]


def test_a_source_that_cannot_be_built_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.sys, "executable", "false")
    with pytest.raises(InputError, match=r"nnunet-deconver is installed editable, and its source .* could not"):
        packages._build("nnunet-deconver", Path(__file__).parents[2], tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_setuptools_leaves_in_a_clone_is_not_what_is_installed(tmp_path, monkeypatch):
    left = tmp_path / "clone" / "nnunet_deconver.egg-info"
    left.mkdir(parents=True)
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: nnunet-deconver\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(left.parent)
    assert metadata.version("nnunet-deconver") == "0.0.1"
    assert packages.installed_distribution("nnunet-deconver").version == nnunet_deconver.__version__
    assert packages.installed_distribution("no-such-package") is None
    with pytest.raises(InputError, match="nnunet-deconver was not installed by pip"):
        packages.make_wheel(metadata.distribution("nnunet-deconver"), tmp_path)


class Installed:
    """A distribution with the parts of importlib's that are used here."""

    def __init__(self, name, version, requires=(), direct_url=None):
        self.name, self.version, self.requires, self.direct_url = name, version, list(requires), direct_url

    def read_text(self, name):
        return self.direct_url if name == "direct_url.json" else None


@pytest.fixture
def environment(monkeypatch):
    everything = {
        each.name: each
        for each in (
            Installed("nnunet-deconver", "0.1.0", ["nnunetv2>=2", "torch", 'pytest; extra == "dev"']),
            Installed("nnunetv2", "2.8.1", ["torch", "Needs_Extra[fast]", "absent; python_version >= '3'"]),
            Installed("torch", "2.15.0", ["nvidia-cu13==1", "triton", "sympy", "numpy", "quick"]),
            Installed("torchvision", "0.30", ["torch", "pillow"]),
            Installed("needs-extra", "3", ['quick; extra == "fast"', 'slow; extra == "other"', "torchvision"]),
            Installed("quick", "1", ['linux==1; platform_system == "Linux"', 'win==1; os_name == "nt"', "nnunetv2"]),
            *(Installed(name, "1") for name in ("pytest", "linux", "win", "slow", "unrelated", "pillow")),
            *(Installed(name, "1") for name in ("nvidia-cu13", "triton", "sympy", "numpy")),
            Installed("mine", "1", direct_url='{"url": "file:///x", "dir_info": {}}'),
        )
    }

    monkeypatch.setattr(packages, "installed_distribution", lambda name: everything.get(name.lower().replace("_", "-")))
    monkeypatch.setattr(packages, "make_wheel", lambda distribution, folder: folder / f"{distribution.name}.whl")
    return everything


def test_requirements_are_exact_and_those_of_linux(environment, tmp_path):
    versions = packages.write_requirements(tmp_path, "2.14.1", "12.6")
    assert (tmp_path / "requirements.txt").read_text().splitlines() == [
        "linux==1",
        "needs-extra==3",
        "./wheels/nnunet-deconver.whl",
        "nnunetv2==2.8.1",
        "quick==1",
    ]
    assert versions["nnunetv2"] == "2.8.1"


def test_what_the_models_network_comes_from_is_required_too(environment, tmp_path):
    packages.write_requirements(tmp_path, "2.14.1", "12.6", ["unrelated", "quick"])
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert lines.count("quick==1") == 1 and "unrelated==1" in lines


def test_torch_and_what_it_alone_needs_come_from_pytorchs_index(environment, tmp_path):
    """As for the CUDA that was asked for, which need not be the one installed here."""
    environment["nnunetv2"].requires.append("numpy")
    assert packages.write_requirements(tmp_path, "2.14.1", "12.6")["torch"] == "2.14.1+cu126"
    assert (tmp_path / "requirements-torch.txt").read_text().splitlines() == [
        "--index-url https://download.pytorch.org/whl/cu126",
        "torch==2.14.1+cu126",
        "torchvision",
    ]
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert "numpy==1" in lines
    assert not {"torch", "torchvision", "nvidia-cu13", "triton", "sympy"} & {line.partition("==")[0] for line in lines}


def test_torchvision_is_not_installed_where_it_was_not(environment, tmp_path):
    del environment["torchvision"]
    packages.write_requirements(tmp_path, "2.15.0", "13.2")
    assert "torchvision" not in (tmp_path / "requirements-torch.txt").read_text()


def test_what_no_index_has_travels_as_a_wheel(environment, tmp_path):
    environment["nnunetv2"].direct_url = '{"url": "file:///clone", "dir_info": {"editable": true}}'
    environment["quick"].requires.append("mine")
    packages.write_requirements(tmp_path, "2.15.0", "13.2")
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert {"./wheels/mine.whl", "./wheels/nnunet-deconver.whl", "./wheels/nnunetv2.whl"} <= set(lines)
