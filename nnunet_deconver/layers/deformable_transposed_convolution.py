"""Deformable transposed convolution (DTC), arXiv 2601.17939, eq. (1) and (2), figure 3.

Chosen here, beyond the paper or left open by it: two and three dimensions with any stride per axis; coordinates
follow `align_corners=False` and end at the border, so that without offsets the deformable part is linear
interpolation; the offset convolution starts at zero, so that training starts there; coordinates are float32 under
autocast.

Section 3.2 says two things of lambda. It is "1 divided by the size of the input feature map"; and its default is "one
pixel-width of the feature map", where coordinates span [-1, 1], in which a pixel is 2 / size wide. `offset_unit`
chooses. The first is the default: it is the one that is written as a formula, and the "ratio of pixel width to the
coordinate range" that the paper calls it is (2 / size) / 2 as well.
"""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_deconver.layers.common import (
    CONVOLUTIONS,
    ChecksDevice,
    CountsFeatures,
    TransposedConvolution,
    at_least_float32,
    check_input,
    check_stride,
    transposed_convolution,
    upsampled_voxels,
)
from nnunet_deconver.layers.dysample import DySampleUpsampling
from nnunet_deconver.layers.linear_upsampling import LinearUpsampling
from nnunet_deconver.ops.displaced_sampling import check_sampling_device, sample_displaced

WEIGHTINGS = ("sigmoid", "linear", None)
# What an offset of 1 is with the receptive field 2, in voxels of the feature map.
OFFSET_UNITS = {"half_pixel": 0.5, "pixel": 1.0}


