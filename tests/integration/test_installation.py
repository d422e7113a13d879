import sys
from pathlib import Path
from types import ModuleType

import pytest

from nnunet_deconver import cli
from nnunet_deconver.errors import InputError
from nnunet_deconver.integration import installation


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that puts a bare nnunetv2 of a given version before the real one."""

    def install(version: str) -> Path:
        root = tmp_path / "nnunetv2"
        for folder in ("training/nnUNetTrainer", "experiment_planning/experiment_planners"):
            (root / folder).mkdir(parents=True)
        (root / "__init__.py").touch()
        metadata = tmp_path / f"nnunetv2-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: nnunetv2\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        module = ModuleType("nnunetv2")
        module.__path__ = [str(root)]
        monkeypatch.setitem(sys.modules, "nnunetv2", module)
        return root

    return install


def test_supported_versions_are_the_requirement():
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert f'"nnunetv2{installation.SUPPORTED_VERSIONS}"' in pyproject.read_text()


@pytest.mark.parametrize("version", ["2.8", "2.8.1", "2.9.dev3", "2.10.0+local"])
def test_supported(version, install):
    root = install(version)
    assert installation.nnunetv2_problem() is None
    assert installation.require_nnunetv2() == root


@pytest.mark.parametrize("version", ["2.7.9", "2.5.1", "1.7", "3.0", "3.1.dev1"])
@pytest.mark.parametrize("subcommand", ["register", "list"])
def test_unsupported_version_is_refused(version, subcommand, install, capsys):
    root = install(version)
    assert cli.main([subcommand]) == 2
    error = capsys.readouterr().err
    assert version in error
    assert 'pip install "nnunetv2>=2.8,<3"' in error
    assert not any((root / "training" / "nnUNetTrainer").iterdir())


@pytest.mark.parametrize("subcommand", ["register", "list"])
def test_missing_nnunetv2(subcommand, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    assert cli.main([subcommand]) == 2
    assert 'pip install "nnunetv2>=2.8,<3"' in capsys.readouterr().err


def test_missing_nnunetv2_is_nothing_to_unregister_from(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    assert cli.main(["unregister"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_unregister_does_not_mind_the_version(install, capsys):
    root = install("2.5.1")
    cli.register.register(root)
    assert cli.main(["unregister"]) == 0
    assert not list(root.rglob("nnunet_deconver*"))


def test_unknown_version_is_refused(install, monkeypatch):
    install("2.8.1")
    monkeypatch.setattr(installation, "installed_version", lambda distribution: None)
    with pytest.raises(InputError, match="unknown version"):
        installation.require_nnunetv2()


def test_remains_of_an_uninstalled_nnunetv2_are_recognised(install):
    root = install("2.8.1")
    (root / "__init__.py").unlink()
    with pytest.raises(InputError, match="nnunet-deconver unregister"):
        installation.require_nnunetv2()
