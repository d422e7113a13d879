"""Files in the installed nnunetv2 through which nnU-Net finds this package's classes.

nnU-Net looks for a class by importing the modules in its own folders one after the other. One module that re-exports
ours is therefore enough, and it stays valid when either package is upgraded.
"""

import os
from contextlib import ExitStack, suppress
from pathlib import Path

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import remove_unfinished, written_whole
from nnunet_deconver.integration.trainers import export_line

# (folder in nnunetv2 that nnU-Net searches, file written there, module it re-exports, what of it beside `__all__`)
TARGETS = (
    ("training/nnUNetTrainer", "nnunet_deconver_trainers.py", "nnunet_deconver.trainers", ["__getattr__"]),
    ("experiment_planning/experiment_planners", "nnunet_deconver_planners.py", "nnunet_deconver.plans", []),
)

# The first line of every file written. Files that begin otherwise are somebody else's and never touched, so this line
# must not change between versions.
MARKER = "# Written by `nnunet-deconver register`; remove it with `nnunet-deconver unregister`.\n"

TEMPLATE = '''"""Lets nnU-Net find the classes of {module}."""

try:
    {imports}
except ModuleNotFoundError as error:
    # nnU-Net imports this file in any search for a class: once nnunet-deconver is uninstalled, it has to be empty
    # rather than fail. Whatever else is missing is an error to be seen.
    if error.name not in ("nnunet_deconver", "{module}"):
        raise
'''


def registration(root: Path) -> list[tuple[Path, str, str]]:
    """What is registered in an nnunetv2.

    Args:
        root: folder of the package nnunetv2.

    Returns:
        For each file to be written its path, its text, and its state: "missing", "current", "outdated" (written by
        another version of this package) or "foreign" (not written by this package).
    """
    files = []
    for folder, name, module, further in TARGETS:
        imports = "\n    ".join(f"from {module} import {names}  # noqa: F401, F403" for names in ["*", *further])
        path, text = root / folder / name, MARKER + TEMPLATE.format(module=module, imports=imports)
        if not os.path.lexists(path):
            state = "missing"
        else:
            found = path.read_bytes() if path.is_file() else b""
            ours = found.startswith(MARKER.encode())
            state = "foreign" if not ours else "current" if found == text.encode() else "outdated"
        files.append((path, text, state))
    return files


def register(root: Path) -> list[Path]:
    """Writes the files through which nnU-Net finds this package's classes.

    Args:
        root: folder of the package nnunetv2.

    Returns:
        The files written; those already current are left alone.

    Raises:
        InputError: if a file cannot be written, or one that is not ours has its name. Nothing is half-written.
    """
    files = registration(root)
    for path, _, state in files:
        if state == "foreign":
            raise InputError(f"{path} was not written by nnunet-deconver; move it away, then register again")
        if not path.parent.is_dir():
            raise InputError(f"nnunetv2 at {root} is incomplete: it has no folder {path.parent}; reinstall it")
    outdated = [(path, text) for path, text, state in files if state != "current"]
    folder = root
    try:
        # All are written before the first takes its name: where one folder is not ours, nothing is changed. And not
        # named *.py until then: a search of nnU-Net that runs meanwhile must not import them.
        with ExitStack() as stack:
            for path, text in outdated:
                folder = path.parent
                stack.enter_context(written_whole(path, "wb")).write(text.encode())
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror or error}); without registering, run: {export_line()}"
        ) from error
    return [path for path, _ in outdated]


def unregister(root: Path) -> list[Path]:
    """Removes what `register` wrote, with its bytecode, and nothing else.

    Args:
        root: folder of the package nnunetv2.

    Returns:
        The files removed; bytecode, and what a killed `register` left, are not listed.

    Raises:
        InputError: if a file cannot be removed.
    """
    removed = []
    for path, _, state in registration(root):
        if state == "foreign":
            continue
        try:
            remove_unfinished(path.parent, path.name)  # of a `register` that was killed
            # Bytecode of every Python that imported the file, not just of this one.
            for bytecode in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
                bytecode.unlink(missing_ok=True)
            if state != "missing":
                path.unlink(missing_ok=True)
                removed.append(path)
        except OSError as error:
            raise InputError(f"cannot remove {path} ({error.strerror or error})") from error
        _remove_empty_folders(path.parent, root)
    return removed


def _remove_empty_folders(folder: Path, root: Path) -> None:
    # If nnunetv2 was uninstalled before us, its folders were kept for our file's sake, and Python would go on taking
    # them for a package. In an installed nnunetv2 none of them is empty.
    with suppress(OSError):
        (folder / "__pycache__").rmdir()
    with suppress(OSError):  # ends at the first folder that is not empty
        while folder.is_relative_to(root):
            folder.rmdir()
            folder = folder.parent
