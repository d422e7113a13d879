"""The house keeps its order: imports point one way, and nnU-Net is known to trainers and plans alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "ops": ROOT / "nnunet_deconver" / "ops",
    "layers": ROOT / "nnunet_deconver" / "layers",
    "networks": ROOT / "nnunet_deconver" / "networks",
    "evaluation": ROOT / "nnunet_deconver" / "evaluation",
    "plans": ROOT / "plans",
    "trainers": ROOT / "trainers",
    "shim": ROOT / "nnunet_deconver" / "shim",
    "submission": ROOT / "nnunet_deconver" / "submission",
    "cli": ROOT / "nnunet_deconver" / "cli",
}
# What the modules of a folder may import of this package, besides their own folder.
MAY_IMPORT = {
    "ops": set(),
    "layers": {"ops"},
    "networks": {"ops", "layers"},
    "evaluation": set(),
    "plans": {"ops", "layers", "networks"},
    "trainers": {"ops", "layers", "networks"},
    "shim": {"trainers"},
    "submission": {"shim", "ops", "layers"},
    "cli": {"ops", "layers", "networks", "evaluation", "plans", "trainers", "shim", "submission"},
}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            modules.add(node.module)
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return modules


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder):
    paths = list(FOLDERS[folder].rglob("*.py"))
    assert paths
    for path in paths:
        imported = imported_modules(path)
        parts = {module.split(".")[1] for module in imported if module.startswith("nnunet_deconver.")}
        assert (parts & FOLDERS.keys()) <= MAY_IMPORT[folder] | {folder}, path
        if folder in ("ops", "layers", "networks"):
            assert not any(module.split(".")[0] == "nnunetv2" for module in imported), path


def test_every_package_is_listed_for_installation():
    """Packages are named one by one in pyproject.toml; a forgotten one is missing from the wheel alone."""
    text = (ROOT / "pyproject.toml").read_text()
    packages = [path.parent for path in (ROOT / "nnunet_deconver").rglob("__init__.py")]
    names = [".".join(path.relative_to(ROOT).parts) for path in packages]
    for name in [*names, "nnunet_deconver.plans", "nnunet_deconver.trainers"]:
        assert f'"{name}"' in text, name
