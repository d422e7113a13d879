"""Pointwise layers of voxels in rows, (N, C), on a CPU.

PyTorch's are written for matrices of any shape. Where there are kernels for it (`cpu_kernels/pointwise.c`), tall ones
with few columns take less time in them; and what follows a product, as rectifying it, needs no second pass over it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from nnunet_deconver.ops import cpu_kernels

_AS_IT_IS, _RECTIFIED, _ADDED = range(3)


def pointwise(rows: Tensor, matrix: Tensor, bias: Tensor | None = None, *, rectify: bool = False) -> Tensor:
    """`rows matrix + bias`, or `relu` of it.

    Args:
        rows: (N, C).
        matrix: (C, C').
        bias: (C',) or None.
        rectify: whether negative results become 0.

    Returns:
        (N, C').
    """
    tensors = (rows, matrix) if bias is None else (rows, matrix, bias)
    if torch.is_autocast_enabled("cpu") or _library(matrix.shape[1], *tensors) is None:
        # Outside a computation with real numbers, operations that can be counted and compiled.
        out = _product(rows, matrix, bias)
        return out.relu() if rectify else out
    return _Pointwise.apply(rows, matrix, bias, rectify)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, bias: Tensor | None, rectify: bool) -> Tensor:
        out = multiply(rows, matrix, bias, rectify=rectify)
        ctx.save_for_backward(rows, matrix, bias, out if rectify else None)
        return out

    @staticmethod
    # PyTorch's takes any number of gradients.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, matrix, bias, out = ctx.saved_tensors
        if out is not None:
            gradient = gradient * (out > 0) if torch.is_grad_enabled() else _where_positive(gradient, out)
        of_rows, of_matrix, of_bias, _ = ctx.needs_input_grad
        rows_gradient = pointwise(gradient, matrix.t()) if of_rows else None
        if torch.is_grad_enabled():  # second derivatives are asked for
            return rows_gradient, rows.t() @ gradient, gradient.sum(0) if of_bias else None, None
        if not (of_matrix or of_bias):
            return rows_gradient, None, None, None
        matrix_gradient = matrix.new_zeros(matrix.shape)  # contiguous, which the matrix need not be
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        add_gradients(rows, gradient, matrix_gradient, bias_gradient)
        return rows_gradient, matrix_gradient, bias_gradient, None


def _where_positive(gradient: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(gradient, out, 0)


def multiply(
    rows: Tensor,
    matrix: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    rectify: bool = False,
    add: bool = False,
) -> Tensor:
    """`pointwise` without gradients.

    Args:
        rows: see there, as for matrix, bias and rectify.
        matrix: (C, C').
        bias: (C',) or None.
        out: (N, C'), contiguous, where the result goes; None for a new tensor.
        rectify: whether negative results become 0.
        add: whether the result is added to what is in `out`.
    """
    tensors = [tensor for tensor in (rows, matrix, bias, out) if tensor is not None]
    library = _library(matrix.shape[1], *tensors)
    if library is None:
        product = _product(rows, matrix, bias)
        product = product.relu_() if rectify else product
        if out is None:
            return product
        return out.add_(product) if add else out.copy_(product)
    out = rows.new_empty(len(rows), matrix.shape[1]) if out is None else out
    finish = _RECTIFIED if rectify else _ADDED if add else _AS_IT_IS
    # Named, so that copies live until the kernel is through.
    rows, matrix = rows.contiguous(), matrix.contiguous()
    bias = None if bias is None else bias.contiguous()
    cpu_kernels.call(library["multiply"], rows, matrix, bias, out, len(rows), *matrix.shape, finish)
    return out


def add_gradients(rows: Tensor, gradient: Tensor, matrix: Tensor, bias: Tensor | None = None) -> None:
    """Adds what `pointwise` leaves for its parameters.

    Args:
        rows: (N, C).
        gradient: of the result, (N, C').
        matrix: what is added to, (C, C'), contiguous.
        bias: likewise, (C',), contiguous; None if there is none.
    """
    tensors = [tensor for tensor in (rows, gradient, matrix, bias) if tensor is not None]
    library = _library(matrix.shape[1], *tensors)
    if library is None:
        matrix += _matrix_gradient(rows, gradient)
        if bias is not None:
            bias += gradient.sum(0)
        return
    rows, gradient = rows.contiguous(), gradient.contiguous()
    cpu_kernels.call(library["add_gradients"], rows, gradient, matrix, bias, len(rows), *matrix.shape)


def _library(outputs: int, *tensors: Tensor) -> cpu_kernels.Library | None:
    suits = all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and cpu_kernels.is_real(tensor)
        for tensor in tensors
    )
    return cpu_kernels.library(outputs) if suits else None


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if not len(rows):
        return F.linear(rows, matrix.t(), bias)  # convolutions take no image without pixels
    # On an AMD processor, PyTorch's convolutions are faster than its matrix products, which another library computes.
    out = F.conv2d(_image(rows), matrix.t()[:, :, None, None], bias)
    return out.movedim(1, -1).reshape(len(rows), -1)


def _matrix_gradient(rows: Tensor, gradient: Tensor) -> Tensor:
    if not len(rows):
        return rows.t() @ gradient
    channels = gradient.shape[1], rows.shape[1]
    return conv2d_weight(_image(rows), (*channels, 1, 1), _image(gradient)).view(channels).t()


def _image(rows: Tensor) -> Tensor:
    # Channels side by side: what (N, C) is already.
    return rows.contiguous().view(1, len(rows), 1, rows.shape[1]).movedim(-1, 1)
