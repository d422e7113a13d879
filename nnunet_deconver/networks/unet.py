"""nnU-Net's own networks with the two axes.

With both axes at their defaults they are nnU-Net's: same parameters under the same names, same function.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dynamic_network_architectures.architectures import unet
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_deconver.layers.common import ResetsParameters
from nnunet_deconver.networks.components import components_feature_map_size, replace_components, sizes_per_stage

if TYPE_CHECKING:
    # What is used of them is alike in both of nnU-Net's networks.
    _Network = unet.PlainConvUNet
else:
    _Network = object


class _WithAxes(_Network):
    """Adds the axes to a network of dynamic-network-architectures.

    Args:
        *args: the network's own.
        upsampling: entry of the axis (see `layers.components`); None for transposed convolutions.
        segmentation_head: entry of the axis; None for 1x1 convolutions.
        **kwargs: the network's own.
    """

    def __init__(
        self, *args: Any, upsampling: dict | None = None, segmentation_head: dict | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        replace_components(self.decoder, upsampling, segmentation_head)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Maps (B, input_channels, *S) to logits (B, num_classes, *S), or to a list of them, highest first."""
        if len(x) or not any(isinstance(module, _InstanceNorm) for module in self.modules()):
            return super().forward(x)
        # PyTorch's instance normalisation with weights takes no empty batch: an image comes along and is dropped.
        outputs = super().forward(torch.cat((x, x.new_zeros(1, *x.shape[1:]))))
        return [output[:0] for output in outputs] if isinstance(outputs, list) else outputs[:0]

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolution outputs for one image of `input_size` voxels, as nnU-Net counts them."""
        strides: Sequence[Sequence[int]] = self.encoder.strides  # pyright: ignore[reportAssignmentType] nnU-Net's
        return super().compute_conv_feature_map_size(input_size) + components_feature_map_size(
            self.decoder,
            sizes_per_stage(input_size, strides),
            self.encoder.output_channels,
            self.decoder.num_classes,
        )

    @classmethod
    def initialize(cls, module: nn.Module) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] static there
        """Initialises `module` as nnU-Net does; layers of the axes restore their own start.

        nnU-Net applies this to every module, children before parents.
        """
        super().initialize(module)
        if isinstance(module, ResetsParameters) and not isinstance(module, _ConvNd):
            module.reset_parameters()


class PlainConvUNet(_WithAxes, unet.PlainConvUNet):  # pyright: ignore[reportIncompatibleMethodOverride] likewise
    """nnU-Net's plain network; arguments are those of its plans, `upsampling` and `segmentation_head`."""


class ResidualEncoderUNet(_WithAxes, unet.ResidualEncoderUNet):  # pyright: ignore[reportIncompatibleMethodOverride]
    """nnU-Net's network with a residual encoder; arguments likewise."""
