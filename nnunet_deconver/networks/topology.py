"""The topology arguments of nnU-Net's plans, checked and written out per stage and axis."""

import math
from collections.abc import Sequence

from nnunet_deconver.layers.common import CONVOLUTIONS, Convolution

_RANKS = {convolution: rank for rank, convolution in CONVOLUTIONS.items()}


def spatial_rank(conv_op: type[Convolution]) -> int:
    """The number of spatial axes of `torch.nn.Conv1d`, `Conv2d` or `Conv3d`; ValueError for others."""
    if conv_op not in _RANKS:
        raise ValueError(f"conv_op must be torch.nn.Conv1d, Conv2d or Conv3d, got {conv_op!r}")
    return _RANKS[conv_op]


def per_stage(name: str, value: int | Sequence[int], n: int) -> list[int]:
    """A positive number for each of n stages, given as a list or as one for all; ValueError for others."""
    values = [value] * n if isinstance(value, int) else list(value)
    if len(values) != n or any(int(v) != v or v < 1 for v in values):
        raise ValueError(f"{name} must be a positive number or a list of {n} of them, got {value!r}")
    return values


def per_stage_and_axis(
    name: str, value: int | Sequence[int | Sequence[int]], n_stages: int, rank: int
) -> list[tuple[int, ...]]:
    """A positive number per stage and axis, given so, or as one per stage, or as one; ValueError for others."""
    values = [value] * n_stages if isinstance(value, int) else list(value)
    expanded = [(v,) * rank if isinstance(v, int) else tuple(v) for v in values]
    if len(expanded) != n_stages:
        raise ValueError(f"{name} must have one entry for each of the {n_stages} stages, got {value!r}")
    if any(len(entry) != rank or any(int(e) != e or e < 1 for e in entry) for entry in expanded):
        raise ValueError(f"{name} must have {rank} positive whole numbers per stage (or one for all), got {value!r}")
    return expanded


def check_input_size(input_size: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
    """Raises ValueError unless `input_size` has the axes of the strides, and is divisible by all of them."""
    totals = [math.prod(axis) for axis in zip(*strides, strict=True)]
    if len(input_size) != len(totals):
        raise ValueError(f"input must have {len(totals)} spatial axes, got {len(input_size)}: {tuple(input_size)}")
    if any(size % total for size, total in zip(input_size, totals, strict=True)):
        raise ValueError(
            f"patch size {tuple(input_size)} must be divisible by the network's total strides {tuple(totals)}; "
            "change patch_size or strides in the plans"
        )
