"""NeRD: positions, both heads' mathematics and its chunked form."""

import itertools
import math
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from nnunet_deconver.ops import assume_device, nerd_chunked, policy
from nnunet_deconver.ops.nerd import (
    border_distances,
    nerd_classification_reference,
    nerd_normalisation_reference,
    position_activations,
)
from nnunet_deconver.ops.nerd_chunked import (
    ORDERS,
    choose_order,
    nerd_classification,
    nerd_normalisation,
    position_code,
)

SIZES = pytest.mark.parametrize("size", [(7,), (4, 6), (3, 1, 5), (2, 4, 3)], ids=str)


def test_positions_in_2d_by_hand():
    """Two rows and four columns: distances up and down, left and right, of the centres."""
    distances = border_distances((2, 4)).unflatten(1, (2, 4))
    assert distances[0].tolist() == [[0.25] * 4, [0.75] * 4]
    assert distances[1].tolist() == [[0.75] * 4, [0.25] * 4]
    assert distances[2].tolist() == [[0.125, 0.375, 0.625, 0.875]] * 2
    assert distances[3].tolist() == [[0.875, 0.625, 0.375, 0.125]] * 2


def test_positions_in_3d_by_hand():
    distances = border_distances((1, 2, 4)).unflatten(1, (1, 2, 4))
    assert distances.shape == (6, 1, 2, 4)
    assert (distances[:2] == 0.5).all()
    assert distances[:, 0, 1, 3].tolist() == [0.5, 0.5, 0.75, 0.25, 0.875, 0.125]
    assert distances[:, 0, 0, 1].tolist() == [0.5, 0.5, 0.25, 0.75, 0.375, 0.625]


@SIZES
def test_the_two_distances_of_an_axis(size):
    """Inside (0, 1), together 1, and exchanged by a flip of the axis, which leaves the others alone."""
    distances = border_distances(size, dtype=torch.float64).unflatten(1, size)
    assert ((distances > 0) & (distances < 1)).all()
    for axis in range(len(size)):
        first, second = distances[2 * axis], distances[2 * axis + 1]
        torch.testing.assert_close(first + second, torch.ones_like(first), rtol=0, atol=1e-15)
        flipped = distances.flip(axis + 1)
        expected = distances.clone()
        expected[2 * axis], expected[2 * axis + 1] = second, first
        torch.testing.assert_close(flipped, expected, rtol=0, atol=1e-15)


def test_a_lower_resolution_covers_the_same_patch():
    """A voxel of strides (1, 2, 4) lies at the mean of the voxels it covers."""
    fine = border_distances((3, 4, 8), dtype=torch.float64).unflatten(1, (3, 4, 8))
    coarse = border_distances((3, 2, 2), dtype=torch.float64).unflatten(1, (3, 2, 2))
    torch.testing.assert_close(torch.nn.functional.avg_pool3d(fine, (1, 2, 4)), coarse)


