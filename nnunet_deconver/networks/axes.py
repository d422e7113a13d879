"""The two axes every network here has besides its backbone: upsampling and segmentation head.

Either is one entry in a plan's `arch_kwargs`: a dict with the `name` of a class below and its options, for instance
`"upsampling": {"name": "dtc", "receptive_field": 4}`. A further upsampling or head is one class and one line here.

An upsampling is constructed with (in_channels, out_channels, stride), a head with (in_channels, num_classes,
spatial_dims); both have `compute_conv_feature_map_size(input_size)`.
"""

import inspect
from collections.abc import Sequence

import numpy as np
from torch import nn

from nnunet_deconver.layers import (
    DeformableTransposedConvolution,
    DySampleUpsampling,
    LinearUpsampling,
    NeRDc,
    NeRDm,
)


class Axis:
    """What can be chosen for one argument of the networks.

    Args:
        argument: its name in `arch_kwargs`.
        default: name of what the backbones build by themselves.
        choices: the classes by name.
    """

    def __init__(self, argument: str, default: str, choices: dict[str, type[nn.Module]]):
        self.argument = argument
        self.default = default
        self.choices = choices

    def is_default(self, entry: dict | None) -> bool:
        """Whether an entry leaves the backbone as it is."""
        return entry is None or entry == {"name": self.default}

    def check(self, entry: dict | None):
        """Raises ValueError unless `entry` is None or names a choice, with options it has."""
        if self.is_default(entry):
            return
        if not isinstance(entry, dict) or "name" not in entry:
            raise ValueError(f'{self.argument} must be a dict with a "name", such as {self._example()}, got {entry!r}')
        known = [self.default, *self.choices]
        if entry["name"] not in known:
            raise ValueError(f"{self.argument} {entry['name']!r} is unknown; known are {', '.join(known)}")
        options = self.options(entry["name"])
        unknown = [option for option in entry if option not in ("name", *options)]
        if unknown:
            allowed = f"it has {', '.join(options)}" if options else "it has none"
            raise ValueError(f"{self.argument} {entry['name']!r} has no option {', '.join(unknown)}; {allowed}")

    def options(self, name: str) -> list[str]:
        """Names of the options of a choice."""
        if name == self.default:
            return []
        # What the networks give every class of the axis is no option.
        return list(inspect.signature(self.choices[name]).parameters)[3:]

    def build(self, entry: dict, *arguments) -> nn.Module:
        """Constructs what a checked entry, not the default one, names."""
        return self.choices[entry["name"]](*arguments, **{k: v for k, v in entry.items() if k != "name"})

    def _example(self) -> dict:
        return {"name": next(iter(self.choices))}


UPSAMPLINGS = Axis(
    "upsampling",
    "transposed",
    {"dtc": DeformableTransposedConvolution, "dysample": DySampleUpsampling, "linear": LinearUpsampling},
)
SEGMENTATION_HEADS = Axis("segmentation_head", "conv", {"nerdm": NeRDm, "nerdc": NeRDc})


def replace_axes(decoder: nn.Module, upsampling: dict | None, segmentation_head: dict | None):
    """Puts the chosen upsamplings and heads in the place of a decoder's own, which keep their shapes and names.

    Args:
        decoder: with nnU-Net's `transpconvs` and `seg_layers`.
        upsampling: entry of the axis; None leaves the transposed convolutions.
        segmentation_head: entry of the axis; None leaves the 1x1 convolutions.

    Raises:
        ValueError: for unknown names, options that do not exist or do not fit.
    """
    UPSAMPLINGS.check(upsampling)
    SEGMENTATION_HEADS.check(segmentation_head)
    if not UPSAMPLINGS.is_default(upsampling):
        for i, layer in enumerate(decoder.transpconvs):
            decoder.transpconvs[i] = UPSAMPLINGS.build(upsampling, layer.in_channels, layer.out_channels, layer.stride)
    if not SEGMENTATION_HEADS.is_default(segmentation_head):
        for i, layer in enumerate(decoder.seg_layers):
            decoder.seg_layers[i] = SEGMENTATION_HEADS.build(
                segmentation_head, layer.in_channels, layer.out_channels, len(layer.kernel_size)
            )


def axes_feature_map_size(
    decoder: nn.Module, sizes: Sequence[Sequence[int]], features: Sequence[int], num_classes: int
) -> np.int64:
    """Elements of convolution outputs that the axes add to what the backbone's own layers would make.

    Args:
        decoder: after `replace_axes`.
        sizes: spatial size of each stage's features, highest resolution first.
        features: channels of each stage, likewise.
        num_classes: output channels.
    """
    total = np.int64(0)
    for i, (upsampling, head) in enumerate(zip(decoder.transpconvs, decoder.seg_layers, strict=True)):
        level = len(decoder.seg_layers) - 1 - i
        voxels = np.prod(sizes[level], dtype=np.int64)
        if hasattr(upsampling, "compute_conv_feature_map_size"):
            total += upsampling.compute_conv_feature_map_size(sizes[level + 1]) - features[level] * voxels
        if hasattr(head, "compute_conv_feature_map_size") and (decoder.deep_supervision or level == 0):
            total += head.compute_conv_feature_map_size(sizes[level]) - num_classes * voxels
    return total


def sizes_per_stage(input_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Spatial size of each stage's features, highest resolution first."""
    sizes, size = [], input_size
    for stride in strides:
        size = [s // t for s, t in zip(size, stride, strict=True)]
        sizes.append(size)
    return sizes
