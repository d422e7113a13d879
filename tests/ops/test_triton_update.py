"""The Triton path: the same function and gradients as the plain path, in whatever shape the tensors come.

Without a GPU the kernels run in Triton's interpreter (see conftest), and are compiled for one all the same.
"""

import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_deconver.ops import assume_device, nonnegative_deconvolution, nonnegative_deconvolution_reference
from nnunet_deconver.ops.nonnegative_deconvolution import backends, triton_machine, triton_update

pytestmark = pytest.mark.skipif(triton_machine.TRITON_OBSTACLE is not None, reason=str(triton_machine.TRITON_OBSTACLE))
DEVICES = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.skipif(not triton_update.INTERPRETED, reason="Triton has a GPU here")),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)

# channels, source channels, groups, spatial size, kernel. The interpreter takes a second for some hundred products.
PROBLEMS = [
    pytest.param(2, 6, 2, (9,), (3,), id="1d"),
    pytest.param(1, 2, 1, (5,), (7,), id="1d-kernel-larger-than-image"),
    pytest.param(8, 8, 1, (3,), (3,), id="1d-8-channels-8-sources"),
    pytest.param(3, 1, 1, (7,), (5,), id="1d-fewer-sources-than-channels"),
    pytest.param(2, 2, 1, (5, 4), (3, 5), id="2d-dense-anisotropic"),
    pytest.param(4, 6, 2, (3, 5), (1, 1), id="2d-pointwise"),
    pytest.param(1, 2, 1, (3, 5), (1, 3), id="2d-flat"),
    pytest.param(1, 1, 1, (3, 5), (7, 7), id="2d-k7"),
    pytest.param(1, 4, 1, (3, 4, 5), (3, 3, 3), id="3d"),
    pytest.param(2, 2, 2, (2, 3, 5), (1, 3, 3), id="3d-flat"),
    pytest.param(1, 1, 1, (2, 3, 3), (3, 5, 1), id="3d-anisotropic"),
]
SMALL = (2, 4, 2, (3, 4), (3, 3))
HALVES = [torch.float16, torch.bfloat16]


def problem(channels, sources, groups, size, kernel, *, dtype=torch.float32, device="cpu", batch=1, seed=0):
    """x, source, filter and a gradient of the result, rounded to dtype."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return (
        uniform(batch, channels, *size),
        uniform(batch, sources, *size),
        uniform(channels, sources // groups, *kernel),
        uniform(batch, sources, *size) - 0.5,
    )


def results(function, x, source, filter, gradient, **options):
    """The output and the gradients of x, source and filter."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, source, filter)]
    out = function(*inputs, **options)
    out.backward(gradient.to(out.dtype))
    return [out.detach(), *(tensor.grad for tensor in inputs)]


