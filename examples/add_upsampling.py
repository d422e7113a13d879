"""Adds an upsampling of one's own, and builds nnU-Net's network with it from an entry as in a plans file.

    python examples/add_upsampling.py

In a package of yours, the class and the entry stand in a module that its pyproject.toml names: see docs/extending.md.
"""

from collections.abc import Sequence

import torch
from torch import nn

from nnunet_deconver.networks import UPSAMPLINGS, Component, PlainConvUNet


class PixelShuffle(nn.Sequential):
    """A 1x1 convolution, whose channels become voxels."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        positions = stride[0] * stride[1]
        super().__init__(nn.Conv2d(in_channels, out_channels * positions, 1), nn.PixelShuffle(stride[0]))


UPSAMPLINGS.choices["pixel_shuffle"] = Component(PixelShuffle, label="PixelShuffle", source="arXiv 1609.05158")


def main() -> torch.Tensor:
    """Builds the network and sends a patch through it."""
    network = PlainConvUNet(
        input_channels=3,
        n_stages=3,
        features_per_stage=[16, 32, 64],
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[1, 2, 2],
        n_conv_per_stage=[2, 2, 2],
        num_classes=2,
        n_conv_per_stage_decoder=[2, 2],
        norm_op=nn.InstanceNorm2d,
        nonlin=nn.LeakyReLU,
        upsampling={"name": "pixel_shuffle"},
    )
    logits = network(torch.randn(1, 3, 64, 64))
    print(f"{type(network.decoder.transpconvs[0]).__name__}: logits {tuple(logits.shape)}")
    return logits


if __name__ == "__main__":
    main()
