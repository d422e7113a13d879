"""NeRD at the size of real patches: in chunks along space, and nothing kept for backward but the input.

Written out, the map of NeRDc has K * C numbers for each position (at 128^3, with 32 channels and 105 classes, 13 GiB in
half precision) and the perceptron's activations are no small matter either (1 GiB in float32 for two layers of 32).
Here each chunk of positions makes its own part of them, in forward and again in backward, and drops it. The operation
is opaque to torch.compile: traced, its loop would unroll into hundreds of operations, and its recomputation would be a
higher-order operator, which many releases cannot compile under DistributedDataParallel. Backward is therefore written
by hand, once per form:

- "normalise", NeRDm's `x * scale + shift`;
- "map_first", NeRDc's `w_v = weight @ code + constant`, then `x . w_v`;
- "image_first", NeRDc's `x . weight`, then that with the code.

The code (see `nerd`) is made in float32 at least, also under autocast; what follows is computed in the dtype of x, with
the accumulation of a matrix product, and gradients of parameters are added up over chunks in float32 at least.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nnunet_deconver.ops.common import full_precision
from nnunet_deconver.ops.device import policy
from nnunet_deconver.ops.nerd import SLOPE, border_distances, position_activations

ORDERS = ("map_first", "image_first")


def choose_order(batch: int, channels: int, code: int) -> str:
    """The order in which NeRDc contracts features x (C), last layer (K * C * J) and code (J) of a position.

    "map_first" writes and reads `w_v`, K * C numbers whatever the batch; "image_first" writes and reads the product of
    x and the last layer, B * K * J numbers. Either product has an inner dimension of some dozens, so it is these bytes
    that take the time, about twice as many again in backward, and not the multiplications: K * C * J for the first
    and B * K * C * J for the second.

    With a code of 32 the highest resolutions of a network (32 channels) make the map; the lowest (320 channels, batch
    2) save four fifths of the bytes by not making it.

    Args:
        batch: samples, B.
        channels: channels of x, C.
        code: length of the position's code, J.
    """
    return "map_first" if channels <= batch * code else "image_first"


def bytes_per_position(form: str, batch: int, channels: int, classes: int, layers: Sequence[int], itemsize: int) -> int:
    """Upper bound of what the backward pass of a chunk allocates for each position; the forward pass takes less.

    Args:
        form: "normalise", "map_first" or "image_first".
        batch: samples, B.
        channels: channels of x, C.
        classes: number of classes, K.
        layers: length of the position vector and of each hidden layer's output.
        itemsize: bytes of a number of x.
    """
    code = max(layers)
    numbers = {
        # x * gradient, then gradient * scale; the map, its gradient and the halves of that
        "normalise": batch * channels + 5 * channels,
        # the map, then its gradient; copies of x and of its gradient, of the logits' gradient
        "map_first": classes * channels + 2 * batch * (channels + classes),
        # x . weight and that times the code or the gradient; the gradient of x and a copy of x
        "image_first": 2 * batch * classes * code + 2 * batch * channels,
    }
    perceptron = sum(layers) + 3 * code  # activations; the gradient on its way
    return itemsize * (numbers[form] + 3 * code + 2 * classes) + max(4, itemsize) * perceptron + 3 * 8


def position_code(
    size: Sequence[int], layers: Sequence[Tensor], *, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """The code of every position, made in float32 at least and kept in `dtype`.

    Args:
        size: voxels of the patch per axis.
        layers: the perceptron's hidden layers, see `position_activations`.
        dtype: of the result.
        device: of the result.

    Returns:
        (J, N), without gradient.
    """
    with torch.no_grad(), full_precision(layers[0].device):
        layers = _widened(layers, dtype)
        code = torch.empty(len(layers[-1]), math.prod(size), dtype=dtype, device=device)
        length = max(
            1, policy(layers[0]).chunk_bytes // (3 * layers[0].element_size() * max(len(bias) for bias in layers[1::2]))
        )
        for start, stop in _chunks(code.shape[1], length):
            distances = border_distances(size, start, stop, dtype=layers[0].dtype, device=device)
            code[:, start:stop] = position_activations(distances, layers)[-1]
    return code


def nerd_normalisation(
    x: Tensor,
    layers: Sequence[Tensor],
    weight: Tensor,
    constant: Tensor,
    *,
    code: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Features normalised by their position, `x * 1/sigma - mu/sigma` of eq. (5).

    Args:
        x: (B, C, *S).
        layers: the perceptron's hidden layers, see `position_activations`.
        weight: (2C, J) of the last layer, see `nerd_normalisation_reference`.
        constant: (2C,), likewise.
        code: `position_code` of the size and dtype of x where it is at hand; then no gradient is defined.
        chunk: positions at a time; None to choose.

    Returns:
        (B, C, *S) in the dtype of x.
    """
    return _nerd(x, code, list(layers), weight, constant, "normalise", 0, chunk)