def assert_as_near_as_plain(x, source, filter, gradient, **options):
    """No further from float64 than the plain path, half as much again, and some float32 roundings.

    Of a dozen numbers, whose sums partly cancel, the plain path's are now and then nearer by chance, and by another on
    each processor.
    """
    ours = results(nonnegative_deconvolution, x, source, filter, gradient, backend="triton", **options)
    plain = results(nonnegative_deconvolution, x, source, filter, gradient, backend="plain", **options)
    wide = [tensor.double() for tensor in (x, source, filter, gradient)]
    exact = results(nonnegative_deconvolution_reference, *wide, **options)
    # The interpreter cuts bits off where it casts to bfloat16; devices round.
    factor = 2.5 if torch.bfloat16 in (x.dtype, source.dtype) and x.device.type == "cpu" else 1.5
    for name, a, b, c in zip(("output", "x", "source", "filter"), ours, plain, exact, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        floor = 8 * torch.finfo(torch.float32).eps * c.norm()
        assert (a.double() - c).norm() <= factor * (b.double() - c).norm() + floor, name


class Operations(TorchDispatchMode):
    """Records the names of what runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))

    @property
    def path(self):
        fused = "nnunet_deconver::nonnegative_deconvolution" in self.names
        assert fused != ("aten::convolution" in self.names)
        return "triton" if fused else "plain"


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What no kernel writes is NaN."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(deterministic)


@DEVICES
@pytest.mark.parametrize("channels, sources, groups, size, kernel", PROBLEMS)
def test_output_and_gradients(device, channels, sources, groups, size, kernel):
    assert_as_near_as_plain(*problem(channels, sources, groups, size, kernel, device=device), groups=groups)


@DEVICES
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision(device, dtype):
    assert_as_near_as_plain(*problem(*SMALL, dtype=dtype, device=device), groups=2)


@DEVICES
def test_each_tensor_has_its_own_dtype(device):
    x, source, filter, gradient = problem(*SMALL, device=device)
    assert_as_near_as_plain(x.half(), source, filter.bfloat16(), gradient, groups=2)


@DEVICES
@pytest.mark.parametrize(
    "channels, sources, groups, size, kernel", [(2, 4, 2, (3, 5), (3, 3)), (1, 1, 1, (3, 2, 3), (3, 3, 1))], ids=str
)
def test_borders_between_programs(monkeypatch, device, channels, sources, groups, size, kernel):
    """Tiles of 4 positions and 2 planes, one source and one slab at a time."""
    from nnunet_deconver.ops.nonnegative_deconvolution import triton_kernels

    monkeypatch.setattr(triton_kernels, "choose_tile", lambda *arguments: triton_kernels.Tile(4, 2, 1, 1))
    monkeypatch.setattr(triton_kernels, "SCRATCH_BYTES", 1)
    assert_as_near_as_plain(*problem(channels, sources, groups, size, kernel, device=device), groups=groups)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(
    "channels, sources, groups, size, kernel",
    [
        pytest.param(16, 64, 16, (67,), (3,), id="1d"),
        pytest.param(16, 64, 16, (65, 67), (5, 5), id="2d"),
        pytest.param(8, 32, 8, (33, 35, 37), (3, 3, 3), id="3d"),
        pytest.param(4, 16, 4, (20, 33, 31), (1, 3, 3), id="3d-flat"),
        pytest.param(4, 16, 4, (17, 19, 21), (7, 7, 7), id="3d-k7"),
        pytest.param(16, 16, 2, (16, 16, 16), (3, 3, 3), id="3d-8-channels-8-sources"),
    ],
)
def test_larger_problems(dtype, channels, sources, groups, size, kernel):
    assert_as_near_as_plain(
        *problem(channels, sources, groups, size, kernel, dtype=dtype, device="cuda", batch=2), groups=groups
    )


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    """The last sample of a large batch is computed as it is alone."""
    x = torch.rand(9, 1, 2**23, device="cuda").half()
    source = torch.rand(9, 32, 2**23, device="cuda").half()
    assert source.numel() > 2**31
    filter = torch.rand(1, 4, 3, device="cuda")
    x, filter = x.expand(9, 8, 2**23), filter.expand(8, 4, 3)
    whole = nonnegative_deconvolution(x, source, filter, groups=8, backend="triton")
    alone = nonnegative_deconvolution(x[-1:], source[-1:], filter, groups=8, backend="triton")
    assert torch.equal(whole[-1:], alone)


@DEVICES
def test_memory_formats(device):
    x, source, filter, gradient = problem(*SMALL, device=device)
    expected = results(nonnegative_deconvolution, x, source, filter, gradient, groups=2, backend="triton")
    x, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    source = torch.cat((source, source), -1)[..., : source.shape[-1]]
    filter = filter.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not any(tensor.is_contiguous() for tensor in (x, source, filter, gradient))
    inputs = [tensor.detach().requires_grad_() for tensor in (x, source, filter)]
    out = nonnegative_deconvolution(*inputs, groups=2, backend="triton")
    out.backward(gradient)
    for a, b in zip([out, *(tensor.grad for tensor in inputs)], expected, strict=True):
        assert torch.equal(a, b)


@DEVICES
def test_gradients_of_a_broadcast_gradient(device):
    x, source, filter, _ = problem(2, 4, 2, (5,), (3,), device=device)
    ones = torch.ones_like(source)
    expected = results(nonnegative_deconvolution, x, source, filter, ones, groups=2, backend="triton")
    broadcast = torch.ones((), device=device).expand_as(source)
    for a, b in zip(
        results(nonnegative_deconvolution, x, source, filter, broadcast, groups=2, backend="triton"),
        expected,
        strict=True,
    ):
        assert torch.equal(a, b)


@DEVICES
@pytest.mark.parametrize("wanted", ["x", "source", "filter"])
def test_one_gradient_alone(device, wanted):
    x, source, filter, gradient = problem(2, 4, 2, (5,), (3,), device=device)
    tensors = {"x": x, "source": source, "filter": filter}
    expected = results(nonnegative_deconvolution, *tensors.values(), gradient, groups=2, backend="triton")
    tensors[wanted].requires_grad_()
    nonnegative_deconvolution(*tensors.values(), groups=2, backend="triton").backward(gradient)
    assert torch.equal(tensors[wanted].grad, expected[1 + list(tensors).index(wanted)])


@DEVICES
def test_empty_batch(device):
    x, source, filter, gradient = problem(2, 4, 2, (4, 5), (3, 3), batch=0, device=device)
    out, d_x, d_source, d_filter = results(
        nonnegative_deconvolution, x, source, filter, gradient, groups=2, backend="triton"
    )
    assert (out.shape, d_x.shape, d_source.shape) == (source.shape, x.shape, source.shape)
    assert d_filter.shape == filter.shape
    assert (d_filter == 0).all()


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_exact_zeros(device, dtype):
    """A black background, a dead source and a dead filter: finite, and the source stays zero."""
    x, source, filter, gradient = problem(2, 4, 2, (4, 4), (3, 3), dtype=dtype, device=device)
    x[:, :, :2] = 0
    source[:, :, :3] = 0
    source[:, 0] = 0
    filter[0] = 0
    out, *gradients = results(nonnegative_deconvolution, x, source, filter, gradient, groups=2, backend="triton")
    assert (out[source == 0] == 0).all()
    assert all(tensor.isfinite().all() for tensor in (out, *gradients))
    plain = results(nonnegative_deconvolution, x, source, filter, gradient, groups=2, backend="plain")
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}[dtype]
    for a, b in zip((out, *gradients), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-6)


@DEVICES
def test_the_largest_halves(device):
    """Every tensor at float16's end of the range, and a gradient that a scaler has scaled."""
    x, source, filter, gradient = problem(2, 4, 2, (4, 4), (3, 3), device=device)
    x, source, gradient = (
        (tensor * factor).half() for tensor, factor in ((x, 65504), (source, 65504), (gradient, 1e4))
    )
    ours = results(nonnegative_deconvolution, x, source, filter, gradient, groups=2, backend="triton")
    plain = results(nonnegative_deconvolution, x, source, filter, gradient, groups=2, backend="plain")
    for a, b in zip(ours, plain, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@DEVICES
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_output_saturates_and_passes_no_gradient_there(device, dtype):
    """With a kernel of one tap v the source becomes x / v, here just too large for dtype, and 2."""
    largest, tap = torch.finfo(dtype).max, {torch.float16: 0.5, torch.bfloat16: 0.9975}[dtype]
    x = torch.tensor([[[largest, 2 * tap]]], device=device).to(dtype)
    source = torch.ones_like(x)
    filter = torch.full((1, 1, 1), tap, device=device)
    out, d_x, *_ = results(nonnegative_deconvolution, x, source, filter, source, backend="triton")
    assert out[0, 0, 0].item() == largest
    assert out[0, 0, 1].item() == pytest.approx(2, rel=2**-7)
    assert d_x[0, 0, 0] == 0
    assert d_x[0, 0, 1].item() == pytest.approx(1 / tap, rel=2**-7)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in the interpreter, about inf
@DEVICES
def test_gradients_saturate_but_an_overflow_upstream_stays_visible(device):
    x = torch.full((1, 1, 3), 100.0, dtype=torch.float16, device=device)
    filter = torch.ones(1, 1, 1, device=device)
    # dS'/dS where S vanishes: (x + eps) / eps = 1e10
    source = torch.zeros(1, 1, 3, dtype=torch.float16, device=device, requires_grad=True)
    upstream = torch.tensor([[[float("inf"), 1.0, -1.0]]], dtype=torch.float16, device=device)
    nonnegative_deconvolution(x, source, filter, backend="triton").backward(upstream)
    assert not source.grad[0, 0, 0].isfinite()
    assert source.grad[0, 0, 1:].tolist() == [65504, -65504]
    source.grad = None
    upstream[0, 0, 0] = float("nan")
    nonnegative_deconvolution(x, source, filter, backend="triton").backward(upstream)
    assert source.grad[0, 0, 0].isnan()
    # inf is no large number
    x.requires_grad_()
    upstream[0, 0] = torch.tensor([float("inf"), 6e4, -1.0])
    filter = torch.full_like(filter, 0.5)
    nonnegative_deconvolution(x, torch.ones_like(x), filter, backend="triton").backward(upstream)
    assert x.grad.tolist() == [[[float("inf"), 65504, -2]]]


@DEVICES
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_changes_nothing(device, dtype):
    tensors = problem(2, 4, 2, (5,), (3,), device=device)
    expected = results(nonnegative_deconvolution, *tensors, groups=2, backend="triton")
    with torch.autocast(device, dtype=dtype):
        same = results(nonnegative_deconvolution, *tensors, groups=2, backend="triton")
    for a, b in zip(same, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@DEVICES
def test_gradients_are_the_same_bits_each_time(device):
    sizes = (8, 32, 8, (40, 40, 40), (3, 3, 3)) if device == "cuda" else (1, 2, 1, (3, 4), (3, 3))
    tensors = problem(*sizes, device=device, batch=2)
    first, *again = (
        results(nonnegative_deconvolution, *tensors, groups=sizes[2], backend="triton")
        for _ in range(5 if device == "cuda" else 2)
    )
    for other in again:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@DEVICES
def test_a_second_derivative_is_refused(device):
    x, source, filter, gradient = problem(1, 2, 1, (3,), (3,), device=device)
    out = nonnegative_deconvolution(x.requires_grad_(), source, filter, backend="triton")
    (d_x,) = torch.autograd.grad(out, x, gradient, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='plain'"):
        d_x.sum().backward()


@DEVICES
def test_the_operations_keep_their_contract(device):
    """Schema, fake implementation, autograd and tracing, with tensors that are neither contiguous nor alike."""
    x, source, filter, gradient = problem(2, 2, 2, (3,), (3,), device=device, batch=2)
    x, source = (tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (x, source.half()))
    inputs = [tensor.requires_grad_() for tensor in (x, source, filter)]
    torch.library.opcheck(torch.ops.nnunet_deconver.nonnegative_deconvolution, (*inputs, 2, 1e-8, False))
    arguments = (gradient.half(), *(tensor.detach() for tensor in (x, source, filter.half())), 2, 1e-8, False)
    torch.library.opcheck(torch.ops.nnunet_deconver.nonnegative_deconvolution_backward, arguments)


@DEVICES
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_graph_break(device, dynamic):
    tensors = problem(2, 4, 2, (5,), (3,), dtype=torch.float16, device=device)

    def layer(x, source, filter):
        return 2 * nonnegative_deconvolution(x, source, torch.relu(filter), groups=2, backend="triton")

    compiled = torch.compile(
        layer, fullgraph=True, dynamic=dynamic, backend="inductor" if device == "cuda" else "aot_eager"
    )
    for a, b in zip(results(compiled, *tensors), results(layer, *tensors), strict=True):
        torch.testing.assert_close(a, b)


def path_on(device, x, source, filter, **options):
    with FakeTensorMode(allow_non_fake_inputs=True), assume_device(device), Operations() as operations:
        nonnegative_deconvolution(x, source, filter, **options)
    return operations.path


def test_the_choice_follows_the_device():
    x, source, filter, _ = problem(*SMALL)
    assert path_on("cpu", x, source, filter, groups=2) == "plain"
    assert path_on("meta", x, source, filter, groups=2) == "plain"
    assert path_on("cuda", x, source, filter, groups=2) == "triton"
    assert path_on("cuda", x, source, filter, groups=2, backend="plain") == "plain"
    assert path_on("cpu", x, source, filter, groups=2, backend="plain") == "plain"


@pytest.mark.gpu
def test_the_choice_on_a_gpu():
    x, source, filter, _ = problem(*SMALL, device="cuda")
    with Operations() as operations:
        nonnegative_deconvolution(x, source, filter, groups=2)
    assert operations.path == "triton"


OBSTACLES = [
    pytest.param((9, 9, 1, (4,), (3,)), {}, "a group has 9 channels and 9 sources", id="channels"),
    pytest.param((1, 9, 1, (4,), (3,)), {}, "a group has 1 channels and 9 sources", id="sources"),
    pytest.param((1, 2, 1, (4, 4), (3, 9)), {}, r"the kernel is \(3, 9\)", id="kernel"),
    pytest.param((1, 2, 1, (4,), (3,)), {"iterations": 2}, "iterations is 2", id="iterations"),
    pytest.param((1, 2, 1, (4,), (3,)), {"dtype": torch.float64}, "x is torch.float64", id="dtype"),
]


@pytest.mark.parametrize("sizes, options, message", OBSTACLES)
def test_what_is_not_covered_takes_the_plain_path_and_says_so_once(monkeypatch, caplog, sizes, options, message):
    monkeypatch.setattr(backends, "_said", set())
    options = {"groups": sizes[2]} | options
    x, source, filter, _ = problem(*sizes, dtype=options.pop("dtype", torch.float32))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert path_on("cuda", x, source, filter, **options) == "plain"
    (record,) = caplog.records
    assert record.name.startswith("nnunet_deconver")
    assert caplog.text.count("plain path: ") == 1
    with assume_device("cuda"), pytest.raises(ValueError, match=f"'triton' cannot compute this: {message}.*None"):
        nonnegative_deconvolution(x, source, filter, backend="triton", **options)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_plain_path_is_said_while_compiling(monkeypatch, caplog, dynamic):
    monkeypatch.setattr(backends, "_said", set())
    x, source, filter, _ = problem(9, 18, 1, (4,), (3,))
    with assume_device("cuda"):
        compiled = torch.compile(nonnegative_deconvolution, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        out = compiled(x, source, filter)
    assert "a group has 9 channels" in caplog.text
    torch.testing.assert_close(out, nonnegative_deconvolution(x, source, filter))


def test_without_triton(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.setattr(triton_machine, "TRITON_OBSTACLE", "triton is not installed")
    x, source, filter, _ = problem(*SMALL)
    assert path_on("cuda", x, source, filter, groups=2) == "plain"
    assert "triton is not installed" in caplog.text
    with assume_device("cuda"), pytest.raises(ValueError, match="triton is not installed"):
        nonnegative_deconvolution(x, source, filter, groups=2, backend="triton")


def test_a_backend_that_cannot_run_here(monkeypatch):
    monkeypatch.setattr(triton_update, "INTERPRETED", False)
    x, source, filter, _ = problem(*SMALL)
    with pytest.raises(ValueError, match="'triton' cannot compute this: x is on cpu and must be on cuda"):
        nonnegative_deconvolution(x, source, filter, groups=2, backend="triton")
    with pytest.raises(ValueError, match=r"backend must be one of plain,.* triton.* or None, got 'cudnn'"):
        nonnegative_deconvolution(x, source, filter, groups=2, backend="cudnn")
    meta = filter.to("meta")
    with assume_device("cuda"), pytest.raises(ValueError, match="x is on cpu, source on cpu and filter on meta"):
        nonnegative_deconvolution(x, source, meta, groups=2, backend="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_memory_is_planned_without_a_device(dtype):
    """Autograd keeps the inputs alone; the output and gradients have the shapes and dtypes that a run has."""
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with FakeTensorMode(), assume_device("cuda"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        inputs = [
            torch.zeros(shape, dtype=type, requires_grad=True)
            for shape, type in (
                ((2, 3, 64, 64, 64), dtype),
                ((2, 12, 64, 64, 64), dtype),
                ((3, 4, 3, 3, 3), torch.float32),
            )
        ]
        out = nonnegative_deconvolution(*inputs, groups=3)
        assert out.shape == inputs[1].shape and out.dtype == dtype and out.is_contiguous()
        out.sum().backward()
    assert [tensor.shape for tensor in kept] == [tensor.shape for tensor in inputs]
    for tensor in inputs:
        assert tensor.grad.shape == tensor.shape and tensor.grad.dtype == tensor.dtype


@pytest.mark.parametrize("groups", [1, 2])
def test_floating_point_operations_are_those_of_the_convolutions(groups):
    counted = {}
    for backend in ("plain", "triton"):
        x, source, filter, _ = (
            tensor.to("meta").requires_grad_() for tensor in problem(2, 4, groups, (4, 5, 6), (3, 1, 3), batch=3)
        )
        with FlopCounterMode(display=False) as counter, assume_device("cuda"):
            out = nonnegative_deconvolution(x, source, filter, groups=groups, backend=backend)
            forward = counter.get_total_flops()
            out.sum().backward()
        counted[backend] = forward, counter.get_total_flops() - forward
    assert counted["triton"][0] == counted["plain"][0]
    # PyTorch counts the filter gradient of a grouped convolution as that of a dense one.
    assert counted["triton"][1] == (counted["plain"][1] if groups == 1 else 2 * forward)


FUNCTIONS = [
    "_finish_reconstruction",
    "_finish_update",
    "_finish_d_ratio",
    "_finish_d_images",
    "_finish_d_source",
    "_correlate_pairs",
]


def test_the_kernels_compile_for_every_gpu(tmp_path):
    """What the interpreter accepts need not compile. In processes of their own, since here Triton interprets.

    Every kernel size and most dtypes for one architecture, one of each for the others; the script does all for all.
    """
    script = str(Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py")
    selections = {
        "architectures": ([80, 86, 89, 100, 120], [3], ["float16"]),
        "cases": ([90], [3, 5], ["float32", "bfloat16"]),
    }
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    running = {}
    for name, (architectures, kernel_sizes, dtypes) in selections.items():
        chosen = ["--architectures", *architectures, "--kernel-sizes", *kernel_sizes, "--dtypes", *dtypes]
        command = [sys.executable, script, "--out", tmp_path / name, *chosen]
        running[name] = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
    for name, process in running.items():
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        architectures, *others = selections[name]
        expected = list(itertools.product([f"sm_{number}" for number in architectures], *others, FUNCTIONS))
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert [(r["architecture"], r["kernel_size"], r["dtype"], r["kernel"]) for r in rows] == expected
        assert all(0 < row["registers"] <= 255 for row in rows)
