"""Deconver, arXiv 2504.00302, section 3.3 and figure 1, on nnU-Net's topology.

Deviations from the paper: strides and kernels may differ per axis and stage, as nnU-Net plans them; every decoder
stage has a segmentation head, of which all run under deep supervision and the last alone otherwise.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from nnunet_deconver.layers import DeconverBlock
from nnunet_deconver.layers.common import (
    CONVOLUTIONS,
    Convolution,
    pointwise_convolution,
    transposed_convolution,
)
from nnunet_deconver.networks.topology import per_stage, per_stage_and_axis, spatial_rank
from nnunet_deconver.networks.u_shape import StagedDecoder, StagedEncoder, UShaped
from nnunet_deconver.ops import fast_layout


class Deconver(UShaped):
    """U-shaped network of Deconver blocks.

    Stem, then per stage a strided convolution (kernel = stride) and blocks; on the way up a transposed convolution
    (kernel = stride), concatenation with the skip, a pointwise projection and blocks.

    The arguments are those of an nnU-Net plan (`architecture.arch_kwargs`). The ones that describe nnU-Net's
    convolution blocks (`n_conv_per_stage` to `nonlin_kwargs` below) have no counterpart here: a plan of
    PlainConvUNet or ResidualEncoderUNet may keep them when its `network_class_name` is changed to this class, and
    they change nothing.

    Args:
        input_channels: channels of the image.
        n_stages: number of resolutions.
        features_per_stage: channels of each stage, or one number for all; the paper has min(C0 * 2^l, 512).
        conv_op: `torch.nn.Conv1d`, `Conv2d` or `Conv3d`; sets the spatial rank.
        kernel_sizes: NDC's kernel per stage (odd numbers), one number or one per axis. The stem's kernel is that of
            the first stage, 3 at most.
        strides: downsampling on entry of each stage, one number or one per axis; the first is usually 1.
        num_classes: output channels.
        deep_supervision: return the logits of all resolutions, highest first, instead of the highest alone.
        n_blocks_per_stage: blocks of each encoder stage; the paper has 1.
        n_blocks_per_stage_decoder: blocks of each decoder stage, lowest resolution first; the paper has 1.
        source_ratio: channels of the NDC source per channel.
        ndc_groups: groups of the NDC; None for one per channel.
        ndc_iterations: updates of the NDC; the paper has 1. More are computed by the plain path.
        mlp_ratio: channels inside the MLP per channel.
        recompute: where blocks make again in the backward pass what they made in the forward pass, see
            `DeconverBlock`: "always", which takes the least memory; "never", which takes the fewest operations; or one
            boolean per stage, highest resolution first, for its blocks in encoder and decoder.
        backend: what computes the NDC, see `ops.nonnegative_deconvolution`; None for the fastest that can.
        upsampling: entry of the axis, see `layers.components`; None for transposed convolutions.
        segmentation_head: entry of the axis; None for 1x1 convolutions.
        n_conv_per_stage: unused, see above.
        n_conv_per_stage_decoder: unused.
        conv_bias: unused.
        norm_op: unused.
        norm_op_kwargs: unused.
        dropout_op: unused.
        dropout_op_kwargs: unused.
        nonlin: unused.
        nonlin_kwargs: unused.

    Raises:
        ValueError: for lists of the wrong length, even kernels, groups that do not divide, an unknown backend or
            recomputation.
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
        n_blocks_per_stage: int | Sequence[int] = 1,
        n_blocks_per_stage_decoder: int | Sequence[int] = 1,
        source_ratio: float = 4,
        ndc_groups: int | None = None,
        ndc_iterations: int = 1,
        mlp_ratio: float = 4,
        recompute: str | Sequence[bool] = "always",
        backend: str | None = None,
        upsampling: dict | None = None,
        segmentation_head: dict | None = None,
        n_conv_per_stage: object = None,
        n_conv_per_stage_decoder: object = None,
        conv_bias: object = None,
        norm_op: object = None,
        norm_op_kwargs: object = None,
        dropout_op: object = None,
        dropout_op_kwargs: object = None,
        nonlin: object = None,
        nonlin_kwargs: object = None,
    ) -> None:
        rank = spatial_rank(conv_op)
        convolution = CONVOLUTIONS[rank]
        features = per_stage("features_per_stage", features_per_stage, n_stages)
        kernel_sizes = per_stage_and_axis("kernel_sizes", kernel_sizes, n_stages, rank)
        strides = per_stage_and_axis("strides", strides, n_stages, rank)
        blocks_up = per_stage("n_blocks_per_stage_decoder", n_blocks_per_stage_decoder, n_stages - 1)
        block_kwargs = [
            {
                "source_ratio": source_ratio,
                "groups": ndc_groups,
                "iterations": ndc_iterations,
                "mlp_ratio": mlp_ratio,
                "recompute": of_stage,
                "backend": backend,
            }
            for of_stage in recomputed_stages(recompute, n_stages)
        ]

        encoder = DeconverEncoder(
            input_channels,
            features,
            convolution,
            kernel_sizes,
            strides,
            per_stage("n_blocks_per_stage", n_blocks_per_stage, n_stages),
            block_kwargs,
        )
        decoder = DeconverDecoder(
            features, convolution, kernel_sizes, strides, blocks_up, num_classes, deep_supervision, block_kwargs
        )
        super().__init__(encoder, decoder, upsampling, segmentation_head)


