"""The Deconver block, arXiv 2504.00302, section 3.2, eq. (4) to (6)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_deconver.layers.nonnegative_deconvolution import CONVOLUTIONS, NonnegativeDeconvolution
from nnunet_deconver.ops import device_type
from nnunet_deconver.ops.recompute import checkpointed, in_slabs

INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class DeconvMixer(nn.Module):
    """The mixer of eq. (6): pointwise, ReLU, NDC, pointwise.

    Args:
        channels: channels of input and output.
        kernel_size: one odd number per spatial axis.
        source_ratio: channels of the NDC source per channel.
        groups: groups of the NDC; None for one per channel.
        iterations: updates of the NDC.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Sequence[int],
        source_ratio: float = 4,
        groups: int | None = None,
        iterations: int = 1,
    ):
        super().__init__()
        self.ndc = NonnegativeDeconvolution(channels, kernel_size, source_ratio, groups, iterations)
        convolution = CONVOLUTIONS[len(kernel_size)]
        self.projection_in = convolution(channels, channels, 1, bias=False)
        self.projection_out = convolution(self.ndc.source_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *S)."""
        return self.projection_out(self.ndc(torch.relu(self.projection_in(x))))


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
    ):
        super().__init__()
        self.mixer = DeconvMixer(channels, kernel_size, source_ratio, groups, iterations)
        hidden = round(channels * mlp_ratio)
        if hidden < 1:
            raise ValueError(f"mlp_ratio = {mlp_ratio} leaves no channel of {channels}; it must be positive")
        rank = len(kernel_size)
        convolution = CONVOLUTIONS[rank]
        self.norm_mixer = INSTANCE_NORMS[rank](channels)
        self.norm_mlp = INSTANCE_NORMS[rank](channels)
        self.mlp = nn.Sequential(convolution(channels, hidden, 1), nn.GELU(), convolution(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *S)."""
        # The source's update looks a kernel's half far for the reconstruction, and as far again for its adjoint.
        ndc = self.mixer.ndc
        halo = 2 * ndc.iterations * (ndc.kernel_size[0] // 2)
        x = self._step(x, self.norm_mixer, self.mixer, halo, ndc.source_channels)
        return self._step(x, self.norm_mlp, self.mlp, 0, self.mlp[0].out_channels)

    def _step(self, x: Tensor, norm: nn.Module, function: nn.Module, halo: int, widest: int) -> Tensor:
        """`x + function(norm(x))`; keeps what is made on the way, many times the size of x, out of memory."""
        if device_type(x) != "cpu":
            return checkpointed(lambda x: x + function(norm(x)), x)
        # In slabs, but for the norm, which is of the whole image.
        expansion = widest / x.shape[1]
        return x + in_slabs(function, norm(x), tuple(function.parameters()), halo=halo, expansion=expansion)

    def feature_channels(self) -> int:
        """Channels of all convolution outputs in the block, NDC's own three convolutions included."""
        channels, sources = self.mixer.ndc.channels, self.mixer.ndc.source_channels
        # projection in, source, numerator, (reconstruction, denominator) per iteration, projection out
        mixer = 2 * channels + 2 * sources + self.mixer.ndc.iterations * (channels + sources)
        return mixer + self.mlp[0].out_channels + channels
