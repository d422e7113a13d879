"""The NDC layer, arXiv 2504.00302, section 3.6, eq. (7).

Deviation from the paper: in float16 the source saturates at the largest finite value, where the paper's float32
layer would go on growing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_deconver.layers.common import CONVOLUTIONS, Convolution, pointwise_convolution
from nnunet_deconver.ops import nonnegative_deconvolution
from nnunet_deconver.ops.nonnegative_deconvolution.backends import check_backend, fuses_projections
from nnunet_deconver.ops.nonnegative_deconvolution.cpu_update import projected_deconvolution
from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import saturated_relu
from nnunet_deconver.ops.nonnegative_deconvolution.reference import (
    check_eps,
    check_groups,
    check_iterations,
    check_kernel_size,
)


class Part(NamedTuple):
    """What the source of some of the groups is made of.

    Attributes:
        x: their channels, (B, C', *S).
        weight: of the pointwise convolution from all channels to their sources, (E', C, 1, ...).
        bias: its bias, (E',).
        filter: (C', E / groups, *k), not rectified.
        groups: their number.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    filter: Tensor
    groups: int


class NonnegativeDeconvolution(nn.Module):
    """Explains its input as a learned filter applied to a nonnegative source, and returns that source.

    The source starts as `ReLU(pointwise(x))` and takes `iterations` multiplicative updates with the rectified
    filter.

    Args:
        channels: channels of the input, C.
        kernel_size: one odd number per spatial axis; its length (1, 2 or 3) is the layer's spatial rank.
        source_ratio: channels of the source per channel of the input, R = E / C.
        groups: number of groups the channels are split into; None for one per channel.
        iterations: number of updates.
        eps: added to numerator and denominator of the update.
        backend: what computes the update, see `ops.nonnegative_deconvolution`; None for the fastest that can.

    Raises:
        ValueError: for an even kernel, groups that do not divide, a ratio without a whole number of sources, or an
            unknown backend.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Sequence[int],
        source_ratio: float = 4,
        groups: int | None = None,
        iterations: int = 1,
        eps: float = 1e-8,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(kernel_size, Sequence) or len(kernel_size) not in CONVOLUTIONS:
            raise ValueError(
                f"kernel_size must have one entry per spatial axis (1 to 3), such as (3, 3, 3), got {kernel_size!r}"
            )
        check_kernel_size(kernel_size, "kernel_size")
        source_channels = round(channels * source_ratio)
        if source_channels < 1 or not math.isclose(source_channels, channels * source_ratio):
            raise ValueError(
                f"source_ratio = {source_ratio} gives {channels * source_ratio} source channels for {channels} "
                "channels; it must give a positive whole number"
            )
        groups = channels if groups is None else groups
        check_groups(groups, channels, source_channels, "groups")
        check_iterations(iterations)
        check_eps(eps)
        check_backend(backend)

        self.channels = channels
        self.source_channels = source_channels
        self.kernel_size = tuple(kernel_size)
        self.groups = groups
        self.iterations = iterations
        self.eps = eps
        self.backend = backend
        self.filter = nn.Parameter(torch.empty(channels, source_channels // groups, *kernel_size))
        self.source = CONVOLUTIONS[len(kernel_size)](channels, source_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the filter anew: Kaiming uniform with a = sqrt(5)."""
        nn.init.kaiming_uniform_(self.filter, a=math.sqrt(5))

    def forward(self, x: Tensor, part: Part | None = None) -> Tensor:
        """Maps (B, C, *S), nonnegative, to the source (B, E, *S), nonnegative, or to that of a part of the groups."""
        if part is not None:
            source = pointwise_convolution(x, part.weight, part.bias)
        elif self._is_fused(x):
            return self._fused(x, None, None)
        else:
            weight, bias = self.source.parameters()
            source, part = self.source(x), Part(x, weight, bias, self.filter, self.groups)
        # No tensor of the network is larger, and what this one was before is not kept. In float16 the projection may
        # overflow to inf, which the update must not see.
        source = saturated_relu(source) if source.dtype == torch.float16 else source.relu_()
        return nonnegative_deconvolution(
            part.x,
            source,
            torch.relu(part.filter),
            groups=part.groups,
            iterations=self.iterations,
            eps=self.eps,
            backend=self.backend,
        )

    def parts(self, x: Tensor, number: int) -> list[Part]:
        """Divides the groups, in order.

        Args:
            x: (B, C, *S).
            number: of parts, if there are as many groups.
        """
        groups = -(-self.groups // number)
        channels, sources = (groups * (size // self.groups) for size in (self.channels, self.source_channels))
        weights, biases = (parameter.split(sources) for parameter in self.source.parameters())
        divided = zip(x.split(channels, 1), weights, biases, self.filter.split(channels), strict=True)
        return [Part(*part, groups=part[0].shape[1] * self.groups // self.channels) for part in divided]

    def project(self, x: Tensor, projection: Convolution) -> Tensor:
        """`projection(self(x))`, where it is faster without ever having the whole source in memory.

        Args:
            x: (B, C, *S), nonnegative.
            projection: a pointwise convolution with a bias, E to C' channels.

        Returns:
            (B, C', *S).
        """
        if self._is_fused(x):
            return self._fused(x, projection.weight.flatten(1), projection.bias)
        return projection(self(x))

    def _is_fused(self, x: Tensor) -> bool:
        return fuses_projections(x, self.source.weight, self.filter, self.groups, self.iterations, self.backend)

    def _fused(self, x: Tensor, out_weight: Tensor | None, out_bias: Tensor | None) -> Tensor:
        weight, bias = self.source.parameters()
        return projected_deconvolution(
            x, weight.flatten(1), bias, torch.relu(self.filter), out_weight, out_bias, eps=self.eps
        )

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, source_channels={self.source_channels}, "
            f"groups={self.groups}, iterations={self.iterations}, eps={self.eps}"
        )
