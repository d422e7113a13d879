"""The kind of device that paths are chosen for, and the layout of tensors that suits it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# A plain global, which torch.compile guards on; a context variable would break its graphs.
_assumed: str | None = None


def device_type(tensor: Tensor) -> str:
    """The type of the device that `tensor` is on, or that `assume_device` names."""
    return _assumed or tensor.device.type


@contextmanager
def assume_device(type: str) -> Iterator[None]:
    """Within this context paths are chosen as on a device of that type.

    For planning with fake or meta tensors, on a machine without the device: its operations then run through their fake
    implementations. Real tensors stay where they are.

    Args:
        type: such as "cuda".
    """
    global _assumed
    before, _assumed = _assumed, type
    try:
        yield
    finally:
        _assumed = before


def fast_layout(x: Tensor) -> Tensor:
    """Lays (B, C, *S) out so that the channels of a voxel lie side by side, on a CPU; leaves it as it is elsewhere.

    PyTorch's convolutions of such tensors are faster there, and the voxels of pointwise layers are rows as they lie.
    """
    if device_type(x) != "cpu" or x.ndim not in (4, 5):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
