"""What computes nonnegative deconvolution: the one place where that is chosen."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_deconver.ops.device import device_type
from nnunet_deconver.ops.nonnegative_deconvolution import cpu_update, triton_update
from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import nonnegative_deconvolution_plain
from nnunet_deconver.ops.nonnegative_deconvolution.reference import check_arguments

_LOGGER = logging.getLogger(__name__)


class Backend(NamedTuple):
    """A way to compute the operation."""

    run: Callable[..., Tensor]  # takes the public function's arguments, checked
    obstacle: Callable[..., str | None]  # takes those before eps by position; None where `run` can compute them


BACKENDS = {
    "plain": Backend(nonnegative_deconvolution_plain, lambda x, source, filter, groups, iterations: None),
    "cpu": Backend(cpu_update.nonnegative_deconvolution_cpu, cpu_update.obstacle),
    "triton": Backend(triton_update.nonnegative_deconvolution_triton, triton_update.obstacle),
}
# By type of device; "plain" elsewhere, and where the preferred one meets an obstacle.
PREFERRED = {"cpu": "cpu", "cuda": "triton"}


def nonnegative_deconvolution(
    x: Tensor,
    source: Tensor,
    filter: Tensor,
    *,
    groups: int = 1,
    iterations: int = 1,
    eps: float = 1e-8,
    backend: str | None = None,
) -> Tensor:
    """Multiplicative updates of the source in `x ~ source (*) filter`, arXiv 2504.00302, eq. (1) and (3).

    `S <- S * (X (*) V^- + eps) / ((S (*) V) (*) V^- + eps)`, `iterations` times, per group.

    Args:
        x: (B, C, *S), nonnegative, 1 to 3 spatial axes.
        source: (B, E, *S), nonnegative, the source to start from.
        filter: (C, E / groups, *k), nonnegative, odd k.
        groups: number of groups the channels are split into.
        iterations: number of updates.
        eps: added to numerator and denominator.
        backend: "plain", PyTorch's convolutions; "cpu", compiled kernels for a group per channel; "triton", fused
            kernels for CUDA devices (both without second derivatives); None for the fastest that can compute it.

    Returns:
        The updated source, (B, E, *S), in the dtype of `source`, computed in float32 at least. Values that
        float16 cannot hold become its largest finite value.

    Raises:
        ValueError: if shapes do not fit, a kernel is even, groups do not divide, or for a backend that is unknown or
            cannot compute this.
    """
    check_arguments(x, source, filter, groups, iterations, eps)
    if backend is None:
        backend = _choose(x, source, filter, groups, iterations)
    elif backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or None, got {backend!r}")
    elif (obstacle := BACKENDS[backend].obstacle(x, source, filter, groups, iterations)) is not None:
        raise ValueError(f"backend {backend!r} cannot compute this: {obstacle}; backend = None chooses one that can")
    return BACKENDS[backend].run(x, source, filter, groups=groups, iterations=iterations, eps=eps)


def fuses_projections(x: Tensor, weight: Tensor, filter: Tensor, groups: int, iterations: int) -> bool:
    """Whether `cpu_update.projected_deconvolution` is the fastest for a source that a pointwise projection makes.

    Args:
        x: see `nonnegative_deconvolution`, as for the others.
        weight: of the projection.
        filter: as said.
        groups: as said.
        iterations: as said.
    """
    return (
        PREFERRED.get(device_type(x)) == "cpu"
        and x.dtype == weight.dtype == filter.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and cpu_update.obstacle(x, weight, filter, groups, iterations) is None
    )


def _choose(x: Tensor, source: Tensor, filter: Tensor, groups: int, iterations: int) -> str:
    device = device_type(x)
    preferred = PREFERRED.get(device)
    if preferred is None:
        return "plain"
    obstacle = BACKENDS[preferred].obstacle(x, source, filter, groups, iterations)
    if obstacle is None:
        return preferred
    _say_once(f"nonnegative deconvolution on {device} takes the slower plain path: {obstacle}")
    return "plain"


_said = set()


# torch.compile calls this while it traces, rather than trace the logging.
@torch.compiler.assume_constant_result
def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _LOGGER.warning(message)
