"""What several operations need: checks of tensors, and computing in full precision under autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor

# By the number of spatial axes.
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def check_not_empty(x: Tensor) -> None:
    """Raises ValueError if an image has no voxels, as convolutions do; there may be no images."""
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have a voxel at least along each spatial axis, got shape {tuple(x.shape)}")


def full_precision(device: torch.device) -> torch.autocast:
    """Autocast switched off, for what half precision cannot hold: eps = 1e-8 does not exist in float16."""
    # Autocast knows a few device types only (not "meta", and "mps" in recent releases alone); the CPU's context
    # is harmless for the others, where nothing is cast.
    return torch.autocast(device.type if device.type in ("cuda", "xpu") else "cpu", enabled=False)
