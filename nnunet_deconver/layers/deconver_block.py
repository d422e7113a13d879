"""The Deconver block, arXiv 2504.00302, sections 3.4 and 3.5, eq. (4) to (6)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_deconver.layers.common import CONVOLUTIONS, pointwise_convolution
from nnunet_deconver.layers.instance_norm import InstanceNorm
from nnunet_deconver.layers.nonnegative_deconvolution import NonnegativeDeconvolution, Part
from nnunet_deconver.ops import policy
from nnunet_deconver.ops.common import check_not_empty
from nnunet_deconver.ops.pointwise import pointwise
from nnunet_deconver.ops.recompute import checkpointed, in_chunks, in_groups


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
        return self.ndc.project(self.rectified(x), self.projection_out)

    def rectified(self, x: Tensor) -> Tensor:
        """What the NDC explains, (B, C, *S)."""
        if policy(x).channels_last:
            return pointwise_convolution(x, self.projection_in.weight, None, rectify=True)
        return torch.relu(self.projection_in(x))

    def in_parts(self, rectified: Tensor, number: int) -> Tensor:
        """What `forward` makes of `rectified`, some groups after the other, keeping nothing but that for backward.

        Args:
            rectified: (B, C, *S), see there.
            number: of parts that the groups are divided into.
        """
        parts = self.ndc.parts(rectified, number)
        weights = self.projection_out.weight.split([len(part.bias) for part in parts], 1)
        biases = [self.projection_out.bias] + [None] * (len(parts) - 1)
        done = None
        for each in zip(parts, weights, biases, strict=True):
            of_part = checkpointed(self._of_part, rectified, *each)
            done = of_part if done is None else done + of_part
        assert done is not None  # there is a part at least
        return done

    def _of_part(self, rectified: Tensor, part: Part, weight: Tensor, bias: Tensor | None) -> Tensor:
        return pointwise_convolution(self.ndc(rectified, part=part), weight, bias)


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
        weight_in, bias_in, weight_out, bias_out = self.parameters()
        matrix_in, matrix_out = (weight.flatten(1).t().contiguous() for weight in (weight_in, weight_out))
        parameters = matrix_in, bias_in, matrix_out, bias_out

        def of_voxels(rows: Tensor) -> Tensor:
            hidden = activation(pointwise(rows, matrix_in, bias_in))
            return pointwise(hidden, matrix_out, bias_out)

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
        recompute: make again in the backward pass what is made on the way, a part at a time, and keep little but the
            input; else make all at once, and keep it. The result is the same. Where pointwise layers go in chunks, as
            on a CPU, it changes nothing: the layers there keep little anyway.
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
        recompute: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.mixer = DeconvMixer(channels, kernel_size, source_ratio, groups, iterations, backend=backend)
        hidden = round(channels * mlp_ratio)
        if hidden < 1:
            raise ValueError(f"mlp_ratio = {mlp_ratio} leaves no channel of {channels}; it must be positive")
        self.norm_mixer = InstanceNorm()
        self.norm_mlp = InstanceNorm()
        self.mlp = PointwiseMLP(channels, hidden, len(kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *S)."""
        if policy(x).in_chunks or not self.recompute:
            return self._transformed(self._mixed(x))
        # What is made on the way is many times the size of x, and kept out of memory. On a CPU the layers see to that.
        x = in_groups(self._mixed_in_parts, x)
        return in_groups(self._transformed_in_parts, x)

    def _mixed(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm_mixer(x))

    def _mixed_in_parts(self, x: Tensor, number: int) -> Tensor:
        if number == 1 or self.mixer.ndc.groups == 1:
            return checkpointed(self._mixed, x)
        # Kept, as all parts need it.
        rectified = checkpointed(lambda x: self.mixer.rectified(self.norm_mixer(x)), x)
        return x + self.mixer.in_parts(rectified, number)

    def _transformed(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm_mlp(x))

    def _transformed_in_parts(self, x: Tensor, number: int) -> Tensor:
        if number == 1:
            return checkpointed(self._transformed, x)
        parts = x.split(-(-x.shape[2] // number), 2)
        mean, variance = self.norm_mlp.statistics(parts)

        def transformed(part: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
            return part + self.mlp(self.norm_mlp.of_part(part, mean, variance))

        return torch.cat([checkpointed(transformed, part, mean, variance) for part in parts], 2)

    def feature_channels(self) -> int:
        """Channels of all convolution outputs in the block, NDC's own three convolutions included."""
        channels, sources = self.mixer.ndc.channels, self.mixer.ndc.source_channels
        # projection in, source, numerator, (reconstruction, denominator) per iteration, projection out
        mixer = 2 * channels + 2 * sources + self.mixer.ndc.iterations * (channels + sources)
        return mixer + self.mlp.hidden + channels
