"""Nonnegative deconvolution between tensors of any floating dtype, made of PyTorch's convolutions.

The update itself runs in float32 (float64 for float64 inputs) whatever autocast says. What crosses the border to
half precision saturates instead of overflowing:

- outputs: a source larger than the largest float16 becomes the largest float16, and no gradient passes there;
- gradients of float16 inputs: a finite value beyond the range becomes the largest float16 of its sign. Where the
  source nearly vanishes its derivative is about X (*) V^- / eps, so one voxel could otherwise turn a whole gradient
  into inf. Gradients that arrive as inf or NaN leave as such, so that a gradient scaler still sees an overflow.
"""

from typing import Any

import torch
from torch import Tensor

from nnunet_deconver.ops.common import full_precision
from nnunet_deconver.ops.device import fast_layout
from nnunet_deconver.ops.nonnegative_deconvolution.reference import (
    adjoint_filter,
    compute_dtype,
    differentiate_quotient,
    nonnegative_deconvolution_reference,
    quotient,
    same_convolution,
)


def nonnegative_deconvolution_plain(
    x: Tensor, source: Tensor, filter: Tensor, *, groups: int = 1, iterations: int = 1, eps: float = 1e-8
) -> Tensor:
    """`backends.nonnegative_deconvolution`, for any arguments that it accepts."""
    dtype = compute_dtype(x, source, filter)
    updated = nonnegative_deconvolution_reference(
        fast_layout(widen(x, dtype)),
        fast_layout(widen(source, dtype)),
        widen(filter, dtype),
        groups=groups,
        iterations=iterations,
        eps=eps,
    )
    return narrow(_LayOutGradient.apply(updated), source.dtype)


def differentiate_plain(
    gradient: Tensor, x: Tensor, source: Tensor, filter: Tensor, *, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `nonnegative_deconvolution_plain` with one iteration, for where autograd does not record.

    Formulas and names: `triton_update`.

    Args:
        gradient: of the updated source, (B, E, *S).
        x: (B, C, *S), nonnegative.
        source: (B, E, *S), nonnegative.
        filter: (C, E / groups, *k), nonnegative, odd k.
        groups: number of groups the channels are split into.
        eps: added to numerator and denominator.

    Returns:
        The gradients of x, source and filter, in their dtypes.
    """
    dtypes = x.dtype, source.dtype, filter.dtype
    dtype = compute_dtype(x, source, filter)
    gradient, x, source, filter = (tensor.to(dtype) for tensor in (gradient, x, source, filter))

    def filter_gradient(image: Tensor, like: Tensor, upstream: Tensor) -> Tensor:
        rank, padding = filter.ndim - 2, [k // 2 for k in filter.shape[2:]]
        options = [1] * rank, padding, [1] * rank, False, [0] * rank, groups, [False, True, False]
        return torch.ops.aten.convolution_backward(upstream, image, like, None, *options)[1]

    with full_precision(x.device):
        adjoint = adjoint_filter(filter, groups=groups)
        reconstruction = same_convolution(source, filter, groups=groups)
        denominator = same_convolution(reconstruction, adjoint, groups=groups) + eps
        numerator = same_convolution(x, adjoint, groups=groups) + eps
        if dtypes[1].itemsize < dtype.itemsize:
            # No gradient passes where the output was cut.
            cut = quotient(source, numerator, denominator) > torch.finfo(dtypes[1]).max
            gradient = torch.where(cut, 0, gradient)
        d_source, d_numerator, d_denominator = differentiate_quotient(gradient, source, numerator, denominator)
        d_x, d_reconstruction = (same_convolution(part, filter, groups=groups) for part in (d_numerator, d_denominator))
        d_source = d_source + same_convolution(d_reconstruction, adjoint, groups=groups)
        d_adjoint = filter_gradient(x, adjoint, d_numerator) + filter_gradient(reconstruction, adjoint, d_denominator)
        # The adjoint of an adjoint is the filter: what takes one's gradient to the other's, too.
        d_adjoint = adjoint_filter(d_adjoint, groups=groups)
        d_filter = filter_gradient(source, filter, d_reconstruction) + d_adjoint
    d_x, d_source, d_filter = map(narrow_gradient, (d_x, d_source, d_filter), dtypes)
    return d_x, d_source, d_filter


def widen(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts to a wider dtype, with a gradient that saturates on its way back."""
    return _Widen.apply(values, dtype)


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts to a narrower dtype: what exceeds its largest value becomes that."""
    if dtype.itemsize < values.dtype.itemsize:
        values = values.clamp(max=torch.finfo(dtype).max)
    return values.to(dtype)


def saturated_relu(values: Tensor) -> Tensor:
    """ReLU, in which what exceeds the dtype's largest value becomes that. It keeps its result alone for backward."""
    return _SaturatedReLU.apply(values)


class _SaturatedReLU(torch.autograd.Function):
    # PyTorch's hardtanh, in place too, keeps what it was given.
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        out = values.clamp(0, torch.finfo(values.dtype).max)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    # PyTorch's takes any number of gradients.
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (out,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, out, 0, torch.finfo(out.dtype).max)


class _Widen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = values.dtype
        return values.to(dtype)

    @staticmethod
    # PyTorch's takes any number of gradients.
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return narrow_gradient(gradient, ctx.dtype), None


class _LayOutGradient(torch.autograd.Function):
    """Brings the gradient that arrives into the layout of all else: arithmetic between two is many times slower."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return fast_layout(gradient)


def narrow_gradient(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts a gradient to a narrower dtype: finite values saturate, inf and NaN stay."""
    if dtype == gradient.dtype:
        return gradient
    limit = torch.finfo(dtype).max
    saturated = gradient.clamp(-limit, limit)
    return torch.where(gradient.isinf(), gradient, saturated).to(dtype)
