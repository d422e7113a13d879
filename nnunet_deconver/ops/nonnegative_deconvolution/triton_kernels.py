"""The Triton kernels of `triton_update` and what launches them. Needs Triton; imported where kernels run.

One code path for 1D, 2D and 3D. The spatial axes are lifted to three: the *march*, along which a program walks plane by
plane, and the rows and columns of the planes. A program owns `BLOCK` consecutive positions of a plane. It loads each
tap of a plane once, for all the output planes that the tap reaches: a window of that many partial sums (a tuple of
vectors, in registers) moves on by one with each plane. The march is the one of the outer two axes with the longer
kernel, so that 2D images and flat kernels share loads as well.

Every load is converted to float32, whatever the dtype of the tensor, and all arithmetic is float32. Offsets of channels
and planes are 64 bits wide.

The letters: B batch, G groups, c channels and e sources of a group; a *slab* is one group of one sample. M, R, W are
the extents of march, rows and columns; KM, KR, KX those of the kernel.
"""

# ruff: noqa: RUF005 - tuples are concatenated: Triton's language has no unpacking.
# Triton's language is not Python's: loops and tuples are unrolled, numbers stand for `tl.constexpr`.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports] there is none for some systems
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from nnunet_deconver.ops.device import SCRATCH_BYTES

# Triton would compile anew for each combination of sizes that are 1, multiples of 16, or neither.
_SIZES = ["march", "rows", "columns", "march_stride", "row_stride", "tiles", "chunks", "chunk", "first", "slabs"]


