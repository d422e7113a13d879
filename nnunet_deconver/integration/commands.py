"""nnU-Net's commands: where they are, and how one ends with all that it started."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress

from nnunet_deconver.errors import InputError


def program_folders() -> tuple[str, ...]:
    """Where nnU-Net's commands are: beside this Python first, as a virtual environment need not be activated."""
    return os.path.dirname(sys.executable), sysconfig.get_path("scripts"), os.environ.get("PATH", "")


def find_program(name: str) -> str:
    """The path of a command of nnU-Net's; a path stays as it is.

    Raises:
        InputError: if it is not installed.
    """
    program = shutil.which(name, path=os.pathsep.join(program_folders()))
    if program is None:
        raise InputError(f"{name} is not installed beside {sys.executable}; reinstall nnunetv2")
    return program


def end_group(process: subprocess.Popen) -> None:
    """Ends the process group that a process leads: loaders of nnU-Net run on when it is gone."""
    with suppress(ProcessLookupError, PermissionError):  # none is left
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
