"""The house keeps its order: imports point one way, and nnU-Net is known to trainers and plans alone."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "nnunet_deconver"
FOLDERS = {
    "plans": ROOT / "plans",
    "trainers": ROOT / "trainers",
    **{path.parent.name: path.parent for path in sorted(HOUSE.glob("*/__init__.py"))},
}
CORE = {"ops", "layers", "networks"}
# What the modules of a folder may import of this package, besides their own folder, `errors` and `files`.
MAY_IMPORT = {
    "ops": set(),
    "layers": {"ops"},
    "networks": {"ops", "layers"},
    "plans": CORE,
    "trainers": CORE | {"integration"},
    "shim": {"trainers"},
    "studies": CORE | {"plans", "trainers", "integration", "metrics", "models", "figures", "shim"},
    "integration": set(),
    "metrics": {"integration"},
    "models": CORE | {"plans", "trainers", "integration"},
    "figures": CORE | {"plans", "integration", "metrics", "models"},
    "submission": CORE | {"shim", "trainers", "integration", "models"},
    "demo": CORE | {"shim", "trainers", "integration", "models", "figures"},
    "cli": CORE | {"plans", "trainers", "integration", "metrics", "models", "figures", "submission", "studies", "demo"},
}


def imported_modules(path: Path, at_run_time: bool = False) -> set[str]:
    modules, tree = set(), ast.parse(path.read_text())
    if at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
    for node in ast.walk(tree):
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
        if folder in CORE:
            assert not any(module.split(".")[0] == "nnunetv2" for module in imported), path


def test_no_command_imports_another():
    commands = {path.stem for path in FOLDERS["cli"].glob("*.py") if "def add_parser" in path.read_text()}
    assert len(commands) == 14
    for path in FOLDERS["cli"].glob("*.py"):
        imported = {
            module.split(".")[-1] for module in imported_modules(path) if module.startswith("nnunet_deconver.cli.")
        }
        assert path.stem == "__init__" or not imported & commands, path


def test_commands_are_short():
    assert sum(len(path.read_text().splitlines()) for path in FOLDERS["cli"].glob("*.py")) < 2000


def test_imports_run_in_no_circle():
    files = {}
    for name, folder in {"": HOUSE, "plans": FOLDERS["plans"], "trainers": FOLDERS["trainers"]}.items():
        for path in folder.rglob("*.py"):
            parts = ["nnunet_deconver", *([name] if name else []), *path.relative_to(folder).with_suffix("").parts]
            files[".".join(parts).removesuffix(".__init__")] = path
    # Imports within functions count, those for the checker of types do not. A package imports its modules, which may
    # import each other by way of it.
    left = {
        name: {
            module
            for module in imported_modules(path, at_run_time=True)
            if module in files and module != name and not name.startswith(f"{module}.")
        }
        for name, path in files.items()
    }
    while ends := {name for name, imports in left.items() if not imports}:
        left = {name: imports - ends for name, imports in left.items() if name not in ends}
    assert not left


def test_no_private_name_is_used_across_files():
    for folder in FOLDERS.values():
        for path in folder.rglob("*.py"):
            private = [
                module
                for module in imported_modules(path)
                if module.startswith("nnunet_deconver")
                and any(part.startswith("_") and not part.endswith("__") for part in module.split("."))
            ]
            assert not private, path


def test_every_package_is_listed_for_installation():
    """Packages are named one by one in pyproject.toml; a forgotten one is missing from the wheel alone."""
    text = (ROOT / "pyproject.toml").read_text()
    packages = [path.parent for path in (ROOT / "nnunet_deconver").rglob("__init__.py")]
    names = [".".join(path.relative_to(ROOT).parts) for path in packages]
    for name in [*names, "nnunet_deconver.plans", "nnunet_deconver.trainers"]:
        assert f'"{name}"' in text, name


def test_the_map_of_the_readme_names_files_that_exist():
    lines = (ROOT / "README.md").read_text().partition("## Where things are")[2].partition("\n## ")[0].splitlines()
    rows = [line.split("|")[2] for line in lines if line.startswith("| ") and not line.startswith("| ---")][1:]
    assert len(rows) > 15
    for row in rows:
        folder = None
        for name in re.findall(r"`([^`]+)`", row):
            candidates = [ROOT / name, HOUSE / name, *([folder / name] if folder else [])]
            found = next((path for path in candidates if path.exists() or list(path.parent.glob(path.name))), None)
            assert found, name
            folder = found.parent
