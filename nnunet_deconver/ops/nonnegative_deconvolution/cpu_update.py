"""One update of nonnegative deconvolution with a group per channel, on a CPU: compiled kernels, slab by slab.

Formulas and names: `triton_update`. The source has several times the channels of the image, and reading and writing it
in memory is what takes the time. So it exists in slabs only, some planes along the first spatial axis that stay in the
cache: a pointwise projection makes a slab of it, and of the updated slab another one makes what is wanted, forward and,
again, backward. Whole are only tensors of the image's size. A slab needs some planes beyond its own; they are kept from
the slab before.

The kernels (`cpu_kernels/deconvolution.c`) are compiled when the package is installed.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_deconver.ops import cpu_kernels
from nnunet_deconver.ops.common import check_not_empty, full_precision
from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import narrow, widen
from nnunet_deconver.ops.nonnegative_deconvolution.reference import compute_dtype
from nnunet_deconver.ops.pointwise import add_gradients, multiply

# Elements of the source in a slab, without the planes kept from the slab before.
SLAB_ELEMENTS = 2**20


def obstacle(x: Tensor, source: Tensor, filter: Tensor, groups: int, iterations: int) -> str | None:
    """Why this module cannot compute an update; None where it can.

    Args:
        x: see `backends.nonnegative_deconvolution`, as for the others.
        source: or the weight of the projection that makes it.
        filter: (C, E / groups, *k).
        groups: of channels.
        iterations: updates.
    """
    if not cpu_kernels.libraries():
        return (
            "it has no kernels for this processor, which are compiled when this package is installed "
            "(install a C compiler, then this package again)"
        )
    if groups != x.shape[1]:
        return f"it needs a group per channel, and there are {groups} groups for {x.shape[1]} channels"
    if cpu_kernels.library(x.shape[1]) is None:
        return (
            f"it computes {min(cpu_kernels.libraries())} channels at once, and {x.shape[1]} is not a multiple of that"
        )
    if iterations != 1:
        return f"it makes 1 update, not {iterations}"
    if compute_dtype(x, source, filter) != torch.float32:
        return f"it computes in float32, not in {compute_dtype(x, source, filter)}"
    if x.device.type != "cpu" or not all(map(cpu_kernels.is_real, (x, source, filter))):
        return "it computes real tensors on a CPU, not what is being traced, compiled or counted"
    return None


def nonnegative_deconvolution_cpu(
    x: Tensor, source: Tensor, filter: Tensor, *, groups: int, iterations: int, eps: float
) -> Tensor:
    """`backends.nonnegative_deconvolution`, where there is no `obstacle`; without second derivatives."""
    ratio = filter.shape[1]
    with full_precision(x.device):
        updated = _Update.apply(
            widen(x, torch.float32).movedim(1, -1).contiguous(),
            widen(source, torch.float32).unflatten(1, (groups, ratio)).movedim((1, 2), (-2, -1)),
            None,
            None,
            _filter_last(widen(filter, torch.float32)),
            None,
            None,
            eps,
        )
    return narrow(updated.flatten(-2).movedim(-1, 1), source.dtype)


def projected_deconvolution(
    x: Tensor,
    source_weight: Tensor,
    source_bias: Tensor,
    filter: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    *,
    eps: float,
) -> Tensor:
    """The update of `relu(projection(x))`, projected again: where `backends.fuses_projections` says so.

    Args:
        x: (B, C, *S), nonnegative; channels that lie side by side save a copy.
        source_weight: (E, C), of the pointwise projection that makes the source.
        source_bias: (E,).
        filter: (C, E / C, *k), nonnegative, odd k.
        out_weight: (C', E), of the pointwise projection of the updated source; None for that source itself.
        out_bias: (C',), or None likewise.
        eps: added to numerator and denominator.

    Returns:
        (B, C', *S) or (B, E, *S), channels side by side, without second derivatives.

    Raises:
        ValueError: if a spatial axis is empty.
    """
    check_not_empty(x)
    channels, ratio = filter.shape[:2]

    def ratio_first(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (channels, ratio)).transpose(0, 1).flatten(0, 1).contiguous()

    out = _Update.apply(
        x.movedim(1, -1).contiguous(),
        None,
        ratio_first(source_weight).t().contiguous(),
        ratio_first(source_bias),
        _filter_last(filter),
        None if out_weight is None else ratio_first(out_weight.t()),
        out_bias,
        eps,
    )
    return (out.flatten(-2) if out_weight is None else out).movedim(-1, 1)


def _filter_last(filter: Tensor) -> Tensor:
    return filter.movedim((1, 0), (-2, -1)).contiguous()


class _Slab(NamedTuple):
    """Planes `first` to `end`, for which planes `start` to `stop` are needed."""

    first: int
    end: int
    start: int
    stop: int
    fresh: int  # from here on they are to be made
    moved: int  # by so many the others lie too far back

    @property
    def new(self) -> slice:
        """The planes to be made, in the slab."""
        return slice(self.fresh - self.start, self.stop - self.start)

    def keep(self, slab: Tensor) -> None:
        """Moves the planes that were made for the slab before to the front."""
        kept = self.fresh - self.start
        if kept and self.moved:
            slab[:kept] = slab[self.moved : self.moved + kept].clone()


def _slabs(depth: int, planes: int, halo: int) -> Iterator[_Slab]:
    first = before = done = 0
    while first < depth:
        start, stop = max(first - halo, 0), min(first + planes + halo, depth)
        # The last slab takes what is left, be it more: each has planes to make.
        end = depth if stop == depth else first + planes
        yield _Slab(first, end, start, stop, done, start - before)
        first, before, done = end, start, stop


_KERNEL = cpu_kernels.WHOLE * 3


class _Geometry(ctypes.Structure):
    _fields_ = [(name, cpu_kernels.WHOLE) for name in ("depth", "height", "width", "channels", "ratio")] + [
        ("kernel", cpu_kernels.WHOLE * 3)
    ]


class _Problem:
    """One update of a batch: its geometry, the kernels for it, and how slabs of its source are made.

    Args: as `_Update.forward`.
    """

    def __init__(
        self,
        x: Tensor,
        source: Tensor | None,
        source_matrix: Tensor | None,
        source_bias: Tensor | None,
        filter: Tensor,
    ) -> None:
        *kernel, self.ratio, self.channels = filter.shape
        self.depth, self.height, self.width = _three_axes(x.shape[1:-1])
        self.x, self.source, self.matrix, self.bias = x, source, source_matrix, source_bias
        self.halo = _three_axes(kernel)[0] // 2
        self.planes = max(SLAB_ELEMENTS // (self.height * self.width * self.ratio * self.channels), 1)
        self._geometry = _Geometry(
            self.depth,
            self.height,
            self.width,
            self.channels,
            self.ratio,
            _KERNEL(*_three_axes(kernel)),
        )
        library = cpu_kernels.library(self.channels)
        assert library is not None  # otherwise there is an obstacle
        self._library = library

    def call(self, kernel: str, *arguments: Tensor | float | None) -> None:
        """Calls a kernel of `deconvolution.c`; geometry is added."""
        cpu_kernels.call(self._library[kernel], ctypes.byref(self._geometry), *arguments)

    def image(self) -> Tensor:
        """Room for an image."""
        return self.x.new_empty(self.depth, self.height, self.width, self.channels)

    def slab(self) -> Tensor:
        """Room for a slab of the source, with its halo."""
        planes = min(self.planes + 2 * self.halo, self.depth)
        return self.x.new_empty(planes, self.height, self.width, self.ratio * self.channels)

    def images(self, tensor: Tensor) -> Tensor:
        """(B, *S, ...) with three spatial axes."""
        spatial = self.x.ndim - 1
        return tensor.view(len(tensor), self.depth, self.height, self.width, *tensor.shape[spatial:])

    def channel_major(self, slab: Tensor) -> Tensor:
        """A slab's planes, which have the channels of the image last, as (..., C, R)."""
        return slab.unflatten(-1, (self.ratio, self.channels)).transpose(-1, -2)

    def slabs(self, halo: int = 0) -> Iterator[_Slab]:
        return _slabs(self.depth, self.planes, halo)

    def fill_source(self, index: int, part: _Slab, slab: Tensor) -> None:
        """Makes the new planes of a slab of an image's source."""
        if self.source is not None:
            self.channel_major(slab[part.new]).copy_(self.images(self.source)[index, part.fresh : part.stop])
        else:
            assert self.matrix is not None
            planes = _rows(self.images(self.x)[index, part.fresh : part.stop])
            multiply(planes, self.matrix, self.bias, rectify=True, out=_rows(slab[part.new]))


class _Update(torch.autograd.Function):
    """The update, with its projections or without.

    Shapes: x (B, *S, C); source (B, *S, C, R) or None; source_matrix (C, R C) and source_bias (R C), or None; filter
    (*k, R, C); out_matrix (R C, C') and out_bias (C',), or None. Returns (B, *S, C') or (B, *S, C, R).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        source: Tensor | None,
        source_matrix: Tensor | None,
        source_bias: Tensor | None,
        filter: Tensor,
        out_matrix: Tensor | None,
        out_bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        problem = _Problem(x, source, source_matrix, source_bias, filter)
        if out_matrix is None:
            out = x.new_empty(*x.shape, problem.ratio)
        else:
            out = x.new_empty(*x.shape[:-1], out_matrix.shape[1])
        reconstructions = torch.empty_like(x)
        slab = problem.slab()
        images = zip(problem.images(x), problem.images(reconstructions), problem.images(out), strict=True)
        for index, (image, reconstruction, result) in enumerate(images):
            for part in problem.slabs(problem.halo):
                part.keep(slab)
                problem.fill_source(index, part, slab)
                problem.call("gather_source", slab, part.start, filter, reconstruction, part.first, part.end)
            for part in problem.slabs():
                problem.fill_source(index, part, slab)
                problem.call(
                    "update_source", image, reconstruction, filter, eps, slab, part.first, part.first, part.end
                )
                if out_matrix is None:
                    result[part.first : part.end] = problem.channel_major(slab[part.new])
                else:
                    multiply(_rows(slab[part.new]), out_matrix, out_bias, out=_rows(result[part.first : part.end]))
        ctx.save_for_backward(x, source, source_matrix, source_bias, filter, out_matrix, reconstructions)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    # PyTorch's takes any number of gradients.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, source, source_matrix, source_bias, filter, out_matrix, reconstructions = ctx.saved_tensors
        problem = _Problem(x, source, source_matrix, source_bias, filter)
        if out_matrix is not None:
            gradient = gradient.contiguous()
        x_gradient = torch.empty_like(x)
        source_gradient = None if source is None else torch.empty_like(source)
        source_matrix_gradient, source_bias_gradient, out_matrix_gradient = (
            None if t is None else torch.zeros_like(t) for t in (source_matrix, source_bias, out_matrix)
        )
        out_bias_gradient = None if out_matrix is None else x.new_zeros(out_matrix.shape[1])
        filter_gradient = torch.zeros_like(filter)
        reconstruction_gradient = problem.image()
        sources, gradients, updated = problem.slab(), problem.slab(), problem.slab()
        out_adjoint = None if out_matrix is None else out_matrix.t().contiguous()
        source_adjoint = None if source_matrix is None else source_matrix.t().contiguous()
        arrived = problem.slab()

        def upstream(index: int, part: _Slab) -> Tensor:
            """The gradient of the updated source, of the new planes."""
            planes = problem.images(gradient)[index, part.fresh : part.stop]
            if out_adjoint is None:
                return planes.transpose(-1, -2).contiguous()
            return multiply(_rows(planes), out_adjoint, out=_rows(arrived[: len(planes)]))

        for index in range(len(x)):
            image, reconstruction = problem.images(x)[index], problem.images(reconstructions)[index]
            image_gradient = problem.images(x_gradient)[index]
            for part in problem.slabs(problem.halo):
                part.keep(sources)
                part.keep(gradients)
                problem.fill_source(index, part, sources)
                problem.call(
                    "differentiate_quotient",
                    *(image, reconstruction, filter, ctx.eps, upstream(index, part), sources, gradients, updated),
                    *(part.start, part.fresh, part.stop),
                )
                if out_matrix_gradient is not None:
                    made = _rows(updated[: part.stop - part.fresh])
                    planes = _rows(problem.images(gradient)[index, part.fresh : part.stop])
                    add_gradients(made, planes, out_matrix_gradient, out_bias_gradient)
                for factor, slab in ((image, gradients), (reconstruction, sources)):
                    problem.call("correlate", factor, slab, part.start, filter_gradient, part.fresh, part.stop)
                for slab, result in ((gradients, image_gradient), (sources, reconstruction_gradient)):
                    problem.call("gather_source", slab, part.start, filter, result, part.first, part.end)
            for part in problem.slabs():
                planes = slice(part.first, part.end)
                problem.fill_source(index, part, sources)
                problem.call(
                    "differentiate_source",
                    *(image, reconstruction, reconstruction_gradient, filter, ctx.eps, upstream(index, part)),
                    *(None if source_matrix is None else sources, gradients, part.first, part.end),
                )
                problem.call(
                    "correlate", reconstruction_gradient, sources, part.first, filter_gradient, part.first, part.end
                )
                if source_gradient is not None:
                    problem.images(source_gradient)[index, planes] = problem.channel_major(gradients[part.new])
                    continue
                assert source_adjoint is not None and source_matrix_gradient is not None
                projected = _rows(gradients[part.new])
                multiply(projected, source_adjoint, out=_rows(image_gradient[planes]), add=True)
                add_gradients(_rows(image[planes]), projected, source_matrix_gradient, source_bias_gradient)
        # The kernel sums over what the flipped filter weighs.
        axes = list(range(filter.ndim - 2))
        return (
            x_gradient,
            source_gradient,
            source_matrix_gradient,
            source_bias_gradient,
            filter_gradient.flip(axes),
            out_matrix_gradient,
            out_bias_gradient,
            None,
        )


def _rows(planes: Tensor) -> Tensor:
    return planes.flatten(0, -2)


def _three_axes(sizes: Sequence[int]) -> tuple[int, ...]:
    """One to three spatial axes as three: slabs are cut along the first, vectors run along the last."""
    sizes = tuple(sizes)
    return {1: (1, 1, *sizes), 2: (sizes[0], 1, sizes[-1]), 3: sizes}[len(sizes)]
