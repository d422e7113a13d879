"""DySample, "Learning to Upsample by Learning to Sample", ICCV 2023, arXiv 2308.15085, section 3.

The paper upsamples images by one whole factor. Here the same equations hold for any stride per axis in two and three
dimensions: an axis adds one component to each displacement, whether it is upsampled or not, and the initial positions
are the bilinear or trilinear ones, `(k - (stride - 1) / 2) / stride` voxels from the centre of the input voxel for
k = 0 ... stride - 1. The scope factor stays 0.25 input voxels for every stride, as in the authors' code (with stride 2
it is half the distance between neighbouring samples).

Deviation from the authors' code: the offset channels are ordered group, axis (as in the input), position, so that both
styles read alike; the authors' weights would need reordering. Coordinates are float32 under autocast.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_deconver.layers.common import (
    CONVOLUTIONS,
    at_least_float32,
    check_input,
    check_stride,
    upsampled_voxels,
)
from nnunet_deconver.ops.displaced_sampling import check_sampling_device, pixel_shuffle, sample_displaced

STYLES = ("lp", "pl")
SCOPE = 0.25  # voxels of the input per unit of the offset convolution


class DySample(nn.Module):
    """Samples its input at positions that depend on its content; keeps the channels.

    `output = grid_sample(x, P_grid + scope * offset)`, where P_grid are the positions of linear interpolation. The
    offsets come from a 1x1 convolution: of the input, and are then shuffled to the output's resolution ("lp", linear
    then pixel shuffle), or of the shuffled input, which has fewer channels ("pl"). The scope is 0.25 input voxels, or
    with a dynamic one `0.5 * sigmoid(another 1x1 convolution)`. It scales the offsets but does not bound them: the
    convolution is linear.

    The start is the paper's: offset weights of standard deviation 0.001, all else zero, hence nearly linear
    interpolation, and a dynamic scope that equals the static one.

    Args:
        channels: channels of input and output.
        stride: upsampling per spatial axis, two or three; 1 keeps an axis's size but still displaces along it.
        groups: groups of channels, each with its own displacement.
        style: "lp" or "pl".
        dynamic_scope: predict the scope instead of taking 0.25.

    Raises:
        ValueError: for strides that are not positive whole numbers, groups that do not divide, an unknown style, and
            with "pl" channels that cannot be shuffled.
    """

    def __init__(
        self,
        channels: int,
        stride: Sequence[int],
        *,
        groups: int = 4,
        style: str = "lp",
        dynamic_scope: bool = False,
    ) -> None:
        super().__init__()
        self.stride = check_stride(stride)
        self.rank = len(self.stride)
        if int(groups) != groups or groups < 1 or channels % groups:
            raise ValueError(f"groups = {groups} must be a positive divisor of the {channels} channels")
        if style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
        positions = math.prod(self.stride)
        if style == "pl" and channels % positions:
            raise ValueError(
                f"style pl shuffles channels to space: {channels} channels must be a multiple of the {positions} "
                f"positions of stride {self.stride}; use style lp"
            )
        self.channels = channels
        self.groups = groups
        self.style = style
        self.dynamic_scope = dynamic_scope
        components = groups * self.rank
        sizes = (channels, components * positions) if style == "lp" else (channels // positions, components)
        self.offset = CONVOLUTIONS[self.rank](*sizes, 1)
        self.scope = CONVOLUTIONS[self.rank](*sizes, 1, bias=False) if dynamic_scope else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Restores the paper's start: almost no offset, and a dynamic scope of 0.25."""
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.get_parameter("bias"))
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, *S) to (B, C, *T) with T = S * stride per axis."""
        check_input(x, self.rank)
        displacement = self.displacement(x)
        # A voxel is 2 / size wide in grid_sample's coordinates.
        return sample_displaced(x, displacement, [2 / size for size in x.shape[2:]])

    def displacement(self, x: Tensor) -> Tensor:
        """How far each output samples from the positions of linear interpolation, in input voxels.

        Returns:
            (B, groups, axes, *T), float32 at least; the axes in the input's order.
        """
        shuffled = x if self.style == "lp" else pixel_shuffle(x, self.stride)
        displacement = self._at_output_resolution(self.offset(shuffled))
        if self.scope is None:
            displacement = displacement * SCOPE
        else:
            displacement = displacement * self._at_output_resolution(self.scope(shuffled)).sigmoid() * (2 * SCOPE)
        return displacement.unflatten(1, (self.groups, self.rank))

    def _at_output_resolution(self, convolved: Tensor) -> Tensor:
        if self.style == "lp":
            convolved = pixel_shuffle(convolved, self.stride)
        return at_least_float32(convolved)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolution outputs for one image whose features have `input_size` voxels here."""
        convolutions = 2 if self.dynamic_scope else 1
        return np.int64(convolutions * self.groups * self.rank) * upsampled_voxels(input_size, self.stride)

    def check_device(self, device: torch.device | str) -> None:
        """Raises ValueError if this module cannot be trained on a device."""
        check_sampling_device(device, self.rank)

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f"{self.channels}, stride={self.stride}, groups={self.groups}, style={self.style!r}, "
            f"dynamic_scope={self.dynamic_scope}"
        )


class DySampleUpsampling(nn.Module):
    """DySample, then a 1x1 convolution for the change of channels, as it cannot change them itself.

    The projection runs at the output's resolution: with more than one group it does not commute with the sampling.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: upsampling per spatial axis, two or three.
        groups: see `DySample`.
        style: see `DySample`.
        dynamic_scope: see `DySample`.

    Raises:
        ValueError: as `DySample`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        groups: int = 4,
        style: str = "lp",
        dynamic_scope: bool = False,
    ) -> None:
        super().__init__()
        self.sample = DySample(in_channels, stride, groups=groups, style=style, dynamic_scope=dynamic_scope)
        self.projection = CONVOLUTIONS[len(self.sample.stride)](in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, *S) to (B, out_channels, *T) with T = S * stride per axis."""
        return self.projection(self.sample(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolution outputs for one image whose features have `input_size` voxels here."""
        projected = np.int64(self.projection.out_channels) * upsampled_voxels(input_size, self.sample.stride)
        return self.sample.compute_conv_feature_map_size(input_size) + projected

    def check_device(self, device: torch.device | str) -> None:
        """Raises ValueError if this module cannot be trained on a device."""
        self.sample.check_device(device)
