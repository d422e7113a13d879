"""Functions whose intermediate results are made again in the backward pass instead of being kept."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Elements of the largest intermediate result of a slab, halo included: 16 MB in float32. Smaller slabs lose more to
# their halos, larger ones fall out of the cache (32 channels, ratio 4, 40 x 56 x 40, two cores).
SLAB_ELEMENTS = 2**22

# Elements of an image that is worked off by itself; one fills a GPU alone (32 channels of 128^3 are twice as many).
LARGE_IMAGE = 2**25


def checkpointed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, keeping nothing but x for the backward pass: where memory is short, as on a GPU.

    Large images are worked off one by one, so that what is made on the way is never there for two of them.

    Args:
        function: maps (b, C, *S) to (b, C', *S) for any b, each image by itself; without random numbers.
        x: (B, C, *S).
    """
    images = x.split(1) if x[:1].numel() >= LARGE_IMAGE else [x]
    if torch.is_grad_enabled():
        done = [checkpoint(function, image, use_reentrant=False, preserve_rng_state=False) for image in images]
    else:
        done = [function(image) for image in images]
    return done[0] if len(done) == 1 else torch.cat(done)


def in_slabs(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
    *,
    halo: int = 0,
    expansion: float = 1,
) -> Tensor:
    """`function(x)` of a large image, one slab after the other, forward and backward: where memory is slow, on a CPU.

    What the function makes of a slab is small enough to be used again before it leaves the cache.

    Args:
        function: maps (b, C, s, *S) to the same shape for any b and s; its output depends on nothing farther away
            along the first spatial axis than `halo`, on no other image, and on no random numbers.
        x: (B, C, *S).
        parameters: all other tensors that the function has gradients by.
        halo: voxels.
        expansion: elements of the function's largest intermediate result per element of x.

    Returns:
        (B, C, *S) in the function's dtype; of an image larger than one slab without second derivatives.
    """
    if x.numel() * expansion <= SLAB_ELEMENTS:
        return function(x)
    return _InSlabs.apply(function, halo, expansion, x, *parameters)


class _InSlabs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, halo: int, expansion: float, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.function, ctx.halo, ctx.expansion = function, halo, expansion
        ctx.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        x = x.detach()
        out = None
        for images, planes, inner in _slabs(x.shape, halo, expansion):
            slab = function(x[images, :, planes])[:, :, inner]
            if out is None:
                out = torch.empty_like(x, dtype=slab.dtype)
            out[images, :, planes][:, :, inner] = slab
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        trained = [parameter for parameter, wanted in zip(parameters, needed, strict=True) if wanted]
        x_gradient = torch.zeros_like(x)
        sums = [torch.zeros_like(parameter) for parameter in trained]
        dtype, enabled = ctx.autocast
        for images, planes, inner in _slabs(x.shape, ctx.halo, ctx.expansion):
            with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=enabled):
                slab = x[images, :, planes].detach().requires_grad_()
                out = ctx.function(slab)[:, :, inner]
            of_slab, *of_parameters = torch.autograd.grad(
                out, [slab, *trained], gradient[images, :, planes][:, :, inner]
            )
            x_gradient[images, :, planes] += of_slab
            for total, part in zip(sums, of_parameters, strict=True):
                total += part
        found = iter(sums)
        return None, None, None, x_gradient, *(next(found) if wanted else None for wanted in needed)


def _slabs(shape: Sequence[int], halo: int, expansion: float) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts a batch between images, and large images along their first spatial axis.

    Yields:
        Which images; which planes, halo included; and which of these planes are not halo.
    """
    images, depth = shape[0], shape[2]
    most = int(SLAB_ELEMENTS / (shape[1] * math.prod(shape[3:]) * expansion))
    if depth <= most:
        for first in range(0, images, most // depth):
            yield slice(first, first + most // depth), slice(None), slice(None)
        return
    # Never fewer planes than belong to the halo: most of the work would be in vain.
    count = math.ceil(depth / max(most - 2 * halo, 2 * halo, 1))
    bounds = [depth * i // count for i in range(count + 1)]
    for image in range(images):
        for first, end in zip(bounds[:-1], bounds[1:], strict=True):
            start = max(first - halo, 0)
            yield slice(image, image + 1), slice(start, min(end + halo, depth)), slice(first - start, end - start)
