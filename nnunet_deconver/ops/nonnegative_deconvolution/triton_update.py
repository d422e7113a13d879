"""One update of nonnegative deconvolution as an operation of its own, computed by Triton kernels.

With source S, image X, filter V, its adjoint V^-, and G the gradient of the result (formulas: arXiv 2504.00302, eq. (1)
and (3), and their derivatives):

    Y = S (*) V        N = X (*) V^- + eps        D = Y (*) V^- + eps        S' = S N / D
    dN = G S / D       dD = -G S' / D             dX = dN (*) V              dY = dD (*) V
    dS = G N / D + dY (*) V^-
    dV_ce(j) = sum_q X_c(q) dN_e(q + j) + Y_c(q) dD_e(q + j) + dY_c(q) S_e(q + j)

Autograd keeps x, source and filter, which the network's graph mostly holds anyhow, and nothing else: what backward
needs of the above is made again there.

What a pass moves through device memory, per voxel and channel of x, at the ratio 4 of the networks (h = 2 bytes in half
precision, 4 in float32; intermediates f = 4 bytes always; the taps around a voxel come from the caches):

| kernel | reads | writes | h = 2 |
| --- | --- | --- | --- |
| forward: Y | S 4h | Y f | 12 |
| S' | X h, Y f, S 4h | S' 4h | 22 |
| backward: Y | S 4h | Y f | 12 |
| dN, dD | X h, Y f, S 4h, G 4h | dN 4f, dD 4f | 54 |
| dX, dY | dN 4f, dD 4f | dX h, dY f | 38 |
| dS | X h, Y f, dY f, G 4h, S 4h | dS 4h | 34 |
| dV | X h, Y f, dY f, dN 4f, dD 4f, S 4h | parts of dV | 50 |

34 bytes forward and 188 backward. In one kernel forward would move 18, but each voxel needs Y at all taps around it:
making Y there would take as many times the arithmetic as the kernel has taps. The same holds for Y, dN, dD and dY in
backward, each of which is needed around the voxel where it is made; N, D and G N / D are needed in their own voxel only
and never stored. The intermediates are float32 because float16 has not their range (G S / D reaches 1e8 G S where the
reconstruction vanishes), and because dX and dS are differences of them. They are transient: slabs, the groups of the
samples, are worked off in bunches of about a gigabyte.

Each program of the last kernel sums over its own voxels and writes its sums to its own place in a buffer; these are
then added in a fixed order. There are no atomic additions, so gradients are the same bits each time.

Output and gradients saturate as in `mixed_precision`.

Where nobody asked for these kernels by name, `triton_check` tries them before their first use, and the operations take
the plain path where they fail.
"""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nnunet_deconver.ops.device import SCRATCH_BYTES, device_type
from nnunet_deconver.ops.nonnegative_deconvolution import triton_machine
from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import (
    differentiate_plain,
    narrow_gradient,
    nonnegative_deconvolution_plain,
)
from nnunet_deconver.ops.nonnegative_deconvolution.triton_check import guarded
from nnunet_deconver.ops.nonnegative_deconvolution.triton_machine import (
    INTERPRETED,
    machine_obstacle,
    use_writable_cache,
)

__all__ = ["machine_obstacle", "nonnegative_deconvolution_triton", "obstacle", "scratch_bytes"]

# The sums of a group are unrolled into registers.
MOST_CHANNELS = 8
LARGEST_KERNEL = 7
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def obstacle(x: Tensor, source: Tensor, filter: Tensor, groups: int, iterations: int) -> str | None:
    """Why `nonnegative_deconvolution_triton` cannot compute this; None where it can. See there for the arguments."""
    if triton_machine.TRITON_OBSTACLE is not None:
        return triton_machine.TRITON_OBSTACLE
    if device_type(x) != "cuda" and not INTERPRETED:
        return f"x is on {x.device.type} and must be on cuda"
    if not x.device == source.device == filter.device:
        return f"x is on {x.device}, source on {source.device} and filter on {filter.device}"
    for name, tensor in (("x", x), ("source", source), ("filter", filter)):
        if tensor.dtype not in DTYPES:
            return f"{name} is {tensor.dtype} and must be one of {', '.join(map(str, DTYPES))}"
    channels, sources = x.shape[1] // groups, filter.shape[1]
    if max(channels, sources) > MOST_CHANNELS:
        return f"a group has {channels} channels and {sources} sources and may have {MOST_CHANNELS} of each"
    if max(filter.shape[2:]) > LARGEST_KERNEL:
        return f"the kernel is {tuple(filter.shape[2:])} and may have {LARGEST_KERNEL} along each axis"
    if iterations != 1:
        return f"iterations is {iterations} and must be 1"
    return None


