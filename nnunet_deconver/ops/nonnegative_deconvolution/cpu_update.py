"""One update of nonnegative deconvolution with a group per channel, on a CPU: compiled kernels.

Formulas and names: `triton_update`. The source has several times the channels of the image; the kernels
(`cpu_kernels/deconvolution.c`) make it of the image and project it back row by row, forward and, again, backward. Whole
are only tensors of the image's size.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_deconver.ops import cpu_kernels
from nnunet_deconver.ops.common import check_not_empty, full_precision
from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import narrow, widen
from nnunet_deconver.ops.nonnegative_deconvolution.reference import compute_dtype


def obstacle(x: Tensor, source: Tensor, filter: Tensor, groups: int, iterations: int) -> str | None:
    """Why this module cannot compute an update; None where it can.

    Args:
        x: see `backends.nonnegative_deconvolution`, as for the others.
        source: or the weight of the projection that makes it.
        filter: (C, E / groups, *k).
        groups: of channels.
        iterations: updates.
    """
    if not cpu_kernels.libraries():
        return (
            "it has no kernels for this processor, which are compiled when this package is installed "
            "(install a C compiler, then this package again)"
        )
    if groups != x.shape[1]:
        return f"it needs a group per channel, and there are {groups} groups for {x.shape[1]} channels"
    if cpu_kernels.library(x.shape[1]) is None:
        return (
            f"it computes {min(cpu_kernels.libraries())} channels at once, and {x.shape[1]} is not a multiple of that"
        )
    if iterations != 1:
        return f"it makes 1 update, not {iterations}"
    if compute_dtype(x, source, filter) != torch.float32:
        return f"it computes in float32, not in {compute_dtype(x, source, filter)}"
    if x.device.type != "cpu" or not all(map(cpu_kernels.is_real, (x, source, filter))):
        return "it computes real tensors on a CPU, not what is being traced, compiled or counted"
    return None


def nonnegative_deconvolution_cpu(
    x: Tensor, source: Tensor, filter: Tensor, *, groups: int, iterations: int, eps: float
) -> Tensor:
    """`backends.nonnegative_deconvolution`, where there is no `obstacle`; without second derivatives."""
    ratio = filter.shape[1]
    with full_precision(x.device):
        updated = _Update.apply(
            widen(x, torch.float32).movedim(1, -1).contiguous(),
            widen(source, torch.float32).unflatten(1, (groups, ratio)).movedim((2, 1), (-2, -1)).contiguous(),
            None,
            None,
            _filter_last(widen(filter, torch.float32)),
            None,
            None,
            eps,
        )
    return narrow(_channel_major(updated), source.dtype)


def projected_deconvolution(
    x: Tensor,
    source_weight: Tensor,
    source_bias: Tensor,
    filter: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    *,
    eps: float,
) -> Tensor:
    """The update of `relu(projection(x))`, projected again: where `backends.fuses_projections` says so.

    Args:
        x: (B, C, *S), nonnegative; channels that lie side by side save a copy.
        source_weight: (E, C), of the pointwise projection that makes the source.
        source_bias: (E,).
        filter: (C, E / C, *k), nonnegative, odd k.
        out_weight: (C', E), of the pointwise projection of the updated source; None for that source itself.
        out_bias: (C',), or None likewise.
        eps: added to numerator and denominator.

    Returns:
        (B, C', *S) or (B, E, *S), channels side by side, without second derivatives.

    Raises:
        ValueError: if a spatial axis is empty.
    """
    check_not_empty(x)
    channels, ratio = filter.shape[:2]

    def ratio_first(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (channels, ratio)).transpose(0, 1).flatten(0, 1).contiguous()

    out_matrix = outputs = None
    if out_weight is not None and out_bias is not None:
        out_matrix, outputs = ratio_first(out_weight.t()), len(out_bias)
        if cpu_kernels.library(channels) is not cpu_kernels.library(math.gcd(channels, outputs)):
            # The kernels that suit the channels compute more at once than there are outputs: these are filled up.
            padding = -outputs % channels
            out_matrix, out_bias = (F.pad(tensor, (0, padding)) for tensor in (out_matrix, out_bias))
    out = _Update.apply(
        x.movedim(1, -1).contiguous(),
        None,
        ratio_first(source_weight).t().contiguous(),
        ratio_first(source_bias),
        _filter_last(filter),
        out_matrix,
        out_bias,
        eps,
    )
    return _channel_major(out) if outputs is None else out[..., :outputs].movedim(-1, 1)


def _channel_major(source: Tensor) -> Tensor:
    """(B, *S, R, C) as (B, C R, *S)."""
    return source.transpose(-1, -2).flatten(-2).movedim(-1, 1)


def _filter_last(filter: Tensor) -> Tensor:
    return filter.movedim((1, 0), (-2, -1)).contiguous()


class _Problem(ctypes.Structure):
    """`problem` of `deconvolution.c`."""

    _fields_ = [
        *[(name, cpu_kernels.WHOLE) for name in ("images", "depth", "height", "width", "channels", "ratio", "outputs")],
        ("kernel", cpu_kernels.WHOLE * 3),
        ("eps", ctypes.c_float),
        *[
            (name, ctypes.c_void_p)
            for name in ("image", "filter", "source", "source_matrix", "source_bias", "source_adjoint")
        ],
        *[(name, ctypes.c_void_p) for name in ("out_matrix", "out_bias", "out_adjoint")],
    ]


def _call(kernel: str, *arguments: Tensor | None, eps: float, outputs: int, **tensors: Tensor | None) -> None:
    """Calls a kernel; `tensors` are those of the problem, `arguments` its own."""
    image, filter = tensors["image"], tensors["filter"]
    assert image is not None and filter is not None
    *sizes, ratio, channels = filter.shape
    kernel_size = (cpu_kernels.WHOLE * 3)(*_three_axes(sizes))
    problem = _Problem(len(image), *_three_axes(image.shape[1:-1]), channels, ratio, outputs, kernel_size, eps)
    for name, tensor in tensors.items():
        setattr(problem, name, None if tensor is None else tensor.data_ptr())
    library = cpu_kernels.library(channels)
    assert library is not None  # otherwise there is an obstacle
    cpu_kernels.call(library[kernel], ctypes.byref(problem), *arguments)


class _Update(torch.autograd.Function):
    """The update, with its projections or without.

    Shapes: x (B, *S, C); source (B, *S, R, C) or None; source_matrix (C, R C) and source_bias (R C), or None; filter
    (*k, R, C); out_matrix (R C, C') and out_bias (C'), or None. Returns (B, *S, C') or (B, *S, R, C).
    All are contiguous.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        source: Tensor | None,
        source_matrix: Tensor | None,
        source_bias: Tensor | None,
        filter: Tensor,
        out_matrix: Tensor | None,
        out_bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        outputs = 0 if out_matrix is None else out_matrix.shape[1]
        out = x.new_empty(*x.shape[:-1], *([outputs] if outputs else filter.shape[-2:]))
        reconstruction = torch.empty_like(x)
        given = {"image": x, "filter": filter, "source": source}
        projections = {"source_matrix": source_matrix, "source_bias": source_bias, "out_matrix": out_matrix}
        _call("update", reconstruction, out, eps=eps, outputs=outputs, **given, **projections, out_bias=out_bias)
        ctx.save_for_backward(x, source, source_matrix, source_bias, filter, out_matrix, reconstruction)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    # PyTorch's takes any number of gradients.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, source, source_matrix, source_bias, filter, out_matrix, reconstruction = ctx.saved_tensors
        outputs = 0 if out_matrix is None else out_matrix.shape[1]
        gradient = gradient.contiguous()
        reconstruction_gradient, x_gradient = torch.empty_like(x), torch.empty_like(x)
        source_gradient = None if source is None else torch.empty_like(source)
        sums = [None if t is None else torch.zeros_like(t) for t in (source_matrix, source_bias, filter, out_matrix)]
        source_matrix_gradient, source_bias_gradient, filter_gradient, out_matrix_gradient = sums
        out_bias_gradient = x.new_zeros(outputs) if outputs else None
        assert filter_gradient is not None
        # Named, so that they live until the kernel is through.
        source_adjoint, out_adjoint = (
            None if matrix is None else matrix.t().contiguous() for matrix in (source_matrix, out_matrix)
        )
        _call(
            "differentiate_update",
            *(reconstruction, gradient, reconstruction_gradient, x_gradient, source_gradient),
            *(source_matrix_gradient, source_bias_gradient, filter_gradient, out_matrix_gradient, out_bias_gradient),
            eps=ctx.eps,
            outputs=outputs,
            **{"image": x, "filter": filter, "source": source},
            **{"source_matrix": source_matrix, "source_bias": source_bias, "source_adjoint": source_adjoint},
            **{"out_matrix": out_matrix, "out_adjoint": out_adjoint},
        )
        # The kernel sums over what the flipped filter weighs.
        filter_gradient = filter_gradient.flip(list(range(filter.ndim - 2)))
        return (
            *(x_gradient, source_gradient, source_matrix_gradient, source_bias_gradient),
            *(filter_gradient, out_matrix_gradient, out_bias_gradient, None),
        )


def _three_axes(sizes: Sequence[int]) -> tuple[int, ...]:
    """One to three spatial axes as three: threads share the first, vectors run along the last."""
    sizes = tuple(sizes)
    return {1: (1, 1, *sizes), 2: (sizes[0], 1, sizes[-1]), 3: sizes}[len(sizes)]
