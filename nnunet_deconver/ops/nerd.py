"""NeRD in plain PyTorch: "NeRD: Neural Representation of Distribution for Medical Image Segmentation", section 2.

A voxel's position v is its distances to the borders of the patch. A multilayer perceptron maps v to numbers that
normalise the features there (NeRDm, eq. 5) or classify them (NeRDc, section 2.2). Its hidden layers make the
position's code, here (J, N) for N positions; its last layer is the weight (M, J) and the constant (M,), so that
`map = weight @ code + constant`.

The references keep the whole map and everything on the way to it. Networks call `nerd_chunked`, which is compared with
them.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.01  # of the leaky ReLU behind each hidden layer, nnU-Net's


def border_distances(
    size: Sequence[int],
    start: int = 0,
    stop: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """The position vectors v of section 2.1: distances of voxel centres to the borders of their patch.

    In units of the patch's extent along the axis, so `(i + 0.5) / n` to the first border of an axis with n voxels
    and `(n - i - 0.5) / n` to the second: every lower resolution sees the same patch at its own voxel centres.

    Args:
        size: voxels of the patch per axis.
        start: first position, of all positions in row-major order.
        stop: end of the positions; None for all that follow.
        dtype: of the result; half precision would not tell neighbours apart.
        device: of the result.

    Returns:
        (2g, stop - start) for g axes; the first and second border of the first axis, of the second axis, and so on.
    """
    stride = math.prod(size)
    position = torch.arange(start, stride if stop is None else stop, device=device)
    distances = []
    for extent in size:
        stride //= extent
        index = position.div(stride, rounding_mode="floor").remainder(extent).to(dtype)
        distances += [(index + 0.5) / extent, (extent - 0.5 - index) / extent]
    return torch.stack(distances)


def position_activations(distances: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """Input and outputs of the perceptron's hidden layers.

    Args:
        distances: (2g, N).
        layers: weight (J, I) and bias (J,) of each hidden layer, in turn, in the dtype of `distances`.

    Returns:
        `distances`, then one (J, N) per layer; the last is the code.
    """
    activations = [distances]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        activations.append(F.leaky_relu(torch.addmm(bias[:, None], weight, activations[-1]), SLOPE))
    return activations


def nerd_normalisation_reference(x: Tensor, layers: Sequence[Tensor], weight: Tensor, constant: Tensor) -> Tensor:
    """Features normalised by their position, `x * 1/sigma - mu/sigma` of eq. (5).

    Args:
        x: (B, C, *S).
        layers: the perceptron's hidden layers, see `position_activations`.
        weight: (2C, J) of the last layer: `1/sigma` of every channel, then `-mu/sigma` of every channel.
        constant: (2C,), likewise.

    Returns:
        (B, C, *S).
    """
    scale, shift = _map_reference(x, layers, weight, constant).chunk(2)
    return x * scale + shift


def nerd_classification_reference(
    x: Tensor, layers: Sequence[Tensor], weight: Tensor, constant: Tensor, classes: int
) -> Tensor:
    """Features classified by the weights of their position, `s = x . w_v` of section 2.2.

    Args:
        x: (B, C, *S).
        layers: the perceptron's hidden layers, see `position_activations`.
        weight: (K * C, J) of the last layer: `w_v` of every channel for the first class, for the second, and so on.
            With K more rows, those are a bias of each class, which depends on the position too.
        constant: (K * C,) or (K * C + K,), likewise.
        classes: number of classes, K.

    Returns:
        (B, K, *S).
    """
    rows = classes * x.shape[1]
    position_map = _map_reference(x, layers, weight, constant)
    logits = torch.einsum("bc...,kc...->bk...", x, position_map[:rows].unflatten(0, (classes, -1)))
    return logits if len(position_map) == rows else logits + position_map[rows:]


def _map_reference(x: Tensor, layers: Sequence[Tensor], weight: Tensor, constant: Tensor) -> Tensor:
    size = x.shape[2:]
    code = position_activations(border_distances(size, dtype=x.dtype, device=x.device), layers)[-1]
    return (weight @ code + constant[:, None]).unflatten(1, size)
