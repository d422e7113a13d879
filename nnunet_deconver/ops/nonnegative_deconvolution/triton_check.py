"""The check of the Triton kernels before their first use, and what becomes of them where they fail.

A kernel that compiles elsewhere may fail here: a header or a driver library is missing, a compiler has a defect, a new
GPU lies beyond what this version of Triton knows. So a process tries the kernels once for each kind of problem, forward
and backward, on a device: on a tiny fixed problem, whose results are compared with the equations in float64. If they
raise, or are wrong, a warning says so, and the device takes the plain path for the rest of the process. Training and
prediction go on.

All of this happens within the operations of `triton_update`, when they run. torch.compile sees nothing of it, and each
process of a distributed training decides for itself: both paths compute the same function.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from nnunet_deconver.ops.device import is_planned
from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import (
    differentiate_plain,
    nonnegative_deconvolution_plain,
)
from nnunet_deconver.ops.nonnegative_deconvolution.triton_machine import use_writable_cache

_LOGGER = logging.getLogger(__name__)
Result = TypeVar("Result")


class _Kind(NamedTuple):
    """Problems that the same kernels compute."""

    device: torch.device
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]  # of x, source, filter
    channels: int  # of a group
    kernel: tuple[int, ...]
    sources: int  # of a group


# Kinds that were tried, and why kernels were given up, by device.
_tried: set[_Kind] = set()
_failures: dict[torch.device, str] = {}


def guarded(
    kernels: Callable[[], Result], plain: Callable[[], Result], x: Tensor, source: Tensor, filter: Tensor, groups: int
) -> Result:
    """`kernels()`, or `plain()` where the kernels do not work.

    Args:
        kernels: computes something of the problem.
        plain: computes the same without kernels.
        x: (B, C, *S), of the problem, as the following.
        source: (B, E, *S).
        filter: (C, E / groups, *k).
        groups: number of groups.
    """
    if failure(x, source, filter, groups) is None:
        try:
            return kernels()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            _give_up(x.device, _described(error))
    return plain()


def failure(x: Tensor, source: Tensor, filter: Tensor, groups: int) -> str | None:
    """Why the kernels do not work for a problem; None where they do. The first call for a kind of problem tries them.

    Args:
        x: (B, C, *S), as `guarded`, and so the following.
        source: likewise.
        filter: likewise.
        groups: likewise.
    """
    if is_planned(x):
        return None
    dtypes = (x.dtype, source.dtype, filter.dtype)
    kind = _Kind(x.device, dtypes, x.shape[1] // groups, tuple(filter.shape[2:]), filter.shape[1])
    if kind not in _tried and x.device not in _failures and not _records(x.device):
        try:
            wrong = _what_is_wrong(kind)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            wrong = _described(error)
        if wrong is not None:
            _give_up(x.device, wrong)
        _tried.add(kind)
    return _failures.get(x.device)


def _records(device: torch.device) -> bool:
    """Whether launches are recorded as a graph, which has no results yet."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _give_up(device: torch.device, wrong: str) -> None:
    _failures[device] = f"its kernels were tried on {device} and do not work: {wrong}"
    _LOGGER.warning(
        f"nonnegative deconvolution on {device} takes the slower plain path from now on: its Triton kernels were tried "
        f"and do not work ({wrong}). Triton needs a C compiler, Python's headers, the driver's libcuda and a GPU that "
        "this version of it knows; with NNUNET_DECONVER_BACKEND=triton the kernels run all the same and show the whole "
        "error, with NNUNET_DECONVER_BACKEND=plain they are not tried."
    )


def _described(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _what_is_wrong(kind: _Kind) -> str | None:
    """Computes the fixed problem of a kind with the kernels and without; returns how the results differ."""
    from nnunet_deconver.ops.nonnegative_deconvolution import triton_kernels

    use_writable_cache()
    tensors = _fixed_problem(kind)
    options = {"groups": 1, "eps": 1e-8}
    x, source, filter, gradient = (tensor.double() for tensor in tensors)
    expected = [
        nonnegative_deconvolution_plain(x, source, filter, **options),
        *differentiate_plain(gradient, x, source, filter, **options),
    ]
    x, source, filter, gradient = (tensor.to(kind.device) for tensor in tensors)
    found = [
        triton_kernels.update(x, source, filter, *options.values()),
        *triton_kernels.differentiate(gradient, x, source, filter, *options.values()),
    ]
    names = ("the result", "the gradient of x", "the gradient of the source", "the gradient of the filter")
    for name, ours, exact in zip(names, found, expected, strict=True):
        # Rounding to its dtype, and that of sums in float32.
        allowed = torch.finfo(ours.dtype).eps + 1e-5
        distance = ((ours.cpu().double() - exact).norm() / exact.norm()).item()
        if not distance <= allowed:  # NaN is wrong, too
            return f"{name} differs by {distance:.1e} of its size, and may by {allowed:.1e}"
    return None


def _fixed_problem(kind: _Kind) -> list[Tensor]:
    """x, source, filter and the gradient of the result, on a CPU: numbers of about one, one group."""
    generator = torch.Generator("cpu").manual_seed(0)
    size = [k + 1 for k in kind.kernel]
    x_dtype, source_dtype, filter_dtype = kind.dtypes

    def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64, device="cpu").add(0.5).to(dtype)

    return [
        numbers(1, kind.channels, *size, dtype=x_dtype),
        numbers(1, kind.sources, *size, dtype=source_dtype),
        numbers(kind.channels, kind.sources, *kind.kernel, dtype=filter_dtype),
        numbers(1, kind.sources, *size, dtype=source_dtype) - 1,
    ]
