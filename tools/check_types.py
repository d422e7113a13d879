"""Checks the types of the package, the tools and the examples with basedpyright, and says what is wrong.

    python tools/check_types.py

A checker finds `nnunet_deconver.plans` and `nnunet_deconver.trainers` where they are installed, not where they lie in
this repository. So it looks at a copy that is laid out as the package is installed; its settings are in pyproject.toml.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Folders of the repository, and where they lie for the checker.
LAYOUT = {
    "nnunet_deconver": "nnunet_deconver",
    "plans": "nnunet_deconver/plans",
    "trainers": "nnunet_deconver/trainers",
    "tools": "tools",
    "examples": "examples",
}


def lay_out(folder: Path) -> None:
    """Copies what is checked into a folder, and the settings."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for source, target in LAYOUT.items():
        shutil.copytree(ROOT / source, folder / target, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)


def in_repository(path: Path) -> Path:
    """Where a file of the copy comes from, both relative."""
    for source, target in reversed(LAYOUT.items()):
        if path.is_relative_to(target):
            return source / path.relative_to(target)
    return path


def main() -> int:
    """Prints a line for each finding; returns 1 if there are any."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        lay_out(folder)
        command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
        finished = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, encoding="utf-8")
        report = json.loads(finished.stdout)
        for found in report["generalDiagnostics"]:
            path = in_repository(Path(found["file"]).resolve().relative_to(folder))
            start = found["range"]["start"]
            rule = f" [{found['rule']}]" if "rule" in found else ""
            print(f"{path}:{start['line'] + 1}:{start['character'] + 1}: {found['message']}{rule}")
    summary = report["summary"]
    print(f"{summary['filesAnalyzed']} files checked, {summary['errorCount']} errors")
    return finished.returncode


if __name__ == "__main__":
    sys.exit(main())
