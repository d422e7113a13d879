"""The chosen upsamplings and heads in the decoders of the networks here, see `layers.components`."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from nnunet_deconver.layers.common import CountsFeatures
from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS


class Decoder(Protocol):
    """What nnU-Net's decoders have, lowest resolution first.

    Attributes:
        transpconvs: upsamplings, each with `in_channels`, `out_channels` and `stride`.
        seg_layers: segmentation heads.
        deep_supervision: whether all of these run.
    """

    transpconvs: nn.ModuleList
    seg_layers: nn.ModuleList
    deep_supervision: bool


def replace_components(decoder: Decoder, upsampling: dict | None, segmentation_head: dict | None) -> None:
    """Puts the chosen upsamplings and heads in the place of a decoder's own, which keep their shapes and names.

    Args:
        decoder: with its own layers.
        upsampling: entry; None leaves the decoder's own.
        segmentation_head: entry; None leaves the 1x1 convolutions.

    Raises:
        ValueError: for unknown names, options that do not exist or do not fit.
    """
    UPSAMPLINGS.check(upsampling)
    SEGMENTATION_HEADS.check(segmentation_head)
    if upsampling is not None and not UPSAMPLINGS.is_default(upsampling):
        for i, layer in enumerate(decoder.transpconvs):
            own = cast(Any, layer)
            decoder.transpconvs[i] = UPSAMPLINGS.build(upsampling, own.in_channels, own.out_channels, own.stride)
    if segmentation_head is not None and not SEGMENTATION_HEADS.is_default(segmentation_head):
        for i, layer in enumerate(decoder.seg_layers):
            assert isinstance(layer, _ConvNd)
            decoder.seg_layers[i] = SEGMENTATION_HEADS.build(
                segmentation_head, layer.in_channels, layer.out_channels, len(layer.kernel_size)
            )


def components_feature_map_size(
    decoder: Decoder, sizes: Sequence[Sequence[int]], features: Sequence[int], num_classes: int
) -> np.int64:
    """Elements of convolution outputs that the components add to what plain layers would make.

    Args:
        decoder: after `replace_components`.
        sizes: spatial size of each stage's features, highest resolution first.
        features: channels of each stage, likewise.
        num_classes: output channels.
    """
    total = np.int64(0)
    for i, (upsampling, head) in enumerate(zip(decoder.transpconvs, decoder.seg_layers, strict=True)):
        level = len(decoder.seg_layers) - 1 - i
        voxels = np.prod(sizes[level], dtype=np.int64)
        if isinstance(upsampling, CountsFeatures):
            total += upsampling.compute_conv_feature_map_size(sizes[level + 1]) - features[level] * voxels
        if isinstance(head, CountsFeatures) and (decoder.deep_supervision or level == 0):
            total += head.compute_conv_feature_map_size(sizes[level]) - num_classes * voxels
    return total


def sizes_per_stage(input_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Spatial size of each stage's features, highest resolution first."""
    sizes: list[list[int]] = []
    for stride in strides:
        size = sizes[-1] if sizes else input_size
        sizes.append([s // t for s, t in zip(size, stride, strict=True)])
    return sizes