class DeformableTransposedConvolution(nn.Module):
    """An upsampling plus features sampled at learned positions.

    `output = base(x) + grid_sample(conv1x1(x), P_grid + lambda * tanh(offset) * sigmoid(weight))`, eq. (1) and (2).
    Offsets and weights, one each per spatial axis and output voxel, come from one transposed convolution of x with
    kernel = stride; its channels are the offsets in the order of the axes, then the weights.

    `lambda = (receptive_field / 2) / size` per axis, in grid_sample's [-1, 1] coordinates and with the size of the
    feature map x. A voxel of x is 2 / size wide there, so an output samples at most receptive_field / 4 voxels of x
    from where linear interpolation would, and, interpolating linearly, reaches less than receptive_field / 4 + 1
    voxels of x. The paper's lambda factors 0.5, 1, 2, 5 are the receptive fields 1, 2, 4, 10; with `inf` lambda is 1
    and a sample may move by half the feature map. With `offset_unit="pixel"` all but the last is twice as far:
    `lambda = receptive_field / size`.

    `tanh` and `weighting` are the ablation of the paper's table 4. Without tanh, or with a linear weighting, nothing
    bounds the displacement, and lambda is only its unit.

    At the start the offsets are zero and the weights 1/2 (with `weighting="linear"` through the bias: with offset and
    weight both zero neither would ever get a gradient).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: upsampling per spatial axis, two or three; 1 keeps an axis's size but still deforms along it.
        base: the upsampling that the deformable one is added to: "transposed" (transposed convolution with kernel =
            stride), "linear" (1x1 convolution and interpolation), "dysample" (`DySampleUpsampling`), or a module that
            maps (B, in_channels, *S) to (B, out_channels, *T) with T = S * stride per axis.
        receptive_field: sets lambda; a positive number, or infinity (as a number or as "inf", which JSON can write).
        tanh: squash the offsets to (-1, 1).
        weighting: what the offsets are multiplied with: "sigmoid" (the sigmoid of the predicted weight), "linear" (the
            predicted weight) or None (nothing; no weight is predicted).
        offset_unit: how far an offset of 1 moves a sample with the receptive field 2: "half_pixel" of the feature map,
            the paper's formula for lambda, or a "pixel", what it says beside it.

    Raises:
        ValueError: for a bad stride or receptive field, and for unknown names, with the known ones.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        base: str | nn.Module = "transposed",
        receptive_field: float = 2.0,
        tanh: bool = True,
        weighting: str | None = "sigmoid",
        offset_unit: str = "half_pixel",
    ) -> None:
        super().__init__()
        self.stride = check_stride(stride)
        self.rank = len(self.stride)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.receptive_field = check_receptive_field(receptive_field)
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(map(repr, WEIGHTINGS))}, got {weighting!r}")
        if offset_unit not in OFFSET_UNITS:
            raise ValueError(f"offset_unit must be one of {', '.join(map(repr, OFFSET_UNITS))}, got {offset_unit!r}")
        self.tanh = tanh
        self.weighting = weighting
        self.offset_unit = offset_unit
        self.base: nn.Module
        if isinstance(base, nn.Module):
            self.base = base
        elif isinstance(base, str) and base in BASES:
            self.base = BASES[base](in_channels, out_channels, self.stride)
        else:
            raise ValueError(f"base must be one of {', '.join(BASES)}, or a torch.nn.Module, got {base!r}")
        self.projection = CONVOLUTIONS[self.rank](in_channels, out_channels, 1)
        components = self.rank if weighting is None else 2 * self.rank
        self.offset = transposed_convolution(in_channels, components, self.stride)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Restores the start: zero offsets, PyTorch's own 1x1 convolution. The base keeps what it has."""
        self.projection.reset_parameters()
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.get_parameter("bias"))
        if self.weighting == "linear":
            nn.init.constant_(self.offset.get_parameter("bias")[self.rank :], 0.5)

    def start_as(self, plain: TransposedConvolution) -> None:
        """Makes the layer a transposed convolution, exactly; sampled features come in from zero.

        Args:
            plain: the transposed convolution: of the base's shapes, or the base itself.

        Raises:
            ValueError: if the base is another upsampling.
        """
        if plain is not self.base:
            if not isinstance(self.base, TransposedConvolution):
                raise ValueError(
                    f"base {type(self.base).__name__} cannot start as a transposed convolution; leave it out"
                )
            self.base.load_state_dict(plain.state_dict(), strict=plain.bias is not None)
            if plain.bias is None and self.base.bias is not None:
                nn.init.zeros_(self.base.bias)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, *S) to (B, out_channels, *T) with T = S * stride per axis.

        Raises:
            ValueError: if the rank of x, or the shape of what the base returns, does not fit.
        """
        check_input(x, self.rank)
        base = self.base(x)
        expected = (x.shape[0], self.out_channels, *(s * t for s, t in zip(x.shape[2:], self.stride, strict=True)))
        if base.shape != expected:
            raise ValueError(
                f"base {type(self.base).__name__} must map {tuple(x.shape)} to {expected}, its output has shape "
                f"{tuple(base.shape)}"
            )
        sampled = sample_displaced(
            self.projection(x), self.relative_displacement(x).unsqueeze(1), self.displacement_limit(x.shape[2:])
        )
        return base + sampled

    def relative_displacement(self, x: Tensor) -> Tensor:
        """`tanh(offset) * sigmoid(weight)`, the displacement in units of lambda.

        Returns:
            (B, axes, *T), float32 at least; the axes in the input's order.
        """
        predicted = at_least_float32(self.offset(x))
        offset = predicted[:, : self.rank]
        if self.tanh:
            offset = offset.tanh()
        if self.weighting is None:
            return offset
        weight = predicted[:, self.rank :]
        return offset * (weight.sigmoid() if self.weighting == "sigmoid" else weight)

    @property
    def reach(self) -> float:
        """Lambda in voxels of the feature map: how far a sample moves at most; infinity for half the feature map."""
        return self.receptive_field / 2 * OFFSET_UNITS[self.offset_unit]

    def displacement_limit(self, size: Sequence[int]) -> list[float]:
        """Lambda of each axis for a feature map of `size`, in grid_sample's [-1, 1] coordinates."""
        if self.receptive_field == math.inf:  # torch.compile does not know math.isinf of a number it keeps variable
            return [1.0] * self.rank
        return [2 * self.reach / s for s in size]  # a voxel is 2 / size wide

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolution outputs for one image whose features have `input_size` voxels here.

        A base that cannot count its own counts as one convolution with its output.
        """
        output_voxels = upsampled_voxels(input_size, self.stride)
        if isinstance(self.base, CountsFeatures):
            base = self.base.compute_conv_feature_map_size(input_size)
        else:
            base = np.int64(self.out_channels) * output_voxels
        projection = np.int64(self.out_channels) * np.prod(input_size, dtype=np.int64)
        return base + projection + np.int64(self.offset.out_channels) * output_voxels

    def check_device(self, device: torch.device | str) -> None:
        """Raises ValueError if this module cannot be trained on a device; to be called before training."""
        check_sampling_device(device, self.rank)
        if isinstance(self.base, ChecksDevice):
            self.base.check_device(device)

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f"{self.in_channels}, {self.out_channels}, stride={self.stride}, "
            f"receptive_field={self.receptive_field:g}, tanh={self.tanh}, weighting={self.weighting!r}, "
            f"offset_unit={self.offset_unit!r}"
        )


BASES = {"transposed": transposed_convolution, "linear": LinearUpsampling, "dysample": DySampleUpsampling}


def check_receptive_field(receptive_field: float) -> float:
    """Returns the receptive field as a number, or raises ValueError unless it is positive."""
    number = math.inf if receptive_field == "inf" else receptive_field
    if isinstance(number, bool) or not isinstance(number, Real) or not number > 0:
        raise ValueError(f"receptive_field must be a positive number or inf, got {receptive_field!r}")
    return float(number)