def nerd_classification(
    x: Tensor,
    layers: Sequence[Tensor],
    weight: Tensor,
    constant: Tensor,
    classes: int,
    *,
    code: Tensor | None = None,
    order: str | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Features classified by the weights of their position, `s = x . w_v` of section 2.2.

    Args:
        x: (B, C, *S).
        layers: the perceptron's hidden layers, see `position_activations`.
        weight: (K * C, J) of the last layer or (K * C + K, J), see `nerd_classification_reference`.
        constant: (K * C,) or (K * C + K,), likewise.
        classes: number of classes, K.
        code: `position_code` of the size and dtype of x where it is at hand; then no gradient is defined.
        order: "map_first" or "image_first", the same function either way; None to choose.
        chunk: positions at a time; None to choose.

    Returns:
        (B, K, *S) in the dtype of x.

    Raises:
        ValueError: for an unknown order.
    """
    if order is None:
        order = choose_order(x.shape[0], x.shape[1], weight.shape[1])
    elif order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)} or None, got {order!r}")
    return _nerd(x, code, list(layers), weight, constant, order, classes, chunk)


def _chunks(positions: int, length: int) -> list[tuple[int, int]]:
    return [(start, min(start + length, positions)) for start in range(0, positions, length)]


def _chunks_of(
    x: Tensor, layers: Sequence[Tensor], form: str, classes: int, chunk: int | None
) -> list[tuple[int, int]]:
    positions = math.prod(x.shape[2:])
    if chunk is None:
        widths = [layers[0].shape[1], *(len(bias) for bias in layers[1::2])]
        each = bytes_per_position(form, x.shape[0], x.shape[1], classes, widths, x.element_size())
        chunk = max(1024, policy(x).chunk_bytes // each // 1024 * 1024)
    return _chunks(positions, chunk)


def _widened(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Casts to the dtype that the perceptron is evaluated and its gradients are added up in."""
    dtype = torch.promote_types(torch.float32, dtype)
    return [tensor.to(dtype) for tensor in tensors]


# The forms. Of n positions at a time: x (B, C, n), gradient (B, C or K, n), code (J, n), all in one dtype.


def _normalise(x: Tensor, code: Tensor, weight: Tensor, constant: Tensor, classes: int) -> Tensor:
    scale, shift = torch.addmm(constant[:, None], weight, code).chunk(2)  # (C, n)
    return torch.addcmul(shift, x, scale)


def _normalise_backward(
    gradient: Tensor, x: Tensor, code: Tensor, weight: Tensor, constant: Tensor, classes: int, sums: "_Sums"
) -> tuple[Tensor, Tensor]:
    scale = torch.addmm(constant[:, None], weight, code)[: x.shape[1]]
    d_map = torch.cat(((gradient * x).sum(0), gradient.sum(0)))  # (2C, n)
    sums.add(d_map, code)
    return gradient * scale, weight.t() @ d_map


def _map_first(x: Tensor, code: Tensor, weight: Tensor, constant: Tensor, classes: int) -> Tensor:
    rows = classes * x.shape[1]
    weights = torch.addmm(constant[:rows], code.t(), weight[:rows].t()).unflatten(1, (classes, -1))  # (n, K, C)
    logits = torch.bmm(weights, x.permute(2, 1, 0)).permute(2, 1, 0)  # (n, K, B) -> (B, K, n)
    return _with_class_bias(logits, code, weight[rows:], constant[rows:])


def _map_first_backward(
    gradient: Tensor, x: Tensor, code: Tensor, weight: Tensor, constant: Tensor, classes: int, sums: "_Sums"
) -> tuple[Tensor, Tensor]:
    rows = classes * x.shape[1]
    weights = torch.addmm(constant[:rows], code.t(), weight[:rows].t()).unflatten(1, (classes, -1))
    transposed = gradient.permute(2, 1, 0).contiguous()  # (n, K, B)
    d_x = torch.bmm(weights.transpose(1, 2), transposed).permute(2, 1, 0)
    del weights
    d_map = torch.bmm(transposed, x.permute(2, 0, 1)).flatten(1)  # (n, K * C)
    sums.add(d_map.t(), code, stop=rows)
    d_code = (d_map @ weight[:rows]).t()
    return d_x, _class_bias_backward(gradient, code, weight, rows, sums, d_code)


def _image_first(x: Tensor, code: Tensor, weight: Tensor, constant: Tensor, classes: int) -> Tensor:
    rows = classes * x.shape[1]
    products = torch.matmul(_by_channel(weight[:rows], classes), x).unflatten(1, (classes, -1))  # (B, K, J, n)
    logits = (products * code).sum(2) + torch.matmul(constant[:rows].unflatten(0, (classes, -1)), x)
    return _with_class_bias(logits, code, weight[rows:], constant[rows:])


def _image_first_backward(
    gradient: Tensor, x: Tensor, code: Tensor, weight: Tensor, constant: Tensor, classes: int, sums: "_Sums"
) -> tuple[Tensor, Tensor]:
    batch, channels, _ = x.shape
    rows = classes * channels
    by_channel = _by_channel(weight[:rows], classes)
    products = torch.matmul(by_channel, x).unflatten(1, (classes, -1))
    d_code = (products * gradient[:, :, None]).sum((0, 1))
    del products
    d_products = (gradient[:, :, None] * code).flatten(1, 2)  # (B, K * J, n)
    d_x = torch.matmul(by_channel.t(), d_products)
    d_x += torch.matmul(constant[:rows].unflatten(0, (classes, -1)).t(), gradient)
    for sample in range(batch):
        d_weight = (d_products[sample] @ x[sample].t()).unflatten(0, (classes, -1))  # (K, J, C)
        sums.weight[:rows] += d_weight.transpose(1, 2).flatten(0, 1)
        sums.constant[:rows] += (gradient[sample] @ x[sample].t()).flatten()
    return d_x, _class_bias_backward(gradient, code, weight, rows, sums, d_code)


def _by_channel(weight: Tensor, classes: int) -> Tensor:
    """(K * C, J) -> (K * J, C)."""
    return weight.unflatten(0, (classes, -1)).transpose(1, 2).flatten(0, 1)


def _with_class_bias(logits: Tensor, code: Tensor, weight: Tensor, constant: Tensor) -> Tensor:
    return logits + torch.addmm(constant[:, None], weight, code) if len(weight) else logits


def _class_bias_backward(
    gradient: Tensor, code: Tensor, weight: Tensor, rows: int, sums: "_Sums", d_code: Tensor
) -> Tensor:
    if rows == len(weight):
        return d_code
    d_bias = gradient.sum(0)  # (K, n)
    sums.add(d_bias, code, start=rows)
    return d_code + weight[rows:].t() @ d_bias


_FORWARD = {"normalise": _normalise, "map_first": _map_first, "image_first": _image_first}
_BACKWARD = {
    "normalise": _normalise_backward,
    "map_first": _map_first_backward,
    "image_first": _image_first_backward,
}


class _Sums:
    """Gradients of the parameters, added up over chunks."""

    def __init__(self, layers: Sequence[Tensor], weight: Tensor, constant: Tensor, dtype: torch.dtype) -> None:
        *self.layers, self.weight, self.constant = (
            torch.zeros_like(tensor) for tensor in _widened([*layers, weight, constant], dtype)
        )

    def add(self, d_map: Tensor, code: Tensor, start: int = 0, stop: int | None = None) -> None:
        """The last layer's share of `d_map` (M, n) for its rows from `start` to `stop`."""
        self.weight[start:stop] += d_map @ code.t()
        self.constant[start:stop] += d_map.sum(1, dtype=self.constant.dtype)

    def add_hidden(self, activations: list[Tensor], layers: Sequence[Tensor], gradient: Tensor) -> None:
        """The hidden layers' share of `gradient`, that of the code."""
        for i in range(len(activations) - 2, -1, -1):
            gradient = torch.where(activations[i + 1] > 0, gradient, SLOPE * gradient)
            self.layers[2 * i] += gradient @ activations[i].t()
            self.layers[2 * i + 1] += gradient.sum(1)
            if i:
                gradient = layers[2 * i].t() @ gradient


def run_forward(
    x: Tensor,
    code: Tensor | None,
    layers: Sequence[Tensor],
    weight: Tensor,
    constant: Tensor,
    form: str,
    classes: int,
    chunk: int | None,
) -> Tensor:
    """The logits or the normalised features, a chunk of positions at a time; what the custom operation runs."""
    size, flat = x.shape[2:], x.flatten(2)
    with full_precision(x.device):
        chunks = _chunks_of(x, layers, form, classes, chunk)
        layers = _widened(layers, x.dtype)
        weight, constant = weight.to(x.dtype), constant.to(x.dtype)
        out = _empty_output(x, classes).flatten(2)
        for start, stop in chunks:
            if code is None:
                distances = border_distances(size, start, stop, dtype=layers[0].dtype, device=x.device)
                part = position_activations(distances, layers)[-1].to(x.dtype)
            else:
                part = code[:, start:stop]
            out[:, :, start:stop] = _FORWARD[form](flat[:, :, start:stop], part, weight, constant, classes)
    return out.unflatten(2, size)


def run_backward(
    gradient: Tensor,
    x: Tensor,
    layers: Sequence[Tensor],
    weight: Tensor,
    constant: Tensor,
    form: str,
    classes: int,
    chunk: int | None,
) -> list[Tensor]:
    """The gradients of `run_forward` to image, layers, weight and constant; what its custom operation runs."""
    size, flat, gradient = x.shape[2:], x.flatten(2), gradient.flatten(2)
    with full_precision(x.device):
        chunks = _chunks_of(x, layers, form, classes, chunk)
        sums = _Sums(layers, weight, constant, x.dtype)
        dtypes = [parameter.dtype for parameter in (*layers, weight, constant)]
        layers = _widened(layers, x.dtype)
        weight, constant = weight.to(x.dtype), constant.to(x.dtype)
        d_x = torch.empty_like(flat, memory_format=torch.contiguous_format)
        for start, stop in chunks:
            distances = border_distances(size, start, stop, dtype=layers[0].dtype, device=x.device)
            activations = position_activations(distances, layers)
            d_x[:, :, start:stop], d_code = _BACKWARD[form](
                gradient[:, :, start:stop],
                flat[:, :, start:stop],
                activations[-1].to(x.dtype),
                weight,
                constant,
                classes,
                sums,
            )
            sums.add_hidden(activations, layers, d_code.to(layers[0].dtype))
    parameters = zip([*sums.layers, sums.weight, sums.constant], dtypes, strict=True)
    return [d_x.unflatten(2, size), *(total.to(dtype) for total, dtype in parameters)]


def _empty_output(x: Tensor, classes: int) -> Tensor:
    return x.new_empty(x.shape[0], classes or x.shape[1], *x.shape[2:])


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, code, layers, weight, constant, ctx.form, ctx.classes, ctx.chunk = inputs
    if code is not None:
        raise RuntimeError("no gradient is defined through a code made in advance; call without code")
    ctx.save_for_backward(x, weight, constant, *layers)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | list[Tensor] | None, ...]:
    x, weight, constant, *layers = ctx.saved_tensors
    d_x, *d_layers, d_weight, d_constant = _nerd_backward(
        gradient, x, layers, weight, constant, ctx.form, ctx.classes, ctx.chunk
    )
    return d_x, None, d_layers, d_weight, d_constant, None, None, None