class DeconverEncoder(StagedEncoder):
    """Convolutions (kernel = stride) between stages of Deconver blocks."""

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        convolution: Callable[..., Convolution],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        n_blocks: Sequence[int],
        block_kwargs: Sequence[dict],
    ) -> None:
        stem_kernel = [min(k, 3) for k in kernel_sizes[0]]
        padding = [k // 2 for k in stem_kernel]
        stem = convolution(input_channels, features[0], stem_kernel, strides[0], padding=padding, bias=False)
        downsamplings = nn.ModuleList(
            convolution(features[stage - 1], features[stage], strides[stage], strides[stage])
            for stage in range(1, len(features))
        )
        stages = nn.ModuleList(
            _blocks(*of_stage) for of_stage in zip(features, kernel_sizes, n_blocks, block_kwargs, strict=True)
        )
        super().__init__(stem, downsamplings, stages, strides, features)

    def begin(self, x: Tensor) -> Tensor:
        """See `StagedEncoder`; from here on all features lie as is fast."""
        return fast_layout(self.stem(x))


class DeconverDecoder(StagedDecoder):
    """Transposed convolutions (kernel = stride) and projections of features with their skip between stages."""

    def __init__(
        self,
        features: Sequence[int],
        convolution: Callable[..., Convolution],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        n_blocks: Sequence[int],
        num_classes: int,
        deep_supervision: bool,
        block_kwargs: Sequence[dict],
    ) -> None:
        super().__init__(features, num_classes, deep_supervision)
        levels = range(len(features) - 2, -1, -1)
        self.transpconvs = nn.ModuleList(
            transposed_convolution(features[level + 1], features[level], strides[level + 1]) for level in levels
        )
        self.projections = nn.ModuleList(_JoiningProjection(features[level], convolution) for level in levels)
        self.stages = nn.ModuleList(
            _blocks(features[level], kernel_sizes[level], n, block_kwargs[level])
            for level, n in zip(levels, n_blocks, strict=True)
        )
        # All heads exist whether used or not, so that weights load either way.
        self.seg_layers = nn.ModuleList(convolution(features[level], num_classes, 1) for level in levels)

    def joined(self, i: int, x: Tensor, skip: Tensor) -> Tensor:
        """See `StagedDecoder`."""
        return self.projections[i](x, skip)

    def joining_channels(self, features: int) -> int:
        """See `StagedDecoder`: those of the projection."""
        return features


class _JoiningProjection(nn.Module):
    """A pointwise convolution of two tensors' channels, C each, side by side, to C channels, without bias.

    Side by side they never are: that would be a copy of both, kept for the backward pass beside the skip itself.
    """

    def __init__(self, channels: int, convolution: Callable[..., Convolution]) -> None:
        super().__init__()
        self.weight = convolution(2 * channels, channels, 1, bias=False).weight

    def reset_parameters(self) -> None:
        """Draws the weight anew, as convolutions do."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Maps (B, C, *S) twice to (B, C, *S)."""
        of_x, of_skip = self.weight.chunk(2, dim=1)
        return pointwise_convolution(x, of_x, None) + pointwise_convolution(skip, of_skip, None)


def _blocks(channels: int, kernel_size: Sequence[int], n: int, block_kwargs: dict) -> nn.Sequential:
    return nn.Sequential(*(DeconverBlock(channels, kernel_size, **block_kwargs) for _ in range(n)))


def recomputed_stages(recompute: str | Sequence[bool], n_stages: int) -> list[bool]:
    """Whether the blocks of each stage compute again in the backward pass, see `Deconver`.

    Raises:
        ValueError: if `recompute` is none of what is allowed there.
    """
    if recompute in ("always", "never"):
        return [recompute == "always"] * n_stages
    if (
        not isinstance(recompute, (list, tuple))
        or len(recompute) != n_stages
        or any(not isinstance(of_stage, bool) for of_stage in recompute)
    ):
        raise ValueError(
            f'recompute must be "always", "never", or one of true and false for each of the {n_stages} stages, got '
            f"{recompute!r}; planners choose them (nnunet-deconver plan --recompute auto)"
        )
    return list(recompute)
