"""One update of nonnegative deconvolution with a group per channel, for CPUs.

With a group per channel every convolution of the update is depthwise once the channels of the image are repeated for
each of their sources. On a CPU, PyTorch's forward depthwise convolution of channels that lie side by side is several
times faster than its grouped convolutions, and than its gradient of depthwise ones. So the gradients are written out
here (formulas in `triton_update`) and made of forward convolutions. The filter's alone, a sum over all voxels, comes
from the backward of a convolution with larger groups, of which it takes the diagonals.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import narrow, widen
from nnunet_deconver.ops.nonnegative_deconvolution.reference import compute_dtype, full_precision, same_convolution

# Channels that share a group where the filter's gradient is taken: the fastest of 1 to 32 for 32 to 128 channels.
_MERGED = 8


def obstacle(x: Tensor, source: Tensor, filter: Tensor, groups: int, iterations: int) -> str | None:
    """Why `nonnegative_deconvolution_depthwise` cannot compute this; None where it can. See there for the arguments."""
    if groups != x.shape[1]:
        return f"it needs a group per channel, and there are {groups} groups for {x.shape[1]} channels"
    if iterations != 1:
        return f"it makes 1 update, not {iterations}"
    if compute_dtype(x, source, filter) != torch.float32:
        return f"it computes in float32, not in {compute_dtype(x, source, filter)}"
    return None


def nonnegative_deconvolution_depthwise(
    x: Tensor, source: Tensor, filter: Tensor, *, groups: int, iterations: int, eps: float
) -> Tensor:
    """`backends.nonnegative_deconvolution`, where there is no `obstacle`; without second derivatives."""
    with full_precision(x.device):
        updated = _Update.apply(
            widen(x, torch.float32).movedim(1, -1).contiguous(),
            widen(source, torch.float32).movedim(1, -1).contiguous(),
            widen(filter, torch.float32),
            eps,
        )
    return narrow(updated.movedim(-1, 1), source.dtype)


class _Depthwise:
    """The operations of an update; tensors are (B, *S, channels).

    Args:
        filter: (C, R, *k), R sources for each of C channels.
    """

    def __init__(self, filter: Tensor):
        self.channels, self.ratio = filter.shape[:2]
        self.kernel = filter.shape[2:]
        self.axes = list(range(2, filter.ndim))
        self.filter = filter.reshape(-1, 1, *self.kernel)
        self.adjoint_filter = self.filter.flip(self.axes)

    def to_sources(self, x: Tensor) -> Tensor:
        """Repeats each channel for its sources, C to C R channels."""
        return x.unsqueeze(-1).expand(*x.shape, self.ratio).flatten(-2)

    def to_channels(self, source: Tensor) -> Tensor:
        """`source (*) V`, C R to C channels."""
        return self.convolve(source, self.filter).unflatten(-1, (self.channels, self.ratio)).sum(-1)

    def adjoint(self, x: Tensor) -> Tensor:
        """`x (*) V^-`, C to C R channels."""
        return self.convolve(self.to_sources(x), self.adjoint_filter)

    def convolve(self, values: Tensor, filter: Tensor) -> Tensor:
        """Depthwise, C R to C R channels."""
        return same_convolution(values.movedim(-1, 1), filter, groups=len(filter)).movedim(1, -1)

    def adjoint_filter_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of `adjoint(x)` by the adjoint filter, (C R, 1, *k)."""
        merged = next(m for m in range(min(_MERGED, self.channels), 0, -1) if self.channels % m == 0)
        sources = self.channels * self.ratio
        rank = len(self.kernel)
        _, found, _ = torch.ops.aten.convolution_backward(
            gradient.movedim(-1, 1),
            x.movedim(-1, 1),
            x.new_empty(sources, merged, *self.kernel),
            None,
            [1] * rank,
            [extent // 2 for extent in self.kernel],
            [1] * rank,
            False,
            [0] * rank,
            self.channels // merged,
            [False, True, False],
        )
        source = torch.arange(sources, device=x.device)
        return found[source, source // self.ratio % merged].unsqueeze(1)


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, source: Tensor, filter: Tensor, eps: float) -> Tensor:
        do = _Depthwise(filter)
        reconstruction = do.to_channels(source)
        denominator = do.adjoint(reconstruction).add_(eps)
        quotient = do.adjoint(x).add_(eps).div_(denominator)
        ctx.save_for_backward(x, source, filter, reconstruction, denominator, quotient)
        return source * quotient

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, source, filter, reconstruction, denominator, quotient = ctx.saved_tensors
        do = _Depthwise(filter)
        numerator_gradient = (gradient * source).div_(denominator)
        denominator_gradient = (numerator_gradient * quotient).neg_()
        x_gradient = do.to_channels(numerator_gradient)
        reconstruction_gradient = do.to_channels(denominator_gradient)
        source_gradient = (gradient * quotient).add_(do.adjoint(reconstruction_gradient))
        filter_gradient = None
        if ctx.needs_input_grad[2]:
            # The reconstruction's part has the same form, with image and gradient in each other's place.
            adjoint_filter_gradient = (
                do.adjoint_filter_gradient(x, numerator_gradient)
                + do.adjoint_filter_gradient(reconstruction, denominator_gradient)
                + do.adjoint_filter_gradient(reconstruction_gradient, source)
            )
            filter_gradient = adjoint_filter_gradient.flip(do.axes).view(filter.shape)
        return x_gradient, source_gradient, filter_gradient, None
