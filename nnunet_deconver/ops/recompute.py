"""Functions whose intermediate results are made again in the backward pass instead of being kept."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

_Result = TypeVar("_Result")

# Elements of the largest intermediate result of a chunk: 2 MB in float32, which stay in the cache.
CHUNK_ELEMENTS = 2**19

# Where memory is short, so many elements at most are worked off at a time, or a tenth of the batch if that is more.
# What is made of them on the way is some 25 times as many. So of small batches, where all the rest is small too, it is
# 150 MB in half precision; of large ones it stays in proportion to the rest, and nothing is cut smaller than that
# needs: a GPU has more to do at a time, and torch.compile less to compile.
GROUP_ELEMENTS = 3 * 2**20
GROUP_SHARE = 10


def in_groups(function: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    """`function(x)` of some images after the other, or of parts of large ones: where memory is short, as on a GPU.

    Args:
        function: maps (b, C, *S) to (b, C', *S) for any b, each image by itself. Its other argument is the number of
            parts that it is to divide what it does into, 1 unless there is one large image; see `checkpointed`.
        x: (B, C, *S).
    """
    most = max(GROUP_ELEMENTS, x.numel() // GROUP_SHARE)
    image = max(x[:1].numel(), 1)
    done = [function(group, -(-image // most)) for group in x.split(max(most // image, 1))]
    return done[0] if len(done) == 1 else torch.cat(done)


def checkpointed(function: Callable[..., _Result], *arguments: object) -> _Result:
    """`function(*arguments)`, keeping nothing but the arguments for the backward pass.

    Calls may follow each other, but not contain each other: what is inside would be computed three times.

    Args:
        function: without random numbers.
        arguments: all large tensors that it needs, and others.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def in_chunks(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor], *, expansion: float = 1
) -> Tensor:
    """`function(x)` of many rows, some after the other, forward and backward: where memory is slow, as on a CPU.

    What the function makes of a chunk is small enough to be used again before it leaves the cache.

    Args:
        function: maps (n, C) to (n, C') for any n, each row by itself; without random numbers.
        x: (N, C).
        parameters: all other tensors that the function has gradients by.
        expansion: elements of the function's largest intermediate result per element of x.

    Returns:
        (N, C') in the function's dtype; of more than one chunk without second derivatives.
    """
    rows = max(int(CHUNK_ELEMENTS / (x.shape[1] * expansion)), 1)
    return function(x) if len(x) <= rows else _InChunks.apply(function, rows, x, *parameters)


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], rows: int, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.function, ctx.rows = function, rows
        ctx.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        out: Tensor | None = None
        for first, chunk in zip(range(0, len(x), rows), x.detach().split(rows), strict=True):
            done = function(chunk)
            if out is None:
                out = done.new_empty(len(x), done.shape[1])
            out[first : first + rows] = done
        assert out is not None  # there is a row at least
        return out

    @staticmethod
    @once_differentiable
    # PyTorch's takes any number of gradients.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        trained = [parameter for parameter, wanted in zip(parameters, needed, strict=True) if wanted]
        x_gradient = torch.empty_like(x)
        sums = [torch.zeros_like(parameter) for parameter in trained]
        dtype, enabled = ctx.autocast
        for first in range(0, len(x), ctx.rows):
            rows = slice(first, first + ctx.rows)
            with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=enabled):
                chunk = x[rows].detach().requires_grad_()
                out = ctx.function(chunk)
            x_gradient[rows], *parts = torch.autograd.grad(out, [chunk, *trained], gradient[rows])
            for total, part in zip(sums, parts, strict=True):
                total += part
        found = iter(sums)
        return None, None, x_gradient, *(next(found) if wanted else None for wanted in needed)
