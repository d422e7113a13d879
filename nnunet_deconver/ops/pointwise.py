"""Pointwise layers of voxels in rows, (N, C), as convolutions.

On an AMD processor, PyTorch's convolutions are faster than its matrix products, which another library computes.
"""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight


def pointwise(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows weight^T + bias`.

    Args:
        rows: (N, C), contiguous.
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        (N, C').
    """
    if not len(rows):
        return F.linear(rows, weight, bias)  # convolutions take no image without pixels
    out = F.conv2d(_image(rows), weight[:, :, None, None], bias)
    return out.movedim(1, -1).reshape(len(rows), len(weight))


def pointwise_weight_gradient(rows: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of `pointwise` by the weight.

    Args:
        rows: (N, C), contiguous.
        gradient: (N, C'), contiguous.

    Returns:
        (C', C).
    """
    if not len(rows):
        return gradient.t() @ rows
    channels = gradient.shape[1], rows.shape[1]
    return conv2d_weight(_image(rows), (*channels, 1, 1), _image(gradient)).view(channels)


def _image(rows: Tensor) -> Tensor:
    # Channels side by side: what (N, C) is already.
    return rows.view(1, len(rows), 1, rows.shape[1]).movedim(-1, 1)