@triton.jit
def _program(program, tiles, chunks, BLOCKS: tl.constexpr):
    """Tile of the plane, chunk of the march, block of channels and slab. Neighbours in a plane run side by side."""
    tile = program % tiles
    program = program // tiles
    chunk = program % chunks
    program = program // chunks
    return tile, chunk, program % BLOCKS, (program // BLOCKS).to(tl.int64)


@triton.jit
def _positions(tile, columns, BLOCK: tl.constexpr):
    """Row and column of each position of a tile; those past the end of the plane are in rows past the last."""
    position = tile * BLOCK + tl.arange(0, BLOCK)
    row = position // columns
    return row, position - row * columns


@triton.jit
def _zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors = vectors + (tl.zeros([BLOCK], tl.float32),)
    return vectors


@triton.jit
def _without_first(vectors, COUNT: tl.constexpr, GONE: tl.constexpr):
    kept = ()
    for i in tl.static_range(GONE, COUNT):
        kept = kept + (vectors[i],)
    return kept


@triton.jit
def _load(image, at, mask):
    return tl.load(image + at, mask=mask, other=0).to(tl.float32)


@triton.jit
def _store(image, at, values, mask):
    tl.store(image + at, values.to(image.dtype.element_ty), mask=mask)


@triton.jit
def _saturated(values, LIMIT: tl.constexpr):
    """Finite values beyond LIMIT become LIMIT with their sign; inf and NaN stay. LIMIT 0 is none."""
    if LIMIT > 0:
        # false for NaN and inf
        beyond = (tl.abs(values) > LIMIT) & (tl.abs(values) < float("inf"))
        values = tl.where(beyond, tl.where(values > 0, LIMIT, -LIMIT), values)
    return values


@triton.jit
def _quotient(first, second, denominator):
    """`first * second / denominator`, as `reference.quotient`."""
    divides_first = (tl.abs(first) < tl.abs(second)) == (denominator < 1)
    return tl.where(divides_first, first, second) / denominator * tl.where(divides_first, second, first)


# What becomes of finished sums. Each gets those of one output channel, the position of its voxels in the output and in
# every tensor of the same shape, and those tensors; LIMIT is the largest number of the output's dtype, or 0.


@triton.jit
def _finish_reconstruction(sums, at, mask, tensors, eps, LIMIT: tl.constexpr):
    """`Y`."""
    _store(tensors[0], at, sums[0], mask)


@triton.jit
def _finish_update(sums, at, mask, tensors, eps, LIMIT: tl.constexpr):
    """`S N / D`."""
    source, updated = tensors
    values = _quotient(_load(source, at, mask), sums[0] + eps, sums[1] + eps)
    if LIMIT > 0:
        # lets NaN pass, as a minimum might not
        values = tl.where(values > LIMIT, LIMIT, values)
    _store(updated, at, values, mask)


@triton.jit
def _upstream(updated, at, mask, gradient, LIMIT: tl.constexpr):
    """`G`, but no gradient passes where the output was cut."""
    upstream = _load(gradient, at, mask)
    if LIMIT > 0:
        upstream = tl.where(updated <= LIMIT, upstream, 0.0)
    return upstream


@triton.jit
def _finish_d_ratio(sums, at, mask, tensors, eps, LIMIT: tl.constexpr):
    """`dN = G S / D`, `dD = -G S' / D`."""
    source, gradient, d_numerator, d_denominator = tensors
    numerator, denominator = sums[0] + eps, sums[1] + eps
    values = _load(source, at, mask)
    updated = _quotient(values, numerator, denominator)
    upstream = _upstream(updated, at, mask, gradient, LIMIT)
    _store(d_numerator, at, _quotient(upstream, values, denominator), mask)
    _store(d_denominator, at, -_quotient(upstream, updated, denominator), mask)


@triton.jit
def _finish_d_images(sums, at, mask, tensors, eps, LIMIT: tl.constexpr):
    """`dX`, `dY`."""
    _store(tensors[0], at, _saturated(sums[0], LIMIT), mask)
    _store(tensors[1], at, sums[1], mask)


@triton.jit
def _finish_d_source(sums, at, mask, tensors, eps, LIMIT: tl.constexpr):
    """`dS = G N / D + dY (*) V^-`."""
    source, gradient, d_source = tensors
    numerator, denominator = sums[0] + eps, sums[1] + eps
    updated = _quotient(_load(source, at, mask), numerator, denominator)
    upstream = _upstream(updated, at, mask, gradient, LIMIT)
    values = _quotient(upstream, numerator, denominator) + sums[2]
    _store(d_source, at, _saturated(values, LIMIT), mask)


@triton.jit(do_not_specialize=_SIZES)
def _correlate(
    finish: tl.constexpr,
    images,
    weights,
    tensors,
    eps,
    march,
    rows,
    columns,
    march_stride,
    row_stride,
    tiles,
    chunks,
    chunk,
    first,
    GROUPS: tl.constexpr,
    IMAGES: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    KM: tl.constexpr,
    KR: tl.constexpr,
    KX: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Correlations of several images with one filter, handed to `finish` plane by plane.

    `images` points to (slabs, IN, M, R, W) each, `weights` to (G, IN, KR, KX, KM, OUT) as `_weights` makes it,
    `tensors` to what `finish` reads and writes, (slabs, OUT, M, R, W) each. `tiles` of BLOCK positions cover a plane,
    `chunks` of `chunk` planes the march; `first` is the number of the first slab. A program makes OUT_BLOCK outputs.
    """
    tile, part, block, slab = _program(tl.program_id(0), tiles, chunks, OUT // OUT_BLOCK)
    row, column = _positions(tile, columns, BLOCK)
    voxels = march.to(tl.int64) * rows * columns
    weights += (first + slab) % GROUPS * (IN * KR * KX * KM * OUT) + block * OUT_BLOCK
    # Of [s, o, i]: the output plane `plane - KM // 2 + s`, the output channel, the image.
    sums = _zeros(KM * OUT_BLOCK * IMAGES, BLOCK)
    for step in range(chunk + KM - 1):
        plane = part * chunk + step - KM // 2
        # A plane outside has no rows.
        limit = tl.where((plane >= 0) & (plane < march), rows, 0)
        for tap_row in range(KR):
            tap_rows = row + (tap_row - KR // 2)
            in_rows = (tap_rows >= 0) & (tap_rows < limit)
            line = plane.to(tl.int64) * march_stride + tap_rows.to(tl.int64) * row_stride + column
            for channel in tl.range(0, IN, loop_unroll_factor=UNROLL):
                for tap_column in tl.static_range(KX):
                    tap_columns = column + (tap_column - KX // 2)
                    mask = in_rows & (tap_columns >= 0) & (tap_columns < columns)
                    at = (slab * IN + channel) * voxels + line + (tap_column - KX // 2)
                    values = ()
                    for i in tl.static_range(IMAGES):
                        values = values + (_load(images[i], at, mask),)
                    tap = weights + ((channel * KR + tap_row) * KX + tap_column) * (KM * OUT)
                    added = ()
                    for s in tl.static_range(KM):
                        for o in tl.static_range(OUT_BLOCK):
                            weight = tl.load(tap + (s * OUT + o))
                            for i in tl.static_range(IMAGES):
                                added = added + (sums[(s * OUT_BLOCK + o) * IMAGES + i] + values[i] * weight,)
                    sums = added
        # The first plane of the window has met all its taps.
        plane = part * chunk + step - (KM - 1)
        mask = row < tl.where((step >= KM - 1) & (plane < march), rows, 0)
        line = plane.to(tl.int64) * march_stride + row.to(tl.int64) * row_stride + column
        for o in tl.static_range(OUT_BLOCK):
            finished = ()
            for i in tl.static_range(IMAGES):
                finished = finished + (sums[o * IMAGES + i],)
            at = (slab * OUT + block * OUT_BLOCK + o) * voxels + line
            finish(finished, at, mask, tensors, eps, LIMIT)
        sums = _without_first(sums, KM * OUT_BLOCK * IMAGES, OUT_BLOCK * IMAGES) + _zeros(OUT_BLOCK * IMAGES, BLOCK)


@triton.jit(do_not_specialize=_SIZES)
def _correlate_pairs(
    images,
    partners,
    parts,
    march,
    rows,
    columns,
    march_stride,
    row_stride,
    tiles,
    chunks,
    chunk,
    first,
    slabs,
    PAIRS: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    E_BLOCK: tl.constexpr,
    KM: tl.constexpr,
    KR: tl.constexpr,
    KX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What each tile of each chunk adds to `sum_q A_c(q) B_e(q + j)`, summed over pairs (A, B), for every tap j.

    `images` points to the A, (slabs, C, M, R, W) each, `partners` to the B, (slabs, E, M, R, W), `parts` to the output,
    (tiles * chunks, slabs of the whole batch, C, E, KM, KR, KX). The sizes are those of `_correlate`.

    A program makes the sums of one channel, E_BLOCK sources and one row of the kernel. At each p = q + j of its tile it
    loads A at p - j for every column of the kernel, with a window of KM planes of B around it.
    """
    # Programs that read the same voxels run side by side and find them in the cache.
    VARIANTS: tl.constexpr = C * (E // E_BLOCK) * KR
    variant = tl.program_id(0) % VARIANTS
    tap_row = variant % KR
    block = variant // KR % (E // E_BLOCK)
    channel = variant // (KR * (E // E_BLOCK))
    tile, part, _, slab = _program(tl.program_id(0) // VARIANTS, tiles, chunks, 1)
    row, column = _positions(tile, columns, BLOCK)
    voxels = march.to(tl.int64) * rows * columns
    tap_rows = row - (tap_row - KR // 2)
    sums = _zeros(KM * KX * E_BLOCK, BLOCK)  # [s, x, e]
    window = _zeros(KM * E_BLOCK * PAIRS, BLOCK)  # [s, e, pair]: B in the plane of A, `s - KM // 2` further on
    for step in range(chunk + KM - 1):
        # B outside its chunk is another program's.
        plane = part * chunk + step
        mask = row < tl.where((step < chunk) & (plane < march), rows, 0)
        line = plane.to(tl.int64) * march_stride + row.to(tl.int64) * row_stride + column
        entering = ()
        for e in tl.static_range(E_BLOCK):
            at = (slab * E + block * E_BLOCK + e) * voxels + line
            for i in tl.static_range(PAIRS):
                entering = entering + (_load(partners[i], at, mask),)
        window = _without_first(window, KM * E_BLOCK * PAIRS, E_BLOCK * PAIRS) + entering
        plane = part * chunk + step - KM // 2
        limit = tl.where((plane >= 0) & (plane < march), rows, 0)
        in_rows = (tap_rows >= 0) & (tap_rows < limit)
        line = plane.to(tl.int64) * march_stride + tap_rows.to(tl.int64) * row_stride + column
        values = ()  # [x, pair]
        for x in tl.static_range(KX):
            tap_columns = column - (x - KX // 2)
            mask = in_rows & (tap_columns >= 0) & (tap_columns < columns)
            at = (slab * C + channel) * voxels + line - (x - KX // 2)
            for i in tl.static_range(PAIRS):
                values = values + (_load(images[i], at, mask),)
        added = ()
        for s in tl.static_range(KM):
            for x in tl.static_range(KX):
                for e in tl.static_range(E_BLOCK):
                    total = sums[(s * KX + x) * E_BLOCK + e]
                    for i in tl.static_range(PAIRS):
                        total += values[x * PAIRS + i] * window[(s * E_BLOCK + e) * PAIRS + i]
                    added = added + (total,)
        sums = added
    parts += (((part * tiles + tile) * slabs + first + slab) * C + channel) * (E * KM * KR * KX)
    for s in tl.static_range(KM):
        for x in tl.static_range(KX):
            for e in tl.static_range(E_BLOCK):
                tap = (((block * E_BLOCK + e) * KM + s) * KR + tap_row) * KX + x
                tl.store(parts + tap, tl.sum(sums[(s * KX + x) * E_BLOCK + e], 0))


class Lifted(NamedTuple):
    """A problem with its spatial axes lifted to march, rows and columns."""

    groups: int
    channels: int  # of a group, c
    sources: int  # of a group, e
    axis: int  # the march among the three axes of the image
    size: tuple[int, int, int]  # M, R, W
    strides: tuple[int, int]  # of march and rows
    kernel: tuple[int, int, int]  # KM, KR, KX

    @property
    def voxels(self) -> int:
        """Of a channel."""
        return math.prod(self.size)


def lift(x: Tensor, filter: Tensor, groups: int) -> Lifted:
    """Chooses the march. For `x` (B, C, *S) and `filter` (C, e, *k)."""
    missing = (1,) * (5 - x.ndim)
    depth, height, width = (*missing, *x.shape[2:])
    deep, high, wide = (*missing, *filter.shape[2:])
    channels, sources = x.shape[1] // groups, filter.shape[1]
    if deep >= high:
        return Lifted(groups, channels, sources, 0, (depth, height, width), (height * width, width), (deep, high, wide))
    return Lifted(groups, channels, sources, 1, (height, depth, width), (width, height * width), (high, deep, wide))


class Tile(NamedTuple):
    """What one program does."""

    block: int  # positions of a plane
    chunk: int  # planes
    channels: int  # output channels
    warps: int


def choose_tile(lifted: Lifted, copies: int, channels: int, sums: int) -> Tile:
    """The tile for `copies` of a problem with `channels` outputs and `sums` vectors of partial sums for each.

    A thread's registers hold some 96 sums beside addresses and loaded values. Several positions for each thread are
    worth it as long as their sums fit: the weights, which every thread loads for itself, then serve them all. The
    choice depends on shapes alone, and so does the order in which gradients of filters are summed.
    """
    together = max(n for n in range(1, channels + 1) if channels % n == 0 and (n == 1 or n * sums <= 96))
    plane = lifted.size[1] * lifted.size[2]
    threads = min(128, max(32, triton.next_power_of_2(plane)))
    positions = max(n for n in (1, 2, 4) if n == 1 or (n * together * sums <= 48 and n * threads <= plane))
    block = threads * positions
    # Long chunks load fewer planes twice; 4096 programs keep a large GPU (132 multiprocessors) busy.
    programs = copies * (channels // together) * triton.cdiv(plane, block)
    chunk = min(max(4, lifted.size[0] * programs // 4096), lifted.size[0])
    return Tile(block, chunk, together, threads // 32)


def _weights(filter: Tensor, lifted: Lifted, *, adjoint: bool) -> Tensor:
    """`V` (C, e, *k), or its adjoint, as `_correlate` reads it: float32 (G, in, KR, KX, KM, out).

    The window's plane s is met by the tap KM - 1 - s, hence a flip of the march; the adjoint flips every axis.
    """
    taps = _by_group(filter.to(torch.float32), lifted)
    if adjoint:
        return taps.flip(4, 5).permute(0, 1, 4, 5, 3, 2).contiguous()
    return taps.flip(3).permute(0, 2, 4, 5, 3, 1).contiguous()


def _by_group(filter: Tensor, lifted: Lifted) -> Tensor:
    """(C, e, *k) -> (G, c, e, KM, KR, KX)."""
    missing = (1,) * (5 - filter.ndim)
    grouped = filter.reshape(lifted.groups, lifted.channels, lifted.sources, *missing, *filter.shape[2:])
    return grouped.transpose(3, 3 + lifted.axis)


def _slabs(tensor: Tensor, lifted: Lifted) -> Tensor:
    """(B, G * n, *S) -> (B * G, n, *S): a view where the tensor is contiguous, else a copy."""
    batch, channels = tensor.shape[:2]
    return tensor.contiguous().view(batch * lifted.groups, channels // lifted.groups, *tensor.shape[2:])


def _bunches(slabs: int, bytes_each: int) -> Iterator[slice]:
    together = max(1, SCRATCH_BYTES // bytes_each)
    for first in range(0, slabs, together):
        yield slice(first, min(first + together, slabs))


def _limit(tensor: Tensor) -> float:
    return 0.0 if tensor.dtype == torch.float32 else torch.finfo(tensor.dtype).max


def _launch(kernel: triton.JITFunction, lifted: Lifted, tile: Tile, programs: int, **arguments: object) -> None:
    """Launches `programs` for each tile of each chunk."""
    tiles, chunks = _grid(lifted, tile)
    kernel[(tiles * chunks * programs,)](
        **dict(zip(("march", "rows", "columns"), lifted.size, strict=True)),
        **dict(zip(("march_stride", "row_stride"), lifted.strides, strict=True)),
        **dict(zip(("KM", "KR", "KX"), lifted.kernel, strict=True)),
        tiles=tiles,
        chunks=chunks,
        chunk=tile.chunk,
        BLOCK=tile.block,
        num_warps=tile.warps,
        # The kernels count on a multiplication and an addition becoming one; the default differs between releases.
        enable_fp_fusion=True,
        **arguments,
    )


def _grid(lifted: Lifted, tile: Tile) -> tuple[int, int]:
    """Tiles of a plane, chunks of the march."""
    return triton.cdiv(lifted.size[1] * lifted.size[2], tile.block), triton.cdiv(lifted.size[0], tile.chunk)


def _unrolled(lifted: Lifted, tile: Tile, images: int) -> int:
    """Input channels whose loads `_correlate` has under way together, as far as a thread's code stays short.

    The image gradients of kernels of 5 have 200 products, for which a thread has not enough registers
    (`benchmarks/kernel_resources.py`).
    """
    march, _, columns = lifted.kernel
    positions = tile.block // (32 * tile.warps)
    return 4 if march * columns * tile.channels * images * positions < 200 else 1


def _correlate_with(
    weights: Tensor,
    lifted: Lifted,
    first: int,
    finish: Callable,
    images: tuple[Tensor, ...],
    tensors: tuple[Tensor, ...],
    *,
    eps: float = 0.0,
    limit: float = 0.0,
) -> None:
    """Launches `_correlate` on slabs, the first of which is number `first`."""
    slabs, outputs = tensors[0].shape[:2]
    tile = choose_tile(lifted, slabs, outputs, lifted.kernel[0] * len(images))
    _launch(
        _correlate,
        lifted,
        tile,
        slabs * (outputs // tile.channels),
        finish=finish,
        images=images,
        weights=weights,
        tensors=tensors,
        eps=eps,
        first=first,
        GROUPS=lifted.groups,
        IMAGES=len(images),
        IN=images[0].shape[1],
        OUT=outputs,
        OUT_BLOCK=tile.channels,
        UNROLL=_unrolled(lifted, tile, len(images)),
        LIMIT=limit,
    )


def update(x: Tensor, source: Tensor, filter: Tensor, groups: int, eps: float) -> Tensor:
    """The update of `triton_update`, for tensors it covers.

    Args:
        x: (B, C, *S), of any memory format.
        source: (B, E, *S), likewise.
        filter: (C, E / groups, *k).
        groups: number of groups the channels are split into.
        eps: added to numerator and denominator.

    Returns:
        The updated source, (B, E, *S), contiguous, in the dtype of `source`.
    """
    updated = torch.empty(source.shape, dtype=source.dtype, device=source.device)
    if updated.numel() == 0:
        return updated
    lifted = lift(x, filter, groups)
    forwards, adjoint = _weights(filter, lifted, adjoint=False), _weights(filter, lifted, adjoint=True)
    x, source, out = (_slabs(tensor, lifted) for tensor in (x, source, updated))
    with torch.cuda.device_of(x):  # Triton launches on the current device
        for part in _bunches(len(x), 4 * lifted.channels * lifted.voxels):
            images, sources = x[part], source[part]
            y = torch.empty(images.shape, dtype=torch.float32, device=x.device)
            _correlate_with(forwards, lifted, part.start, _finish_reconstruction, (sources,), (y,))
            _correlate_with(
                adjoint,
                lifted,
                part.start,
                _finish_update,
                (images, y),
                (sources, out[part]),
                eps=eps,
                limit=_limit(out),
            )
    return updated


def differentiate(
    gradient: Tensor, x: Tensor, source: Tensor, filter: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `update`.

    Args:
        gradient: of the updated source, (B, E, *S), of any memory format.
        x: as in `update`, and so the following.
        source: likewise.
        filter: likewise.
        groups: likewise.
        eps: likewise.

    Returns:
        The gradients of x and source, contiguous and in their dtypes, and that of filter in float32.
    """
    d_x, d_source = (torch.empty(tensor.shape, dtype=tensor.dtype, device=x.device) for tensor in (x, source))
    if d_source.numel() == 0:
        return d_x, d_source, torch.zeros(filter.shape, dtype=torch.float32, device=x.device)
    batch, lifted = len(x), lift(x, filter, groups)
    forwards, adjoint = _weights(filter, lifted, adjoint=False), _weights(filter, lifted, adjoint=True)
    gradient, x, source = (_slabs(tensor, lifted) for tensor in (gradient, x, source))
    out_x, out_source = _slabs(d_x, lifted), _slabs(d_source, lifted)
    march, rows, columns = lifted.kernel
    tile = choose_tile(lifted, len(x) * lifted.channels * rows, lifted.sources, march * columns)
    taps = (lifted.channels, lifted.sources, *lifted.kernel)
    parts = torch.empty(math.prod(_grid(lifted, tile)), len(x), *taps, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        for part in _bunches(len(x), 8 * (lifted.channels + lifted.sources) * lifted.voxels):
            images, sources, upstream, first = x[part], source[part], gradient[part], part.start
            y, d_y = (torch.empty(images.shape, dtype=torch.float32, device=x.device) for _ in range(2))
            d_n, d_d = (torch.empty(sources.shape, dtype=torch.float32, device=x.device) for _ in range(2))
            options = {"eps": eps, "limit": _limit(source)}
            _correlate_with(forwards, lifted, first, _finish_reconstruction, (sources,), (y,))
            _correlate_with(
                adjoint, lifted, first, _finish_d_ratio, (images, y), (sources, upstream, d_n, d_d), **options
            )
            _correlate_with(forwards, lifted, first, _finish_d_images, (d_n, d_d), (out_x[part], d_y), limit=_limit(x))
            _correlate_with(
                adjoint,
                lifted,
                first,
                _finish_d_source,
                (images, y, d_y),
                (sources, upstream, out_source[part]),
                **options,
            )
            _launch(
                _correlate_pairs,
                lifted,
                tile,
                len(images) * lifted.channels * (lifted.sources // tile.channels) * rows,
                images=(images, y, d_y),
                partners=(d_n, d_d, sources),
                parts=parts,
                first=first,
                slabs=len(x),
                PAIRS=3,
                C=lifted.channels,
                E=lifted.sources,
                E_BLOCK=tile.channels,
            )
    d_filter = parts.view(-1, batch, groups, *taps).sum((0, 1)).transpose(3, 3 + lifted.axis)
    return d_x, d_source, d_filter.reshape(filter.shape)
