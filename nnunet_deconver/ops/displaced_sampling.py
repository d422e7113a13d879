"""Upsampling by sampling features at displaced positions, in two and three dimensions.

What deformable transposed convolution (arXiv 2601.17939, eq. 1) and DySample (arXiv 2308.15085, section 3) share.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_deconver.ops import cpu_kernels


def sample_displaced(features: Tensor, displacement: Tensor, scale: Sequence[float]) -> Tensor:
    """`grid_sample(features, P_grid + scale * displacement)`: linear interpolation around a regular grid.

    With T output voxels along an axis, output j lies at `P_grid(j) = (2 j + 1) / T - 1` in grid_sample's [-1, 1]
    coordinates (`align_corners=False`: -1 and 1 are the outer edges of the first and last voxel, and one of S input
    voxels is 2 / S wide). Positions beyond the outermost voxel centres take the value there. Without displacement
    this is `F.interpolate(mode="bilinear" or "trilinear", align_corners=False)`.

    Coordinates are computed in float32 at least, whatever the dtype of the inputs: half precision cannot address
    a voxel in 128.

    Args:
        features: (B, C, *S), two or three spatial axes.
        displacement: (B, G, g, *T), G a divisor of C, one component for each of the g spatial axes in their order
            in `features` (grid_sample itself has them reversed). The channels C / G * i to C / G * (i + 1) - 1
            follow displacement i.
        scale: one factor per spatial axis that takes the displacement to [-1, 1] coordinates.

    Returns:
        (B, C, *T) in the dtype of `features`.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check_arguments(features, displacement, scale)
    batch, channels, *size = features.shape
    groups = displacement.shape[1]
    output_size = displacement.shape[3:]
    dtype = torch.promote_types(torch.float32, torch.promote_types(features.dtype, displacement.dtype))

    if dtype == torch.float32 and _library(features, displacement) is not None:
        return _sample_on_cpu(features, displacement, scale)
    coordinates = []
    for axis, length in enumerate(output_size):
        regular = (2 * torch.arange(length, device=features.device, dtype=dtype) + 1) / length - 1
        moved = torch.add(_along(regular, axis, len(size)), displacement[:, :, axis].to(dtype), alpha=scale[axis])
        coordinates.append(moved.flatten(0, 1))  # (B G, *T)
    grid = torch.stack(coordinates[::-1], dim=-1)
    grouped = features.reshape(batch * groups, channels // groups, *size)
    # grid_sample wants one dtype. The features are the small side of an upsampling, so they are converted.
    sampled = F.grid_sample(grouped.to(dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.to(features.dtype).reshape(batch, channels, *output_size)


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    shape = [1] * rank
    shape[axis] = len(values)
    return values.view(shape)


def _library(features: Tensor, displacement: Tensor) -> cpu_kernels.Library | None:
    """PyTorch's sampling in three dimensions takes one voxel and one channel at a time on a CPU: kernels for that."""
    suits = all(tensor.device.type == "cpu" and cpu_kernels.is_real(tensor) for tensor in (features, displacement))
    suits = suits and displacement.numel() and features.numel()
    return cpu_kernels.library(features.shape[1] // displacement.shape[1]) if suits else None


def _sample_on_cpu(features: Tensor, displacement: Tensor, scale: Sequence[float]) -> Tensor:
    size, output_size = features.shape[2:], displacement.shape[3:]
    positions = []
    for axis, (extent, length) in enumerate(zip(size, output_size, strict=True)):
        # What is -1 to 1 there are the outer edges of the first and last voxel, half a voxel from their centres.
        regular = (torch.arange(length, dtype=torch.float32) + 0.5) * (extent / length) - 0.5
        moved = torch.add(
            _along(regular, axis, len(size)), displacement[:, :, axis].float(), alpha=scale[axis] * extent / 2
        )
        positions.append(moved)
    position = torch.stack(positions, dim=-1)  # (B, G, *T, axes)
    if len(size) == 2:
        position = F.pad(position, (1, 0))
    image = features.float().movedim(1, -1).contiguous()
    sampled = _Sample.apply(image, position.flatten(2, -2).transpose(1, 2).contiguous())
    return sampled.view(len(features), *output_size, -1).movedim(-1, 1).to(features.dtype)


class _Sampling(ctypes.Structure):
    """`sampling` of `cpu_kernels/sampling.c`."""

    _fields_ = [
        (name, cpu_kernels.WHOLE) for name in ("images", "depth", "height", "width", "channels", "groups", "voxels")
    ]


class _Sample(torch.autograd.Function):
    """Shapes: image (B, *S, C), position (B, N, G, 3); returns (B, N, C)."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(image, position)
        sampled = image.new_empty(*position.shape[:2], image.shape[-1])
        _call("sample", image, position, sampled)
        return sampled

    @staticmethod
    @once_differentiable
    # PyTorch's takes any number of gradients.
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        image, position = ctx.saved_tensors
        image_gradient = torch.empty_like(image)
        position_gradient = torch.empty_like(position) if ctx.needs_input_grad[1] else None
        _call("differentiate_sample", image, position, gradient.contiguous(), image_gradient, position_gradient)
        return image_gradient, position_gradient


def _call(kernel: str, image: Tensor, position: Tensor, *arguments: Tensor | None) -> None:
    images, *size, channels = image.shape
    voxels, groups = position.shape[1:3]
    depth, height, width = [1] * (3 - len(size)) + size
    problem = _Sampling(images, depth, height, width, channels, groups, voxels)
    library = cpu_kernels.library(channels // groups)
    assert library is not None  # asked before
    cpu_kernels.call(library[kernel], ctypes.byref(problem), image, position, *arguments)


def pixel_shuffle(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Moves channels to space: `torch.pixel_shuffle` in any number of dimensions, with a stride per axis.

    Args:
        x: (B, C * prod(stride), *S); the channels that belong to one output channel lie side by side, the last
            axis varying fastest.
        stride: one factor per spatial axis.

    Returns:
        (B, C, *T) with T = S * stride per axis.
    """
    rank = len(stride)
    batch, channels, *size = x.shape
    channels //= math.prod(stride)
    x = x.reshape(batch, channels, *stride, *size)
    order = [0, 1]
    for axis in range(rank):
        order += [2 + rank + axis, 2 + axis]
    return x.permute(order).reshape(batch, channels, *(s * t for s, t in zip(size, stride, strict=True)))


def check_sampling_device(device: torch.device | str, spatial_dims: int) -> None:
    """Raises ValueError unless `sample_displaced` runs forward and backward on a device."""

    def sample(features: Tensor) -> Tensor:
        displacement = torch.zeros_like(features).unsqueeze(1).expand(-1, -1, spatial_dims, *features.shape[2:])
        return sample_displaced(features, displacement + features.mean(), [1.0] * spatial_dims)

    check_device(device, spatial_dims, "grid_sample", sample)


def check_device(
    device: torch.device | str, spatial_dims: int, name: str, operation: Callable[[Tensor], Tensor]
) -> None:
    """Raises ValueError unless an operation on features runs forward and backward on a device.

    PyTorch lacks kernels on some devices: grid_sample in three dimensions on MPS, at first altogether, in later
    versions its backward pass. A trial on two voxels per axis knows every version.

    Args:
        device: where to try.
        spatial_dims: spatial axes of the features to try with.
        name: of the operation, for the message.
        operation: maps features (B, C, *S) to a tensor.
    """
    try:
        with torch.enable_grad():
            operation(torch.zeros(1, 1, *[2] * spatial_dims, device=device, requires_grad=True)).sum().backward()
    except RuntimeError as error:  # NotImplementedError is one
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise ValueError(
            f"{name} in {spatial_dims} dimensions, which the chosen upsampling needs, cannot be trained on device "
            f"{str(device)!r}: {reason}. Train on another device (-device cuda or -device cpu), choose the upsampling "
            "transposed, or on MPS set PYTORCH_ENABLE_MPS_FALLBACK=1 before starting, which computes it on the CPU"
        ) from error


def _check_arguments(features: Tensor, displacement: Tensor, scale: Sequence[float]) -> None:
    rank = features.ndim - 2
    if rank not in (2, 3):
        raise ValueError(f"features must be (B, C, *S) with 2 or 3 spatial axes, got shape {tuple(features.shape)}")
    if displacement.ndim != rank + 3 or displacement.shape[0] != features.shape[0] or displacement.shape[2] != rank:
        raise ValueError(
            f"displacement must be (B, G, {rank}, *T) for features {tuple(features.shape)}, "
            f"got {tuple(displacement.shape)}"
        )
    if features.shape[1] % displacement.shape[1]:
        raise ValueError(
            f"displacement has {displacement.shape[1]} groups, which do not divide the {features.shape[1]} channels "
            "of features"
        )
    if len(scale) != rank:
        raise ValueError(f"scale must have one factor for each of the {rank} spatial axes, got {scale!r}")
