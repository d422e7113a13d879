"""How each kind of device is worked with: the one place where that is decided."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# What a pass of Triton's kernels may take for its intermediates, if more than one slab fits: slabs are worked off in
# bunches of that size. At 128^3 with e = 4, backward takes 80 MiB for a slab: a bunch of 12 has 25 million voxels,
# enough for any GPU.
SCRATCH_BYTES = 2**30

# A plain global, which torch.compile guards on; a context variable would break its graphs.
_assumed: str | None = None


class Policy(NamedTuple):
    """What suits a kind of device.

    Attributes:
        backend: what computes nonnegative deconvolution there, where it can; a name of `backends.BACKENDS`.
        channels_last: whether the channels of a voxel lie side by side, in which layout PyTorch's convolutions are
            faster there and the voxels of pointwise layers are rows as they lie.
        in_chunks: whether pointwise layers go over the voxels in chunks that stay in a cache, forward and backward;
            else blocks make again in the backward pass what they made in the forward pass.
        chunk_bytes: what is made on the way may take where it is made for some positions after the other: on a CPU it
            stays in a cache. On a GPU a chunk costs some hundred kernel launches in a training step: these bytes make
            a dozen chunks of NeRD's at 128^3 (32 channels, batch 2, 4 classes, half precision).
    """

    backend: str
    channels_last: bool
    in_chunks: bool
    chunk_bytes: int = 2**28


_POLICIES = {
    "cpu": Policy("cpu", channels_last=True, in_chunks=True, chunk_bytes=2**23),
    "cuda": Policy("triton", channels_last=False, in_chunks=False),
}
_ELSEWHERE = Policy("plain", channels_last=False, in_chunks=False)


def policy(tensor: Tensor) -> Policy:
    """What suits the device that `tensor` is on, or that `assume_device` names."""
    return _POLICIES.get(device_type(tensor), _ELSEWHERE)


def device_type(tensor: Tensor) -> str:
    """The type of the device that `tensor` is on, or that `assume_device` names."""
    return _assumed or tensor.device.type


def is_planned(tensor: Tensor) -> bool:
    """Whether nothing is computed with `tensor` on this machine: a plan is made, for a device that has everything."""
    return _assumed is not None or (isinstance(tensor, FakeTensor) and not torch.compiler.is_compiling())


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
    """Lays (B, C, *S) out so that the channels of a voxel lie side by side where that is faster."""
    if not policy(x).channels_last or x.ndim not in (4, 5):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