@SIZES
def test_positions_in_parts(size):
    whole = border_distances(size)
    n = math.prod(size)
    parts = [border_distances(size, start, min(start + 2, n)) for start in range(0, n, 2)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_neighbours_differ_in_float32():
    for extent in (128, 513, 4096):
        assert len(border_distances((extent,))[0].unique()) == extent


def problem(size, channels, classes, *, bias=True, batch=2, code=5, dtype=torch.float64, seed=0):
    """x, hidden layers, and the last layer's weight and constant for `classes`; 0 classes for the normalisation."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = classes * (channels + bias) if classes else 2 * channels
    layers = [normal(4, 2 * len(size)), normal(4), normal(code, 4), normal(code)]
    return normal(batch, channels, *size), layers, normal(rows, code), normal(rows)


# form, classes: the operations and all there is to choose
FORMS = [
    pytest.param(None, 0, True, id="normalisation"),
    *(
        pytest.param(order, classes, bias, id=f"{order}-{classes}-classes{'' if bias else '-unbiased'}")
        for order, classes, bias in itertools.product(ORDERS, (1, 3), (True, False))
    ),
]


def operation(form, classes, **kwargs):
    if form is None:
        return lambda *args: nerd_normalisation(*args, **kwargs)
    return lambda *args: nerd_classification(*args, classes, order=form, **kwargs)


def reference(classes):
    if classes == 0:
        return nerd_normalisation_reference
    return lambda *args: nerd_classification_reference(*args, classes)


def test_the_normalisation_is_the_equation_written_out():
    """Eq. (5) voxel by voxel and channel by channel."""
    size, channels = (2, 3), 2
    x, layers, weight, constant = problem(size, channels, 0)
    out = nerd_normalisation_reference(x, layers, weight, constant)
    for i, j in itertools.product(*map(range, size)):
        v = torch.tensor([(i + 0.5) / 2, (1.5 - i) / 2, (j + 0.5) / 3, (2.5 - j) / 3], dtype=torch.float64)
        numbers = weight @ literal_code(v, layers) + constant
        for b, c in itertools.product(range(2), range(channels)):
            expected = x[b, c, i, j] * numbers[c] + numbers[channels + c]
            torch.testing.assert_close(out[b, c, i, j], expected)


@pytest.mark.parametrize("bias", [True, False])
def test_the_classification_is_the_equation_written_out(bias):
    """Section 2.2 voxel by voxel and class by class."""
    size, channels, classes = (2, 1, 3), 2, 3
    x, layers, weight, constant = problem(size, channels, classes, bias=bias)
    out = nerd_classification_reference(x, layers, weight, constant, classes)
    for i, k in itertools.product(range(2), range(3)):
        v = torch.tensor([(i + 0.5) / 2, (1.5 - i) / 2, 0.5, 0.5, (k + 0.5) / 3, (2.5 - k) / 3], dtype=torch.float64)
        numbers = weight @ literal_code(v, layers) + constant
        for b, s in itertools.product(range(2), range(classes)):
            expected = sum(numbers[channels * s + c] * x[b, c, i, 0, k] for c in range(channels))
            if bias:
                expected = expected + numbers[channels * classes + s]
            torch.testing.assert_close(out[b, s, i, 0, k], expected)


def literal_code(v, layers):
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        v = weight @ v + bias
        v = torch.where(v > 0, v, 0.01 * v)
    return v


@SIZES
@pytest.mark.parametrize("form, classes, bias", FORMS)
@pytest.mark.parametrize("chunk", [None, 1, 4], ids=["whole", "voxels", "chunks"])
def test_every_form_is_the_reference(form, classes, bias, size, chunk):
    """Outputs and gradients to float64's precision, in chunks and not."""
    results = []
    for function in (operation(form, classes, chunk=chunk), reference(classes)):
        x, layers, weight, constant = problem(size, 3, classes, bias=bias)
        inputs = [x, *layers, weight, constant]
        for tensor in inputs:
            tensor.requires_grad_()
        out = function(x, layers, weight, constant)
        results.append([out, *torch.autograd.grad(out.cos().sum(), inputs)])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form, classes, bias", FORMS)
@pytest.mark.parametrize("size", [(2, 3), (2, 1, 3)], ids=str)
def test_gradients(form, classes, bias, size):
    inputs = problem(size, 2, classes, bias=bias, batch=2, code=3)
    flat = [inputs[0], *inputs[1], *inputs[2:]]
    for tensor in flat:
        tensor.requires_grad_()
    function = operation(form, classes, chunk=2)
    assert torch.autograd.gradcheck(lambda x, *p: function(x, list(p[:-2]), p[-2], p[-1]), flat)


@pytest.mark.parametrize("form, classes, bias", FORMS)
@pytest.mark.parametrize("wanted", [(0,), (2,), (5, 6), (0, 1, 6)], ids=str)
def test_any_subset_of_gradients(form, classes, bias, wanted):
    results = []
    for function in (operation(form, classes), reference(classes)):
        x, layers, weight, constant = problem((3, 4), 2, classes, bias=bias)
        inputs = [x, *layers, weight, constant]
        for index in wanted:
            inputs[index].requires_grad_()
        out = function(x, layers, weight, constant)
        results.append(torch.autograd.grad(out.square().sum(), [inputs[index] for index in wanted]))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("form, classes, bias", FORMS)
def test_strides_and_a_broadcast_gradient(form, classes, bias):
    """Channels-last features, and the expanded gradient that `sum` sends back."""
    x, layers, weight, constant = problem((3, 4, 2), 3, classes, bias=bias)
    results = []
    for function in (operation(form, classes, chunk=5), reference(classes)):
        leaf = x.to(memory_format=torch.channels_last_3d).requires_grad_()
        out = function(leaf, layers, weight, constant)
        results.append((out, *torch.autograd.grad(out.sum(), leaf)))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


# Largest relative error of outputs and gradients in half precision.
TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form, classes, bias", FORMS)
def test_half_precision_is_close_to_float64(form, classes, bias, dtype):
    """Features in half precision, parameters in float32, with autocast on or off alike."""
    x, layers, weight, constant = problem((5, 6, 4), 4, classes, bias=bias, code=8)
    x = x.to(dtype).double()
    exact = [t.requires_grad_() for t in (x, *layers, weight, constant)]
    expected = reference(classes)(x, layers, weight, constant)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(expected, exact, direction)
    inputs = [x.detach().to(dtype), *(t.detach().float() for t in exact[1:])]
    for tensor in inputs:
        tensor.requires_grad_()
    outputs = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            outputs.append(operation(form, classes, chunk=50)(inputs[0], inputs[1:-2], *inputs[-2:]))
    out, under_autocast = outputs
    assert torch.equal(out, under_autocast)
    assert out.dtype == dtype
    results = torch.autograd.grad(out, inputs, direction.to(dtype))
    assert [g.dtype for g in results] == [t.dtype for t in inputs]
    for result, wanted in zip((out, *results), (expected, *gradients), strict=True):
        assert (result.double() - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


def test_the_code_made_in_advance():
    x, layers, weight, constant = problem((3, 4, 5), 3, 2)
    code = position_code((3, 4, 5), layers, dtype=torch.float64)
    expected = position_activations(border_distances((3, 4, 5), dtype=torch.float64), layers)[-1]
    torch.testing.assert_close(code, expected)
    for order in ORDERS:
        out = nerd_classification(x, layers, weight, constant, 2, code=code, order=order, chunk=7)
        torch.testing.assert_close(out, nerd_classification(x, layers, weight, constant, 2))
    with pytest.raises(RuntimeError, match="no gradient is defined"):
        nerd_classification(x.requires_grad_(), layers, weight, constant, 2, code=code)


def test_the_code_is_made_in_chunks_and_in_float32(monkeypatch):
    _, layers, _, _ = problem((3, 4, 5), 3, 2, dtype=torch.float32)
    whole = position_code((3, 4, 5), layers, dtype=torch.float32)
    monkeypatch.setattr(nerd_chunked, "policy", lambda tensor: policy(tensor)._replace(chunk_bytes=1000))
    seen = []

    def spy(distances, layers):
        seen.append(distances.dtype)
        return position_activations(distances, layers)

    monkeypatch.setattr(nerd_chunked, "position_activations", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = position_code((3, 4, 5), layers, dtype=torch.bfloat16)
    assert len(seen) > 1 and set(seen) == {torch.float32}
    assert torch.equal(half, whole.bfloat16())


def test_the_order_is_chosen_by_the_numbers_it_writes():
    """K * 32 of the map against K * 2 * 32 of the other product; K * 320 against K * 2 * 32."""
    assert choose_order(batch=2, channels=32, code=32) == "map_first"
    assert choose_order(batch=2, channels=320, code=32) == "image_first"
    assert choose_order(batch=1, channels=33, code=32) == "image_first"
    assert choose_order(batch=64, channels=320, code=32) == "map_first"


@pytest.mark.parametrize("batch, channels", [(2, 4), (1, 24)])
def test_the_chosen_order_is_the_one_that_runs(monkeypatch, batch, channels):
    ran = []
    for name in ORDERS:
        form = nerd_chunked._FORWARD[name]
        monkeypatch.setitem(
            nerd_chunked._FORWARD, name, lambda *args, name=name, form=form: (ran.append(name), form(*args))[1]
        )
    x, *rest = problem((2, 3), channels, 2, batch=batch, code=12)
    nerd_classification(x, *rest, 2)
    assert ran == [choose_order(batch, channels, 12)] == [{4: "map_first", 24: "image_first"}[channels]]


def test_an_unknown_order():
    with pytest.raises(ValueError, match="map_first, image_first or None, got 'voxels_first'"):
        nerd_classification(*problem((2, 3), 2, 2), 2, order="voxels_first")


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made under it, and their peak."""

    def __init__(self, known):
        super().__init__()
        self.known = {id(tensor.untyped_storage()) for tensor in known}
        self.sizes = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = id(storage)
                if key not in self.known and key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, key, None)
                    self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "form, batch, channels, classes, extent",
    [
        ("normalise", 2, 32, 0, 80),
        ("map_first", 2, 32, 4, 80),
        ("image_first", 2, 32, 4, 64),
        ("map_first", 2, 32, 105, 40),
        ("image_first", 2, 32, 105, 28),
        ("image_first", 2, 320, 105, 28),
        ("map_first", 16, 320, 1, 32),
        ("normalise", 16, 320, 0, 32),
        ("map_first", 1, 1, 1, 96),
        ("image_first", 1, 1, 1, 96),
    ],
)
def test_a_chunk_stays_within_its_bytes(form, batch, channels, classes, extent, dtype):
    """Counted on fake tensors: all that lives at once, besides inputs and outputs, at the size of real chunks."""
    with FakeTensorMode(), assume_device("cuda"):
        x = torch.empty(batch, channels, extent, extent, extent, dtype=dtype)
        layers = [torch.empty(32, 6), torch.empty(32), torch.empty(32, 32), torch.empty(32)]
        rows = classes * (channels + 1) if classes else 2 * channels
        weight, constant = torch.empty(rows, 32), torch.empty(rows)
        inputs = [x, *layers, weight, constant]
        with LiveBytes(inputs) as forward:
            out = nerd_chunked.run_forward(x, None, layers, weight, constant, form, classes, None)
        with LiveBytes([*inputs, out]) as backward:
            d_x, *_ = nerd_chunked.run_backward(out, x, layers, weight, constant, form, classes, None)
        chunks = nerd_chunked._chunks_of(x, layers, form, classes, None)
        allowed = policy(x).chunk_bytes
    extra = [forward.peak - out.untyped_storage().nbytes(), backward.peak - d_x.untyped_storage().nbytes()]
    assert max(extra) <= allowed
    assert len(chunks) > 1
    assert extra[1] > allowed / 3  # not much smaller than they may be


@pytest.mark.parametrize("form, classes, bias", FORMS)
def test_flops_are_counted(form, classes, bias):
    """As many as the matrix products inside, on a device without arithmetic too."""
    x, layers, weight, constant = problem((4, 5), 3, classes, bias=bias)
    name = form or "normalise"
    with FlopCounterMode(display=False) as expected:
        out = nerd_chunked.run_forward(x, None, layers, weight, constant, name, classes, None)
        nerd_chunked.run_backward(out, x, layers, weight, constant, name, classes, None)
    for device in ("cpu", "meta"):
        inputs = [t.detach().to(device).requires_grad_() for t in (x, *layers, weight, constant)]
        with FlopCounterMode(display=False) as counter:
            out = operation(form, classes)(inputs[0], inputs[1:-2], *inputs[-2:])
            out.sum().backward()
        assert counter.get_total_flops() == expected.get_total_flops() > 0


@pytest.mark.parametrize("form, classes, bias", FORMS)
def test_the_registration_with_pytorch(form, classes, bias):
    """Schema, fake tensors and autograd agree with the operation, traced with symbolic sizes too."""
    x, layers, weight, constant = problem((2, 3), 2, classes, bias=bias, dtype=torch.float32)
    for tensor in (x, *layers, weight, constant):
        tensor.requires_grad_()
    torch.library.opcheck(nerd_chunked._nerd, (x, None, layers, weight, constant, form or "normalise", classes, None))
