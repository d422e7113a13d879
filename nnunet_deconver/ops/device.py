"""Which device an op prepares for."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

# A plain global, which torch.compile guards on; a context variable would break its graphs.
_assumed: str | None = None


def device_type(tensor: Tensor) -> str:
    """The type of device to choose a path for: that of the tensor, unless another is assumed."""
    return _assumed or tensor.device.type


@contextmanager
def assume_device(type: str) -> Iterator[None]:
    """Lets the ops of this package take the paths of another device, to count what they would keep there.

    Args:
        type: "cuda" or "cpu".
    """
    global _assumed
    before, _assumed = _assumed, type
    try:
        yield
    finally:
        _assumed = before
