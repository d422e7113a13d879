"""Whether this machine can run Triton's kernels, asked before any is launched.

Triton compiles a small C program at the first launch, so it needs a C compiler and Python's headers beside a GPU that
it supports, and a folder to keep what it compiled. What cannot be asked this way is found by `triton_check`.
"""

import atexit
import functools
import logging
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

try:
    import triton  # pyright: ignore[reportMissingImports] there is none for some systems
except ImportError:
    triton = None

_LOGGER = logging.getLogger(__name__)

# Tuples as arguments of kernels.
MINIMUM_TRITON = (3, 3)
# Triton's maintainers support no older one; 3.3 dropped it.
MINIMUM_CAPABILITY = (8, 0)
# Triton reads this when it is imported; its interpreter then runs kernels on a CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _triton_obstacle() -> str | None:
    if triton is None:
        return "triton is not installed"
    if tuple(map(int, triton.__version__.split(".")[:2])) < MINIMUM_TRITON:
        return f"triton is {triton.__version__} and must be {'.'.join(map(str, MINIMUM_TRITON))} or later"
    return None


# Why the installed Triton cannot be used; None where it can.
TRITON_OBSTACLE = _triton_obstacle()


@functools.cache
def machine_obstacle(device: torch.device | str) -> str | None:
    """Why Triton's kernels cannot run on a CUDA device of this machine, and what to do; None where they can.

    Args:
        device: such as "cuda:0".
    """
    if TRITON_OBSTACLE is not None:
        return TRITON_OBSTACLE
    if torch.version.hip is not None:
        return "PyTorch is built for ROCm, and the kernels are for CUDA"
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        return (
            f"the GPU has compute capability {capability[0]}.{capability[1]}, and Triton supports "
            f"{'.'.join(map(str, MINIMUM_CAPABILITY))} and later"
        )
    # Elsewhere Triton brings a compiler along.
    if sys.platform == "linux" and not _has_own_builder():
        if _compiler() is None:
            found = f"CC names {os.environ['CC']}, which is none" if "CC" in os.environ else "there is no gcc or clang"
            return f"Triton needs a C compiler, and {found}; install gcc, or set CC to a compiler"
        if not (_python_headers() / "Python.h").is_file():
            return (
                f"Triton needs Python's C headers, and {_python_headers()} has no Python.h; install them "
                "(Debian and Ubuntu: python3-dev)"
            )
    if _writable(_cache_folder()) or _temporary_folder() is not None:
        return None
    return (
        f"Triton cannot keep what it compiles: neither its cache folder {_cache_folder()} nor a temporary folder can "
        "be written; set TRITON_CACHE_DIR to a folder that can"
    )


@functools.cache
def use_writable_cache() -> None:
    """Has Triton keep what it compiles in a temporary folder, if it cannot write to its cache folder."""
    folder = _cache_folder()
    if INTERPRETED or _writable(folder) or _temporary_folder() is None:
        return
    # A new one, which nobody else can have put anything into.
    replacement = tempfile.mkdtemp(prefix="triton-")
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(replacement, ignore_errors=True))
    os.environ["TRITON_CACHE_DIR"] = replacement
    _LOGGER.warning(
        f"Triton's cache folder {folder} cannot be written: kernels are compiled into {replacement}, anew in each "
        "process; set TRITON_CACHE_DIR to a folder that can be written"
    )


def _has_own_builder() -> bool:
    # A function that a program may set, in Triton from 3.4 on.
    knobs = getattr(triton, "knobs", None)
    return getattr(getattr(knobs, "build", None), "impl", None) is not None


def _compiler() -> str | None:
    """Where Triton looks for a C compiler."""
    if (named := os.environ.get("CC")) is not None:
        return shutil.which(named)
    return shutil.which("gcc") or shutil.which("clang")


def _python_headers() -> Path:
    scheme = sysconfig.get_default_scheme()
    # As Triton does: Debian's own scheme names a folder that holds packages, not headers.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme=scheme)["include"])


def _cache_folder() -> Path:
    named = os.environ.get("TRITON_CACHE_DIR", "").strip()
    return Path(named or os.path.join(os.environ.get("TRITON_HOME") or os.path.expanduser("~/"), ".triton", "cache"))


def _writable(folder: Path | str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _temporary_folder() -> str | None:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return None
