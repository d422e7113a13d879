"""Weights for larger kernels from those of smaller ones: padded, or interpolated as in MedNeXt, arXiv 2303.09975.

MedNeXt's UpKern starts a network with large kernels from a trained one with small kernels, whose kernels it
interpolates linearly along each axis; everything else is copied. Where the values of a kernel lie is chosen here: with
`align_corners=False` they fill the extent of the large kernel evenly. The network then computes something else. With
padded kernels it computes the same.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

_INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}
# What kernels are padded with. Not 0: nonnegative deconvolution rectifies its filters, and ReLU has no gradient there.
# Beside other weights it is nothing, and its square is no subnormal number, which would be slow.
_NOTHING = 1e-18


def enlarge_kernels(
    weights: Mapping[str, Tensor], network: nn.Module, *, interpolate: bool = False
) -> dict[str, Tensor]:
    """Makes weights for a network of those of the same network with smaller kernels.

    Args:
        weights: state dict of the network with the smaller kernels.
        network: with the larger ones; it is not changed.
        interpolate: kernels, as MedNeXt's UpKern does. Otherwise they are padded, and the network computes the same, as
            long as its images are padded by as much more.

    Returns:
        State dict of `network`.

    Raises:
        ValueError: if the networks differ in more than kernels, or a kernel cannot be enlarged to that of the other.
    """
    expected = network.state_dict()
    differing = sorted(expected.keys() ^ weights.keys())
    if differing:
        raise ValueError(f"only one of the networks has {differing[0]}; they must differ in the size of kernels alone")
    return {key: _enlarged(key, weights[key], tuple(other.shape), interpolate) for key, other in expected.items()}


def _enlarged(key: str, weight: Tensor, shape: tuple[int, ...], interpolate: bool) -> Tensor:
    own = tuple(weight.shape)
    if own == shape:
        return weight
    if len(shape) - 2 not in _INTERPOLATIONS or len(own) != len(shape) or own[:2] != shape[:2]:
        raise ValueError(f"{key} has the shapes {own} and {shape}; networks must differ in the size of kernels alone")
    added = [large - small for small, large in zip(own[2:], shape[2:], strict=True)]
    if any(more < 0 or more % 2 for more in added):
        raise ValueError(
            f"{key} has kernels of {own[2:]}, which cannot become {shape[2:]}: extents grow by even numbers, or stay"
        )
    if interpolate:
        return F.interpolate(weight, size=shape[2:], mode=_INTERPOLATIONS[len(added)], align_corners=False)
    return F.pad(weight, [more // 2 for more in reversed(added) for _ in range(2)], value=_NOTHING)
