"""MedNeXt, arXiv 2303.09975, section 2 and figure 1, on nnU-Net's topology."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor, nn

from nnunet_deconver.layers.common import (
    CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    Convolution,
    TransposedConvolution,
    voxels,
)
from nnunet_deconver.networks.topology import per_stage, per_stage_and_axis, spatial_rank
from nnunet_deconver.networks.u_shape import StagedDecoder, StagedEncoder, UShaped


class MedNeXt(UShaped):
    """U-shaped network of MedNeXt blocks, in the size S where not told otherwise.

    A pointwise stem, then per stage a block that downsamples and blocks that do not; on the way up a block that
    upsamples, the sum with the skip, and blocks. See `MedNeXtBlock`.

    Deviations from the paper:

    - Stages, features, strides and kernels are those of the plan, per axis and stage, where the paper has five stages
      of 32 x 2^i features, strides of 2 and one kernel. A block between two stages has the kernel of the lower one.
    - Blocks that upsample make n x stride voxels of n, each at its place. The paper's make 2n - 1 and put zeros before
      the first, which moves the others by a voxel.
    - The lowest resolution has no segmentation head: nnU-Net's loss gives it no weight.

    Args:
        input_channels: channels of the image.
        n_stages: number of resolutions.
        features_per_stage: channels of each stage, or one number for all.
        conv_op: `torch.nn.Conv1d`, `Conv2d` or `Conv3d`; sets the spatial rank.
        kernel_sizes: kernel of the depthwise convolutions per stage (odd numbers), one number or one per axis.
        strides: downsampling on entry of each stage, one number or one per axis; the first is usually 1.
        num_classes: output channels.
        deep_supervision: return the logits of all resolutions, highest first, instead of the highest alone.
        n_blocks_per_stage: blocks of each stage, in the encoder and in the decoder, or one number for all. Table 1 has
            2 (S, B), 3 4 4 4 4 (M), 3 4 8 8 8 (L).
        expansion: channels inside the blocks of each stage per channel, in the encoder and in the decoder, or one
            number for all; a block between two stages has that of the one it leads to. Table 1 has 2 (S), 2 3 4 4 4
            (B, M), 3 4 8 8 8 (L).
        upsampling: entry of the axis, see `layers.components`, in the place of the blocks that upsample; None for them.
        segmentation_head: entry of the axis; None for 1x1 convolutions.

    Raises:
        ValueError: for lists of the wrong length, or even kernels.
    """

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[Convolution],
        kernel_sizes: int | Sequence[int | Sequence[int]],
        strides: int | Sequence[int | Sequence[int]],
        num_classes: int,
        deep_supervision: bool = False,
        *,
        n_blocks_per_stage: int | Sequence[int] = 2,
        expansion: int | Sequence[int] = 2,
        upsampling: dict | None = None,
        segmentation_head: dict | None = None,
    ) -> None:
        rank = spatial_rank(conv_op)
        kernels = per_stage_and_axis("kernel_sizes", kernel_sizes, n_stages, rank)
        if any(extent % 2 == 0 for kernel in kernels for extent in kernel):
            raise ValueError(f"kernel_sizes must be odd numbers, got {kernel_sizes!r}")
        stages = (
            per_stage("features_per_stage", features_per_stage, n_stages),
            kernels,
            per_stage_and_axis("strides", strides, n_stages, rank),
            per_stage("n_blocks_per_stage", n_blocks_per_stage, n_stages),
            per_stage("expansion", expansion, n_stages),
        )
        encoder = MedNeXtEncoder(input_channels, *stages)
        decoder = MedNeXtDecoder(*stages, num_classes, deep_supervision)
        super().__init__(encoder, decoder, upsampling, segmentation_head)


class MedNeXtBlock(nn.Module):
    """`Y = compress(GELU(expand(norm(depthwise(X))))) + residual(X)`, section 2.1 and 2.2.

    The norm has a group per channel; expansion and compression are pointwise.

    Args:
        depthwise: a convolution with a group per channel: strided to downsample, transposed to upsample.
        residual: what brings X to the shape of Y: nothing, or a pointwise convolution of the same kind and stride.
        out_channels: channels of the output.
        expansion: channels inside per channel of the input.
    """

    def __init__(
        self, depthwise: Convolution | TransposedConvolution, residual: nn.Module, out_channels: int, expansion: int
    ) -> None:
        super().__init__()
        channels, hidden = depthwise.in_channels, expansion * depthwise.in_channels
        convolution = CONVOLUTIONS[len(depthwise.kernel_size)]
        self.depthwise = depthwise
        self.norm = nn.GroupNorm(channels, channels)
        self.expand = convolution(channels, hidden, 1)
        self.gelu = nn.GELU()
        self.compress = convolution(hidden, out_channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, out_channels, *T)."""
        return self.compress(self.gelu(self.expand(self.norm(self.depthwise(x))))) + self.residual(x)

    def feature_channels(self) -> int:
        """Channels of all convolution outputs in the block, which are of the size of its output."""
        return sum(
            layer.out_channels for layer in self.modules() if isinstance(layer, Convolution | TransposedConvolution)
        )


