"""tools/check_types.py sees the package as it is installed, and names files as they lie in the repository."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def check_types(tmp_path, monkeypatch):
    specification = importlib.util.spec_from_file_location("check_types", ROOT / "tools" / "check_types.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    # A repository with a file in each folder.
    for name in module.LAYOUT:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "plans" / "sizes.py").write_text("def size() -> int:\n    return 1\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_what_fits_passes(check_types, tmp_path, capsys):
    (tmp_path / "examples" / "use.py").write_text(
        "from nnunet_deconver.plans.sizes import size\n\nnumber: int = size()\n"
    )
    assert check_types.main() == 0
    assert capsys.readouterr().out.endswith(" 0 errors\n")


def test_a_wrong_type_is_found_across_the_folders_and_named_by_its_place_in_the_repository(
    check_types, tmp_path, capsys
):
    (tmp_path / "trainers" / "use.py").write_text(
        "from nnunet_deconver.plans.sizes import size\n\ntext: str = size()\n"
    )
    assert check_types.main() == 1
    found, summary = capsys.readouterr().out.split("\n", 1)
    assert found.startswith(f"{Path('trainers', 'use.py')}:3:13: ")
    assert found.endswith("[reportAssignmentType]") or "[reportAssignmentType]" in summary
    assert summary.endswith(", 1 errors\n")
