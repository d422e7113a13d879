"""Nonnegative deconvolution between tensors of any floating dtype, made of PyTorch's convolutions.

The update itself runs in float32 (float64 for float64 inputs) whatever autocast says. What crosses the border to
half precision saturates instead of overflowing:

- outputs: a source larger than the largest float16 becomes the largest float16, and no gradient passes there;
- gradients of float16 inputs: a finite value beyond the range becomes the largest float16 of its sign. Where the
  source nearly vanishes its derivative is about X (*) V^- / eps, so one voxel could otherwise turn a whole gradient
  into inf. Gradients that arrive as inf or NaN leave as such, so that a gradient scaler still sees an overflow.
"""

import torch
from torch import Tensor

from nnunet_deconver.ops.device import fast_layout
from nnunet_deconver.ops.nonnegative_deconvolution.reference import (
    compute_dtype,
    nonnegative_deconvolution_reference,
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
    return narrow(updated, source.dtype)


def widen(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts to a wider dtype, with a gradient that saturates on its way back."""
    return _Widen.apply(values, dtype)


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts to a narrower dtype: what exceeds its largest value becomes that."""
    if dtype.itemsize < values.dtype.itemsize:
        values = values.clamp(max=torch.finfo(dtype).max)
    return values.to(dtype)


class _Widen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = values.dtype
        return values.to(dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return narrow_gradient(gradient, ctx.dtype), None


def narrow_gradient(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts a gradient to a narrower dtype: finite values saturate, inf and NaN stay."""
    if dtype == gradient.dtype:
        return gradient
    limit = torch.finfo(dtype).max
    saturated = gradient.clamp(-limit, limit)
    return torch.where(gradient.isinf(), gradient, saturated).to(dtype)