class MedNeXtUpsampling(MedNeXtBlock):
    """A block that upsamples: its convolutions are transposed. It makes n x stride voxels of n along each axis.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: one number per spatial axis.
        kernel_size: of the depthwise convolution, one odd number per spatial axis.
        expansion: channels inside per channel of the input.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Sequence[int], kernel_size: Sequence[int], expansion: int
    ) -> None:
        transposed = TRANSPOSED_CONVOLUTIONS[len(stride)]
        # (n - 1) stride + 1 voxels come without it.
        output_padding = [s - 1 for s in stride]
        depthwise = transposed(
            in_channels,
            in_channels,
            kernel_size,
            stride,
            padding=[k // 2 for k in kernel_size],
            output_padding=output_padding,
            groups=in_channels,
        )
        residual = transposed(in_channels, out_channels, 1, stride, output_padding=output_padding)
        super().__init__(depthwise, residual, out_channels, expansion)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = tuple(stride)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolution outputs for one image whose features have `input_size` voxels here."""
        output_size = [size * s for size, s in zip(input_size, self.stride, strict=True)]
        return self.feature_channels() * voxels(output_size, len(self.stride))


def _downsampling(
    in_channels: int, out_channels: int, stride: Sequence[int], kernel_size: Sequence[int], expansion: int
) -> MedNeXtBlock:
    residual = CONVOLUTIONS[len(stride)](in_channels, out_channels, 1, stride)
    return MedNeXtBlock(_depthwise(in_channels, kernel_size, stride), residual, out_channels, expansion)


def _blocks(channels: int, kernel_size: Sequence[int], n: int, expansion: int) -> nn.Sequential:
    stride = [1 for _ in kernel_size]
    return nn.Sequential(
        *(MedNeXtBlock(_depthwise(channels, kernel_size, stride), nn.Identity(), channels, expansion) for _ in range(n))
    )


def _depthwise(channels: int, kernel_size: Sequence[int], stride: Sequence[int]) -> Convolution:
    padding = [k // 2 for k in kernel_size]
    return CONVOLUTIONS[len(stride)](channels, channels, kernel_size, stride, padding=padding, groups=channels)


class MedNeXtEncoder(StagedEncoder):
    """A pointwise stem, and blocks that downsample between stages of blocks that do not."""

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        n_blocks: Sequence[int],
        expansion: Sequence[int],
    ) -> None:
        stem = CONVOLUTIONS[len(strides[0])](input_channels, features[0], 1, strides[0])
        downsamplings = nn.ModuleList(
            _downsampling(features[stage - 1], features[stage], strides[stage], kernel_sizes[stage], expansion[stage])
            for stage in range(1, len(features))
        )
        stages = nn.ModuleList(
            _blocks(*of_stage) for of_stage in zip(features, kernel_sizes, n_blocks, expansion, strict=True)
        )
        super().__init__(stem, downsamplings, stages, strides, features)


class MedNeXtDecoder(StagedDecoder):
    """Blocks that upsample, and sums with the skip, between stages of blocks that do not."""

    def __init__(
        self,
        features: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        n_blocks: Sequence[int],
        expansion: Sequence[int],
        num_classes: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__(features, num_classes, deep_supervision)
        convolution: Callable[..., Convolution] = CONVOLUTIONS[len(strides[0])]
        levels = range(len(features) - 2, -1, -1)
        self.transpconvs = nn.ModuleList(
            MedNeXtUpsampling(
                features[level + 1], features[level], strides[level + 1], kernel_sizes[level + 1], expansion[level]
            )
            for level in levels
        )
        self.stages = nn.ModuleList(
            _blocks(features[level], kernel_sizes[level], n_blocks[level], expansion[level]) for level in levels
        )
        # All heads exist whether used or not, so that weights load either way.
        self.seg_layers = nn.ModuleList(convolution(features[level], num_classes, 1) for level in levels)

    def joined(self, i: int, x: Tensor, skip: Tensor) -> Tensor:
        """See `StagedDecoder`."""
        return x + skip
