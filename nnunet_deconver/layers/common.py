"""What several layers need: convolutions by the number of spatial axes, strides, sizes."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_deconver.ops.common import CONVOLVE, check_not_empty
from nnunet_deconver.ops.device import policy
from nnunet_deconver.ops.pointwise import pointwise

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

# Of any number of axes, each with sizes of its own: PyTorch types each class for one number only.
CONVOLUTIONS: dict[int, Callable[..., Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_CONVOLUTIONS: dict[int, Callable[..., TransposedConvolution]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


@runtime_checkable
class CountsFeatures(Protocol):
    """A module that counts the elements of its convolutions' outputs, for nnU-Net's planners."""

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolution outputs for one image whose features have `input_size` voxels here."""
        ...


@runtime_checkable
class ChecksDevice(Protocol):
    """A module that cannot be trained on every device."""

    def check_device(self, device: torch.device | str) -> None:
        """Raises ValueError if this module cannot be trained on a device; to be called before training."""
        ...


@runtime_checkable
class StartsAsPlain(Protocol):
    """A module that a trained network can be given in place of a plain layer."""

    def start_as(self, plain: Any) -> None:
        """Makes the module compute what a plain layer does, exactly.

        Args:
            plain: the layer: a transposed convolution with kernel = stride, or a 1x1 convolution.
        """
        ...


@runtime_checkable
class ResetsParameters(Protocol):
    """A module that draws its own parameters anew, as PyTorch's do."""

    def reset_parameters(self) -> None:
        """Restores the start."""
        ...


def transposed_convolution(in_channels: int, out_channels: int, stride: Sequence[int]) -> TransposedConvolution:
    """PyTorch's transposed convolution with kernel = stride and a bias."""
    return TRANSPOSED_CONVOLUTIONS[len(stride)](in_channels, out_channels, stride, stride)


def as_convolution(layer: Convolution | TransposedConvolution) -> Convolution | TransposedConvolution:
    """The convolution that a transposed one with a kernel of one voxel is, with its parameters; others as they are."""
    if not isinstance(layer, TransposedConvolution) or {*layer.kernel_size, *layer.stride, layer.groups} != {1}:
        return layer
    convolution = CONVOLUTIONS[len(layer.stride)](layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None)
    convolution.weight = nn.Parameter(layer.weight.detach().transpose(0, 1))
    convolution.bias = layer.bias
    return convolution.train(layer.training)


def pointwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, rectify: bool = False) -> Tensor:
    """A pointwise convolution, and ReLU if it is to `rectify`; where channels lie side by side, of voxels in rows.

    Args:
        x: (B, C, *S).
        weight: (C', C, 1, ...).
        bias: (C',) or None.
        rectify: whether negative results become 0.

    Returns:
        (B, C', *S).
    """
    if not policy(x).channels_last:
        out = CONVOLVE[x.ndim - 2](x, weight, bias)
        return torch.relu(out) if rectify else out
    check_not_empty(x)
    voxels = x.movedim(1, -1)
    out = pointwise(voxels.flatten(0, -2), weight.flatten(1).t(), bias, rectify=rectify)
    return out.view(*voxels.shape[:-1], len(weight)).movedim(-1, 1)


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32, and nothing else: what coordinates are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def upsampled_voxels(input_size: Sequence[int], stride: Sequence[int]) -> np.int64:
    """Voxels of the output of an upsampling.

    Raises:
        ValueError: if `input_size` has not one entry per spatial axis.
    """
    if len(input_size) != len(stride):
        raise ValueError(f"input_size must have {len(stride)} spatial axes, got {len(input_size)}: {input_size!r}")
    return np.prod([s * t for s, t in zip(input_size, stride, strict=True)], dtype=np.int64)


def check_stride(stride: Sequence[int]) -> tuple[int, ...]:
    """Returns the stride as a tuple of two or three positive whole numbers, or raises ValueError."""
    if (
        not isinstance(stride, Sequence)
        or len(stride) not in (2, 3)
        or any(not isinstance(s, Integral) or s < 1 for s in stride)
    ):
        raise ValueError(
            f"stride must have one positive whole number per spatial axis (2 or 3), such as (1, 2, 2), got {stride!r}"
        )
    return tuple(int(s) for s in stride)


def check_input(x: Tensor, rank: int) -> None:
    """Raises ValueError unless a tensor has the batch, channel and spatial axes of a layer of `rank`."""
    if x.ndim != rank + 2:
        raise ValueError(f"x must be (B, C, *S) with {rank} spatial axes, got shape {tuple(x.shape)}")


def voxels(input_size: Sequence[int], rank: int) -> np.int64:
    """Voxels of an image.

    Raises:
        ValueError: if `input_size` has not one entry per spatial axis.
    """
    if len(input_size) != rank:
        raise ValueError(f"input must have {rank} spatial axes, got {len(input_size)}: {tuple(input_size)}")
    return np.int64(math.prod(int(extent) for extent in input_size))