def nonnegative_deconvolution_triton(
    x: Tensor, source: Tensor, filter: Tensor, *, groups: int, iterations: int, eps: float, checked: bool = False
) -> Tensor:
    """`backends.nonnegative_deconvolution` where `obstacle` finds none; `iterations` is 1.

    Args:
        x: see there, as for the others.
        source: (B, E, *S).
        filter: (C, E / groups, *k).
        groups: of channels.
        iterations: updates.
        eps: added to numerator and denominator.
        checked: whether the plain path takes over where the kernels fail; else they raise.
    """
    return _update(x, source, filter, groups, eps, checked)


def _run_update(x: Tensor, source: Tensor, filter: Tensor, groups: int, eps: float, checked: bool) -> Tensor:
    from nnunet_deconver.ops.nonnegative_deconvolution import triton_kernels

    def kernels() -> Tensor:
        use_writable_cache()
        return triton_kernels.update(x, source, filter, groups, eps)

    def plain() -> Tensor:
        return nonnegative_deconvolution_plain(x, source, filter, groups=groups, eps=eps).contiguous()

    return guarded(kernels, plain, x, source, filter, groups) if checked else kernels()


def _run_differentiate(
    gradient: Tensor, x: Tensor, source: Tensor, filter: Tensor, groups: int, eps: float, checked: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from nnunet_deconver.ops.nonnegative_deconvolution import triton_kernels

    def kernels() -> tuple[Tensor, Tensor, Tensor]:
        use_writable_cache()
        d_x, d_source, d_filter = triton_kernels.differentiate(gradient, x, source, filter, groups, eps)
        return d_x, d_source, narrow_gradient(d_filter, filter.dtype)

    def plain() -> tuple[Tensor, Tensor, Tensor]:
        d_x, d_source, d_filter = differentiate_plain(gradient, x, source, filter, groups=groups, eps=eps)
        return d_x.contiguous(), d_source.contiguous(), d_filter.contiguous()

    return guarded(kernels, plain, x, source, filter, groups) if checked else kernels()


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, source, filter, ctx.groups, ctx.eps, ctx.checked = inputs
    ctx.save_for_backward(x, source, filter)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_differentiate(gradient, *ctx.saved_tensors, ctx.groups, ctx.eps, ctx.checked), None, None, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise RuntimeError(
        "nonnegative deconvolution has no second derivative with backend 'triton'; call it with backend='plain'"
    )


# A device's autocast leaves operations alone that it does not know: this one computes in float32 by itself.
_update = torch.library.custom_op(
    "nnunet_deconver::nonnegative_deconvolution",
    _run_update,
    mutates_args=(),
    schema="(Tensor x, Tensor source, Tensor filter, int groups, float eps, bool checked) -> Tensor",
)
_differentiate = torch.library.custom_op(
    "nnunet_deconver::nonnegative_deconvolution_backward",
    _run_differentiate,
    mutates_args=(),
    schema=(
        "(Tensor gradient, Tensor x, Tensor source, Tensor filter, int groups, float eps, bool checked) "
        "-> (Tensor, Tensor, Tensor)"
    ),
)
_update.register_autograd(_backward, setup_context=_save)
_differentiate.register_autograd(_no_second_derivative)


def scratch_bytes(x_shape: Sequence[int], source_shape: Sequence[int], *, backward: bool) -> int:
    """What the kernels take for their intermediates, in float32, but for parts of the filter's gradient.

    Args:
        x_shape: (B, C, *S).
        source_shape: (B, E, *S).
        backward: of the gradients, rather than of the update itself.
    """
    elements = 2 * (math.prod(x_shape) + math.prod(source_shape)) if backward else math.prod(x_shape)
    return min(4 * elements, SCRATCH_BYTES)


@_update.register_fake
def _(x: Tensor, source: Tensor, filter: Tensor, groups: int, eps: float, checked: bool) -> Tensor:
    return source.new_empty(source.shape)


@_differentiate.register_fake
def _(
    gradient: Tensor, x: Tensor, source: Tensor, filter: Tensor, groups: int, eps: float, checked: bool
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, source, filter))


@register_flop_formula(torch.ops.nnunet_deconver.nonnegative_deconvolution)
def _flops(
    x: Sequence[int],
    source: Sequence[int],
    filter: Sequence[int],
    groups: int,
    eps: float,
    checked: bool,
    *,
    out_shape: object = None,
    **kwargs: object,
) -> int:
    # Those of the three convolutions: each of the filter's weights meets each voxel of each sample once.
    return 3 * 2 * x[0] * math.prod(x[2:]) * math.prod(filter)


@register_flop_formula(torch.ops.nnunet_deconver.nonnegative_deconvolution_backward)
def _flops_backward(
    gradient: Sequence[int],
    x: Sequence[int],
    source: Sequence[int],
    filter: Sequence[int],
    groups: int,
    eps: float,
    checked: bool,
    *,
    out_shape: object = None,
    **kwargs: object,
) -> int:
    # Each convolution is differentiated by image and filter. Recomputation is not counted.
    return 2 * _flops(x, source, filter, groups, eps, checked)
