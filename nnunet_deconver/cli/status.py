"""`nnunet-deconver status`: what is installed where, and whether nnU-Net finds this package's trainers."""

import argparse
import logging
import os
import platform
import traceback
from collections.abc import Iterator
from pathlib import Path

import nnunet_deconver
from nnunet_deconver.errors import InputError
from nnunet_deconver.integration.installation import installed_version, nnunetv2_folders, nnunetv2_problem
from nnunet_deconver.integration.registration import registration
from nnunet_deconver.integration.trainers import (
    VARIABLE,
    export_line,
    external_folders,
    search_trainer,
    shim_folder,
)

VARIABLES = {
    "nnUNet_raw": "the raw datasets; planning and preprocessing need it",
    "nnUNet_preprocessed": "preprocessed data and plans; planning, preprocessing and training need it",
    "nnUNet_results": "trained models; training and prediction need it",
    VARIABLE: "folders with more trainers; only for trainers that are not registered",
}

STATES = {
    "missing": "no, {path.name} is missing (to add it, run: nnunet-deconver register)",
    "current": "yes: {path}",
    "outdated": "by another version of nnunet-deconver (to update, run: nnunet-deconver register): {path}",
    "foreign": "no; a file not written by nnunet-deconver is in the way: {path}",
}

# Any of the trainers would do: nnU-Net finds all or none.
TRAINER = "nnUNetTrainerDeconver"


def ask_nnunet(name: str) -> type | BaseException:
    """The trainer that nnU-Net finds, or the exception that its search ended in."""
    try:
        return search_trainer(name)
    except InputError as error:
        return error.__cause__ or error


def is_ours(found: type | BaseException | None) -> bool:
    """Whether what `ask_nnunet` returned is a class of this package."""
    return isinstance(found, type) and found.__module__.split(".")[0] == nnunet_deconver.__name__


def remedy(found: type | BaseException, root: Path) -> str:
    """What to do when nnU-Net does not find this package's trainers.

    Args:
        found: what nnU-Net found instead, from `ask_nnunet`.
        root: folder of the package nnunetv2.
    """
    files = registration(root)
    states = {state for _, _, state in files}
    registered = states == {"current"}
    can_register = "foreign" not in states and all(os.access(path.parent, os.W_OK) for path, _, _ in files)
    exported = shim_folder() in [folder.resolve() for folder in external_folders()]
    if isinstance(found, BaseException) and (registered or exported):
        place = traceback.extract_tb(found.__traceback__)[-1]
        return f"mend the error above, which nnU-Net meets in {place.filename}, line {place.lineno}"
    if can_register and not registered:
        return "run: nnunet-deconver register"
    if not registered and not exported:
        return f"run: {export_line()}"
    return f"rename or remove the other {TRAINER}, in {found.__module__}: nnU-Net comes to it first"


def report(problem: str | None, found: type | BaseException | None) -> Iterator[str]:
    """The lines to print, without the verdict.

    Args:
        problem: from `nnunetv2_problem`.
        found: from `ask_nnunet`; None if nnU-Net was not asked.
    """

    def line(label: str, value: str) -> str:
        return f"{label:<20} {value}"

    folders = nnunetv2_folders()
    yield line("python", platform.python_version())
    yield line("nnunet-deconver", f"{nnunet_deconver.__version__} at {Path(nnunet_deconver.__file__).parent}")
    version = installed_version("nnunetv2") or "version unknown"
    yield line("nnunetv2", f"{version} at {folders[0]}" if folders else "not installed")
    for label, value in _devices():
        yield line(label, value)
    if folders:
        for path, _, state in registration(folders[0]):
            yield line("registered", STATES[state].format(path=path))
    for name, purpose in VARIABLES.items():
        yield line(name, _variable(name, purpose))
    if problem:
        yield line("nnU-Net finds", "not asked")
    elif isinstance(found, type):
        yield line("nnU-Net finds", f"{found.__name__} in {found.__module__}")
    else:
        yield line("nnU-Net finds", f"no {TRAINER}: {type(found).__name__}: {found}")


def _devices() -> Iterator[tuple[str, str]]:
    """PyTorch, Triton, and what computes Deconver's update on each device, by label."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        yield "torch", f"cannot be imported: {error}"
        return
    from nnunet_deconver.ops.cpu_kernels import compiled_kernels

    yield "torch", torch.__version__
    yield "triton", installed_version("triton") or "not installed"
    yield (
        "CPU kernels",
        ", ".join(compiled_kernels())
        or "none, a CPU computes Deconver slowly (to make them, install a C compiler, then this package again)",
    )
    yield "cpu", _path("cpu")
    if not torch.cuda.is_available():
        yield "CUDA device", "none"
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        name = f"{device.name}, compute capability {device.major}.{device.minor}, {device.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{number}", f"{name}; {_path(f'cuda:{number}')}"


def _path(device: str) -> str:
    """What computes Deconver's update on a device, tried there, and why nothing faster does."""
    from nnunet_deconver.ops import explain_backend

    try:
        # What the log would say is said here.
        logging.disable(logging.WARNING)
        path, obstacle = explain_backend(device)
    # A driver or a device can be at fault in any way, and so can a variable.
    except Exception as error:
        return f"cannot compute Deconver: {error}"
    finally:
        logging.disable(logging.NOTSET)
    return f"computes Deconver by the path {path!r}" + (f" and no faster one: {obstacle}" if obstacle else "")


def _variable(name: str, purpose: str) -> str:
    value = os.environ.get(name)
    if not value:
        return f"not set ({purpose})"
    folders = external_folders() if name == VARIABLE else [Path(value)]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    return f"{value} (no such folder: {', '.join(missing)})" if missing else value


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `status`."""
    parser = subparsers.add_parser(
        "status",
        help="show what is installed and whether nnU-Net finds the trainers",
        description="Shows versions, folders and variables, and asks nnU-Net for a trainer of this package. "
        "Exits with 1, and says what to do, if nnU-Net would not find it.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the report; returns 0 if nnU-Net finds this package's trainers, else 1."""
    problem = nnunetv2_problem()
    found = None if problem else ask_nnunet(TRAINER)
    print("\n".join(report(problem, found)))
    if is_ours(found):
        print("\nnnU-Net finds the trainers of nnunet-deconver.")
        return 0
    print("\nnnU-Net does not find the trainers of nnunet-deconver.")
    print(problem if found is None else remedy(found, nnunetv2_folders()[0]))
    return 1
