"""The Deconver block, arXiv 2504.00302, sections 3.4 and 3.5, eq. (4) to (6)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_deconver.layers.common import CONVOLUTIONS
from nnunet_deconver.layers.instance_norm import InstanceNorm
from nnunet_deconver.layers.nonnegative_deconvolution import NonnegativeDeconvolution
from nnunet_deconver.ops import policy
from nnunet_deconver.ops.common import check_not_empty
from nnunet_deconver.ops.pointwise import pointwise
from nnunet_deconver.ops.recompute import checkpointed, in_chunks


class DeconvMixer(nn.Module):
    """The mixer of eq. (6): pointwise, ReLU, NDC, pointwise.

    Args:
        channels: channels of input and output.
        kernel_size: one odd number per spatial axis.
        source_ratio: channels of the NDC source per channel.
        groups: groups of the NDC; None for one per channel.
        iterations: updates of the NDC.
        backend: what computes the NDC, see `ops.nonnegative_deconvolution`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Sequence[int],
        source_ratio: float = 4,
        groups: int | None = None,
        iterations: int = 1,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.ndc = NonnegativeDeconvolution(channels, kernel_size, source_ratio, groups, iterations, backend=backend)
        convolution = CONVOLUTIONS[len(kernel_size)]
        self.projection_in = convolution(channels, channels, 1, bias=False)
        self.projection_out = convolution(self.ndc.source_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *S)."""
        return self.ndc.project(torch.relu(self.projection_in(x)), self.projection_out)


class PointwiseMLP(nn.Sequential):
    """The MLP of eq. (5): pointwise, GELU, pointwise.

    Args:
        channels: channels of input and output.
        hidden: channels inside.
        rank: number of spatial axes.
    """

    def __init__(self, channels: int, hidden: int, rank: int) -> None:
        convolution = CONVOLUTIONS[rank]
        super().__init__(convolution(channels, hidden, 1), nn.GELU(), convolution(hidden, channels, 1))
        self.channels = channels
        self.hidden = hidden

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *S)."""
        if not policy(input).in_chunks:
            return super().forward(input)
        check_not_empty(input)
        activation = self[1]
        parameters = weight_in, bias_in, weight_out, bias_out = tuple(self.parameters())

        def of_voxels(rows: Tensor) -> Tensor:
            hidden = activation(pointwise(rows, weight_in.flatten(1), bias_in))
            return pointwise(hidden, weight_out.flatten(1), bias_out)

        voxels = input.movedim(1, -1)
        expansion = self.hidden / self.channels
        return (
            in_chunks(of_voxels, voxels.flatten(0, -2), parameters, expansion=expansion)
            .view(voxels.shape)
            .movedim(-1, 1)
        )


class DeconverBlock(nn.Module):
    """`Z = Mixer(IN(X)) + X; Y = MLP(IN(Z)) + Z`, eq. (4) and (5).

    The MLP is pointwise C -> mlp_ratio C, GELU, pointwise back; instance normalisation has no parameters.

    Args:
        channels: channels of input and output.
        kernel_size: one odd number per spatial axis.
        source_ratio: channels of the NDC source per channel.
        groups: groups of the NDC; None for one per channel.
        iterations: updates of the NDC.
        mlp_ratio: channels inside the MLP per channel.
        backend: what computes the NDC, see `ops.nonnegative_deconvolution`.

    Raises:
        ValueError: as `NonnegativeDeconvolution`, and for an mlp_ratio without a whole number of channels.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Sequence[int],
        source_ratio: float = 4,
        groups: int | None = None,
        iterations: int = 1,
        mlp_ratio: float = 4,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.mixer = DeconvMixer(channels, kernel_size, source_ratio, groups, iterations, backend=backend)
        hidden = round(channels * mlp_ratio)
        if hidden < 1:
            raise ValueError(f"mlp_ratio = {mlp_ratio} leaves no channel of {channels}; it must be positive")
        self.norm_mixer = InstanceNorm()
        self.norm_mlp = InstanceNorm()
        self.mlp = PointwiseMLP(channels, hidden, len(kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *S)."""
        x = _add(x, self.norm_mixer, self.mixer)
        return _add(x, self.norm_mlp, self.mlp)

    def feature_channels(self) -> int:
        """Channels of all convolution outputs in the block, NDC's own three convolutions included."""
        channels, sources = self.mixer.ndc.channels, self.mixer.ndc.source_channels
        # projection in, source, numerator, (reconstruction, denominator) per iteration, projection out
        mixer = 2 * channels + 2 * sources + self.mixer.ndc.iterations * (channels + sources)
        return mixer + self.mlp.hidden + channels


def _add(x: Tensor, norm: nn.Module, function: nn.Module) -> Tensor:
    """`x + function(norm(x))`."""
    if policy(x).in_chunks:
        return x + function(norm(x))
    # What is made on the way is many times the size of x, and kept out of memory. On a CPU the functions see to that.
    return checkpointed(lambda x: x + function(norm(x)), x)
