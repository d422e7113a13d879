"""Kernels in C for CPUs, compiled when the package is installed: a library for each set of instructions.

They know nothing of PyTorch, and take addresses and sizes.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Of the kernels' functions, see `interface` there: in a clone that is installed editable the compiled may be older.
_INTERFACE = 3
_FOLDER = Path(__file__).parent
_INSTRUCTIONS = {"AVX512": {16: "avx512", 8: "avx2"}, "AVX2": {8: "avx2"}}
WHOLE = ctypes.c_longlong
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
# Each function of the kernels: what it returns (None is C's void), then its arguments.
_FUNCTIONS = {
    "interface": [_INT],
    "update": [_INT, *[_POINTER] * 3, _INT],
    "differentiate_update": [_INT, *[_POINTER] * 11, _INT],
    "multiply": [None, *[_POINTER] * 4, *[WHOLE] * 3, _INT, _INT],
    "add_gradients": [_INT, *[_POINTER] * 4, *[WHOLE] * 3, _INT],
    "sample": [None, *[_POINTER] * 4, _INT],
    "differentiate_sample": [None, *[_POINTER] * 6, _INT],
}
# A library as its functions alone, by name: none can be called but with the types above.
Library = dict[str, Callable]


def _instructions() -> dict[int, str]:
    """Sets of instructions of this processor, by the channels that kernels compute at once with them, most first."""
    return _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), {4: "default"})


def compiled_kernels() -> list[str]:
    """Names of the sets of instructions for which there are kernels that this processor can run."""
    return [_instructions()[lanes] for lanes in libraries()]


@functools.cache
def libraries() -> dict[int, Library]:
    """The kernels that this processor can run, by the channels that they compute at once, most first."""
    found = {}
    for lanes, name in _instructions().items():
        # They find OpenMP's threads there already: PyTorch's, as long as it names its OpenMP as the system's is named.
        try:
            library = ctypes.CDLL(str(_FOLDER / f"kernels_{name}.so"))
        except OSError:
            continue
        if _function(library, "interface")() == _INTERFACE:
            found[lanes] = {function: _function(library, function) for function in _FUNCTIONS}
    return found


def _function(library: ctypes.CDLL, name: str) -> Callable:
    return ctypes.CFUNCTYPE(*_FUNCTIONS[name])((name, library))


def library(channels: int) -> Library | None:
    """The fastest kernels for so many channels; None if there are none."""
    return next((library for lanes, library in libraries().items() if channels % lanes == 0), None)


def call(function: Callable, *arguments: object) -> None:
    """Calls a kernel with as many threads as PyTorch has.

    Args:
        function: of a library.
        arguments: its own without the last; a tensor, float32 and contiguous, for an address.

    Raises:
        MemoryError: if there is none for its intermediate results.
    """
    values = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    if function(*values, torch.get_num_threads()):
        raise MemoryError("no memory for the sums of each thread")


def is_real(tensor: Tensor) -> bool:
    """Whether a tensor has numbers to be computed with now: it is not traced, compiled or counted."""
    return not (
        type(tensor) not in (Tensor, torch.nn.Parameter)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] documented, but not exported
        or is_in_torch_dispatch_mode()
    )
