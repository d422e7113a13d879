"""Upsampling by linear interpolation."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_deconver.layers.common import CONVOLUTIONS, check_input, check_stride, upsampled_voxels
from nnunet_deconver.ops.displaced_sampling import check_device

INTERPOLATIONS = {2: "bilinear", 3: "trilinear"}


class LinearUpsampling(nn.Module):
    """A 1x1 convolution for the change of channels, then bilinear or trilinear interpolation.

    The two commute, and the convolution is cheaper at the input's resolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: upsampling per spatial axis, two or three.

    Raises:
        ValueError: for strides that are not positive whole numbers.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = check_stride(stride)
        self.rank = len(self.stride)
        self.projection = CONVOLUTIONS[self.rank](in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, *S) to (B, out_channels, *T) with T = S * stride per axis."""
        check_input(x, self.rank)
        size = [s * t for s, t in zip(x.shape[2:], self.stride, strict=True)]
        return F.interpolate(self.projection(x), size=size, mode=INTERPOLATIONS[self.rank], align_corners=False)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolution outputs for one image whose features have `input_size` voxels here."""
        return np.int64(self.projection.out_channels) * upsampled_voxels(input_size, [1] * self.rank)

    def check_device(self, device: torch.device | str) -> None:
        """Raises ValueError if this module cannot be trained on a device."""
        mode = INTERPOLATIONS[self.rank]
        check_device(device, self.rank, f"{mode} interpolation", lambda x: F.interpolate(x, scale_factor=2, mode=mode))

    def extra_repr(self) -> str:  # noqa: D102
        return f"stride={self.stride}"
