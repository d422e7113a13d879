"""What computes nonnegative deconvolution: the one place where that is chosen."""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_deconver.ops.device import device_type, is_planned, policy
from nnunet_deconver.ops.nonnegative_deconvolution import cpu_update, triton_check, triton_update
from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import nonnegative_deconvolution_plain
from nnunet_deconver.ops.nonnegative_deconvolution.reference import check_arguments

_LOGGER = logging.getLogger(__name__)


class Backend(NamedTuple):
    """A way to compute the operation.

    Attributes:
        run: takes the public function's arguments, checked.
        obstacle: takes those before eps by position; None where `run` can compute them.
        machine_obstacle: takes a device; None where this machine can run it there.
        careful: `run`, for when nobody asked for it by name: gives way to another where it fails.
    """

    run: Callable[..., Tensor]
    obstacle: Callable[..., str | None]
    machine_obstacle: Callable[[torch.device], str | None] = lambda device: None
    careful: Callable[..., Tensor] | None = None


BACKENDS = {
    "plain": Backend(nonnegative_deconvolution_plain, lambda x, source, filter, groups, iterations: None),
    "cpu": Backend(cpu_update.nonnegative_deconvolution_cpu, cpu_update.obstacle),
    "triton": Backend(
        triton_update.nonnegative_deconvolution_triton,
        triton_update.obstacle,
        triton_update.machine_obstacle,
        partial(triton_update.nonnegative_deconvolution_triton, checked=True),
    ),
}

# The user's choice for all layers that name none. Read once: graphs of torch.compile would not notice a change.
VARIABLE = "NNUNET_DECONVER_BACKEND"
_named = os.environ.get(VARIABLE) or None


def check_backend(name: str | None, argument: str = "backend") -> None:
    """Raises ValueError unless `name` is that of a backend, or None."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{argument} must be one of {', '.join(BACKENDS)} or None, got {name!r}")


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
            kernels for CUDA devices (both without second derivatives): that, or an error. None for the one that the
            variable NNUNET_DECONVER_BACKEND names for its kind of device, else the fastest that can compute it and
            works on this machine.

    Returns:
        The updated source, (B, E, *S), in the dtype of `source`, computed in float32 at least. Values that
        float16 cannot hold become its largest finite value. It and its gradients are finite if all that the equations
        name on the way to them is in range, and within 1e-5 of float64 if `2^iterations sqrt(n) 2^-24 max K` is at most
        1e-5 of their largest value, K being the sum of their terms without signs: docs/deconver.md defines n and K.

    Raises:
        ValueError: if shapes do not fit, a kernel is even, groups do not divide, or for a backend that is unknown or
            cannot compute this.
    """
    check_arguments(x, source, filter, groups, iterations, eps)
    check_backend(backend)
    if backend is None:
        run = _choose(x, source, filter, groups, iterations).run
    elif (obstacle := BACKENDS[backend].obstacle(x, source, filter, groups, iterations)) is not None:
        raise ValueError(f"backend {backend!r} cannot compute this: {obstacle}; backend = None chooses one that can")
    else:
        run = BACKENDS[backend].run
    return run(x, source, filter, groups=groups, iterations=iterations, eps=eps)


def fuses_projections(
    x: Tensor, weight: Tensor, filter: Tensor, groups: int, iterations: int, backend: str | None = None
) -> bool:
    """Whether `cpu_update.projected_deconvolution` is the fastest for a source that a pointwise projection makes.

    Args:
        x: see `nonnegative_deconvolution`, as for the others.
        weight: of the projection.
        filter: (C, E / groups, *k).
        groups: of channels.
        iterations: updates.
        backend: "plain", "cpu" or "triton"; None for the fastest that can.
    """
    return (
        (backend or _preferred(x)) == "cpu"
        and x.dtype == weight.dtype == filter.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and cpu_update.obstacle(x, weight, filter, groups, iterations) is None
    )


def explain_backend(device: torch.device | str) -> tuple[str, str | None]:
    """What computes the update in a network on a device, and why nothing faster does. Kernels are tried there.

    Args:
        device: such as "cuda:0".

    Returns:
        The name of a backend, and None if it is the fastest for that kind of device, else the reason.
    """
    device = torch.device(device)
    # As in a network with nnU-Net's mixed precision.
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    x, source = (torch.ones(1, channels, 3, 3, 3, device=device, dtype=dtype) for channels in (32, 128))
    filter = torch.ones(32, 4, 3, 3, 3, device=device)
    choice = _choose(x, source, filter, groups=32, iterations=1)
    if choice.name == "triton" and choice.run is BACKENDS["triton"].careful:
        failure = triton_check.failure(x, source, filter, groups=32)
        if failure is not None:
            return "plain", failure
    return choice.name, choice.obstacle


class _Choice(NamedTuple):
    name: str
    run: Callable[..., Tensor]
    obstacle: str | None  # for what is preferred


def _preferred(x: Tensor) -> str:
    check_backend(_named, f"the variable {VARIABLE}")
    return "plain" if _named == "plain" else policy(x).backend


def _choose(x: Tensor, source: Tensor, filter: Tensor, groups: int, iterations: int) -> _Choice:
    preferred = _preferred(x)
    run, find_obstacle, _, careful = BACKENDS[preferred]
    obstacle = find_obstacle(x, source, filter, groups, iterations)
    if obstacle is None and preferred == _named:
        return _Choice(preferred, run, f"{VARIABLE} is {_named}" if _named == "plain" else None)
    if obstacle is None and not is_planned(x):
        obstacle = _machine_obstacle(preferred, x.device)
    if obstacle is None:
        return _Choice(preferred, careful or run, None)
    _say_once(f"nonnegative deconvolution on {device_type(x)} takes the slower plain path: {obstacle}")
    return _Choice("plain", BACKENDS["plain"].run, obstacle)


# torch.compile calls these two while it traces, rather than trace how a machine is searched, and the logging.
@torch.compiler.assume_constant_result
def _machine_obstacle(backend: str, device: torch.device) -> str | None:
    return BACKENDS[backend].machine_obstacle(device)


_said = set()


@torch.compiler.assume_constant_result
def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _LOGGER.warning(message)
