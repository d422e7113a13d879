"""The equations of nonnegative deconvolution in plain PyTorch.

Every other path is compared with this one, in float64.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_deconver.ops.common import CONVOLVE, check_not_empty, full_precision


def same_convolution(source: Tensor, filter: Tensor, *, groups: int = 1) -> Tensor:
    """Cross-correlation with zero padding that keeps the spatial size, `S (*) V` of arXiv 2504.00302.

    Args:
        source: (B, E, *S).
        filter: (C, E / groups, *k), odd k.
        groups: number of groups the channels are split into.

    Returns:
        (B, C, *S).
    """
    convolution = CONVOLVE[filter.ndim - 2]
    padding = [k // 2 for k in filter.shape[2:]]
    return convolution(source, filter, padding=padding, groups=groups)


def adjoint_filter(filter: Tensor, *, groups: int = 1) -> Tensor:
    """The filter `V^-` whose convolution is the adjoint of the one with `filter`.

    Channel-transposed within each group and flipped along every spatial axis, so that
    `<S (*) V, Y> = <S, Y (*) V^->`.

    Args:
        filter: (C, E / groups, *k), odd k.
        groups: number of groups the channels are split into.

    Returns:
        (E, C / groups, *k).
    """
    channels, source_channels, *kernel = filter.shape
    grouped = filter.reshape(groups, channels // groups, source_channels, *kernel).transpose(1, 2)
    flipped = grouped.flip(tuple(range(3, grouped.ndim)))
    return flipped.reshape(groups * source_channels, channels // groups, *kernel)


def check_arguments(x: Tensor, source: Tensor, filter: Tensor, groups: int, iterations: int, eps: float) -> None:
    """Raises ValueError for arguments that no path of the operation accepts."""
    rank = x.ndim - 2
    if rank not in CONVOLVE:
        raise ValueError(
            f"x must be (B, C, *S) with 1, 2 or 3 spatial axes, got shape {tuple(x.shape)} ({rank} spatial axes)"
        )
    check_not_empty(x)
    if source.ndim != x.ndim or source.shape[0] != x.shape[0] or source.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"source must be (B, E, *S) with the batch and spatial size of x {tuple(x.shape)}, "
            f"got {tuple(source.shape)}"
        )
    if filter.ndim != x.ndim:
        raise ValueError(f"filter must be (C, E / groups, *k) with {rank} kernel axes, got {tuple(filter.shape)}")
    check_kernel_size(filter.shape[2:], "filter")
    channels, sources = x.shape[1], source.shape[1]
    check_groups(groups, channels, sources, "groups")
    if filter.shape[:2] != (channels, sources // groups):
        raise ValueError(
            f"filter must have shape (C, E / groups, *k) = ({channels}, {sources // groups}, *k) for x with "
            f"{channels} and source with {sources} channels in {groups} group(s), got {tuple(filter.shape)}"
        )
    check_iterations(iterations)
    check_eps(eps)


def check_kernel_size(kernel_size: Sequence[int], name: str) -> None:
    """Raises ValueError unless every entry of `kernel_size` is odd and positive."""
    if any(int(k) != k or k < 1 or k % 2 == 0 for k in kernel_size):
        raise ValueError(
            f"{name} has kernel size {tuple(kernel_size)}; every entry must be odd (1, 3, 5, ...): "
            "with an even kernel the update has no adjoint of the same size"
        )


def check_groups(groups: int, channels: int, source_channels: int, name: str) -> None:
    """Raises ValueError unless `groups` divides both numbers of channels."""
    if int(groups) != groups or groups < 1 or channels % groups or source_channels % groups:
        raise ValueError(
            f"{name} = {groups} must be a positive divisor of the {channels} channels and of the "
            f"{source_channels} source channels"
        )


def check_iterations(iterations: int) -> None:
    """Raises ValueError unless `iterations` is a positive whole number."""
    if int(iterations) != iterations or iterations < 1:
        raise ValueError(f"iterations must be a positive whole number, got {iterations}")


def check_eps(eps: float) -> None:
    """Raises ValueError unless `eps` is positive and finite."""
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be positive and finite, got {eps}")


def nonnegative_deconvolution_reference(
    x: Tensor, source: Tensor, filter: Tensor, *, groups: int = 1, iterations: int = 1, eps: float = 1e-8
) -> Tensor:
    """Multiplicative updates of the source in `x ~ source (*) filter`, arXiv 2504.00302, eq. (1) and (3).

    `S <- S * (X (*) V^- + eps) / ((S (*) V) (*) V^- + eps)`, `iterations` times, per group. With nonnegative
    inputs `||X - S (*) V||^2` never increases (theorem 1).

    Args:
        x: (B, C, *S), nonnegative, 1 to 3 spatial axes.
        source: (B, E, *S), nonnegative, the source to start from.
        filter: (C, E / groups, *k), nonnegative, odd k.
        groups: number of groups the channels are split into.
        iterations: number of updates.
        eps: added to numerator and denominator.

    Returns:
        The updated source, (B, E, *S), in the widest dtype of the inputs, float32 at least.

    Raises:
        ValueError: if shapes do not fit, a kernel is even, or groups do not divide.
    """
    check_arguments(x, source, filter, groups, iterations, eps)
    dtype = compute_dtype(x, source, filter)
    x, source, filter = x.to(dtype), source.to(dtype), filter.to(dtype)
    with full_precision(x.device):
        adjoint = adjoint_filter(filter, groups=groups)
        numerator = same_convolution(x, adjoint, groups=groups) + eps
        for _ in range(iterations):
            reconstruction = same_convolution(source, filter, groups=groups)
            denominator = same_convolution(reconstruction, adjoint, groups=groups) + eps
            source = quotient(source, numerator, denominator)
    return source


def quotient(first: Tensor, second: Tensor, denominator: Tensor) -> Tensor:
    """`first * second / denominator`, which overflows or vanishes on the way only where the result does.

    So do its first derivatives. A product and a division leave the range somewhere, in either order; two factors
    `sqrt(second / denominator)` do not, whose roots are taken one by one: the first brings `first` nearer to the result
    and the second there.

    Args:
        first: nonnegative, of any shape.
        second: nonnegative, of the same shape, as the next.
        denominator: positive.
    """
    return _Quotient.apply(first, second, denominator)


def differentiate_quotient(
    gradient: Tensor, first: Tensor, second: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `quotient`, for where autograd does not record. None needs another, which may be out of range.

    Args:
        gradient: of the quotient.
        first: as in `quotient`, and so the following.
        second: likewise.
        denominator: likewise.

    Returns:
        The gradients of first, second and denominator.
    """
    # Each is let go as soon as it was used: this is where the plain path takes most memory.
    inverse_root = denominator.rsqrt()
    of_second = second.sqrt() * inverse_root
    d_first = (gradient * of_second).mul_(of_second)
    of_first = first.sqrt() * inverse_root
    del inverse_root
    of_both = of_first * of_second  # the root of the quotient, over that of the denominator
    del of_second
    d_second = (gradient * of_first).mul_(of_first)
    del of_first
    return d_first, d_second, (gradient * of_both).mul_(of_both).neg_()


class _Quotient(torch.autograd.Function):
    @staticmethod
    def forward(first: Tensor, second: Tensor, denominator: Tensor) -> Tensor:
        factor = second.sqrt().div_(denominator.sqrt())
        return (first * factor).mul_(factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    # PyTorch's takes any number of gradients.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        first, second, denominator = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Of higher derivatives, in which factors may be negative, nothing is promised.
            by_first = gradient / denominator
            d_first = by_first * second
            return d_first, by_first * first, -d_first * first / denominator
        return differentiate_quotient(gradient, first, second, denominator)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        # All with a batch axis: what is computed in place has room for it then.
        pairs = zip(tensors, in_dims, strict=True)
        batched = (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in pairs)
        return quotient(*batched), 0


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype the update is computed in: the widest of the inputs, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