_nerd = torch.library.custom_op(
    "nnunet_deconver::nerd",
    run_forward,
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor? code, Tensor[] layers, Tensor weight, Tensor constant, str form, int classes, "
        "int? chunk) -> Tensor"
    ),
)
_nerd_backward = torch.library.custom_op(
    "nnunet_deconver::nerd_backward",
    run_backward,
    mutates_args=(),
    schema=(
        "(Tensor gradient, Tensor x, Tensor[] layers, Tensor weight, Tensor constant, str form, int classes, "
        "int? chunk) -> Tensor[]"
    ),
)
_nerd.register_autograd(_differentiate, setup_context=_save)


@_nerd.register_fake
def _(
    x: Tensor,
    code: Tensor | None,
    layers: Sequence[Tensor],
    weight: Tensor,
    constant: Tensor,
    form: str,
    classes: int,
    chunk: int | None,
) -> Tensor:
    return _empty_output(x, classes)


@_nerd_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    layers: Sequence[Tensor],
    weight: Tensor,
    constant: Tensor,
    form: str,
    classes: int,
    chunk: int | None,
) -> list[Tensor]:
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [d_x, *(torch.empty_like(parameter) for parameter in (*layers, weight, constant))]


@register_flop_formula(torch.ops.nnunet_deconver.nerd)
def _flops(
    x: Sequence[int],
    code: Sequence[int] | None,
    layers: Sequence[Sequence[int]],
    weight: Sequence[int],
    constant: Sequence[int],
    form: str,
    classes: int,
    chunk: int | None,
    *,
    out_shape: object = None,
    **kwargs: object,
) -> int:
    hidden = 0 if code is not None else sum(math.prod(shape) for shape in layers[::2])
    return 2 * math.prod(x[2:]) * (hidden + sum(_multiplications(x, weight, form, classes)))


@register_flop_formula(torch.ops.nnunet_deconver.nerd_backward)
def _flops_backward(
    gradient: Sequence[int],
    x: Sequence[int],
    layers: Sequence[Sequence[int]],
    weight: Sequence[int],
    constant: Sequence[int],
    form: str,
    classes: int,
    chunk: int | None,
    *,
    out_shape: object = None,
    **kwargs: object,
) -> int:
    # Every product is made for the gradients of its two operands; those whose result is needed are made once more.
    hidden = 3 * sum(math.prod(shape) for shape in layers[::2]) - math.prod(layers[0])
    again, others = _multiplications(x, weight, form, classes)
    return 2 * math.prod(x[2:]) * (hidden + 3 * again + 2 * others)


def _multiplications(x: Sequence[int], weight: Sequence[int], form: str, classes: int) -> tuple[int, int]:
    """Multiplications for each position: of the product that backward needs again, and of the others."""
    (batch, channels), (rows, code) = x[:2], weight
    if form == "normalise":
        return rows * code, 0
    of_classes = classes * channels
    others = (rows - of_classes) * code + batch * of_classes
    return (1 if form == "map_first" else batch) * of_classes * code, others
