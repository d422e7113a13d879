import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_deconver.ops import cpu_kernels, nonnegative_deconvolution
from nnunet_deconver.ops.nonnegative_deconvolution import cpu_update
from nnunet_deconver.ops.nonnegative_deconvolution.reference import nonnegative_deconvolution_reference

ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(not cpu_kernels.libraries(), reason="no C compiler when the package was installed")


def test_compiled_where_there_is_a_compiler():
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    assert cpu_kernels.libraries()


def test_functions_are_declared_as_in_c():
    """Undeclared, ctypes takes any arguments, and what happens to be in a register for the result of a void."""
    source = "".join(path.read_text() for path in Path(cpu_kernels.__file__).parent.glob("*.c"))
    types = {"void": None, "int": ctypes.c_int, "float": ctypes.c_float, "whole": ctypes.c_longlong}

    def type_of(argument):
        return ctypes.c_void_p if "*" in argument else types[argument.split()[0]]

    functions = {
        name: [types[result], *(type_of(argument) for argument in arguments.split(",") if argument != "void")]
        for result, name, arguments in re.findall(r"^(void|int) (\w+)\(([^)]*)\) \{", source, re.MULTILINE)
    }
    assert functions == cpu_kernels._FUNCTIONS


def operands(shape, kernel, ratio, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    channels = shape[1]
    x = torch.rand(shape, dtype=torch.float64)
    source = torch.rand(shape[0], channels * ratio, *shape[2:], dtype=torch.float64)
    filter = torch.rand(channels, ratio, *kernel, dtype=torch.float64)
    return [tensor.to(dtype) for tensor in (x, source, filter)]


def run(function, tensors, upstream, **kwargs):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*tensors, groups=tensors[0].shape[1], **kwargs)
    return [out, *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]


def distances(found, exact):
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]


@pytest.fixture
def poison():
    """Memory that nobody has written to yet is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


# Rows shorter than a kernel, as long as, and longer than, the voxels computed at once; more threads than planes.
CASES = [
    ((2, 16, 13), (5,), 4),
    ((1, 16, 1), (3,), 4),
    ((2, 32, 7, 9), (3, 3), 4),
    ((1, 16, 6, 5), (1, 7), 2),
    ((1, 16, 2, 2), (7, 7), 5),
    ((2, 16, 5, 6, 7), (3, 3, 3), 4),
    ((1, 16, 4, 9, 20), (1, 3, 5), 1),
    ((2, 16, 5, 4, 3), (5, 5, 5), 3),
    ((1, 32, 11, 3, 8), (7, 1, 3), 8),
    ((1, 48, 3, 4, 5), (1, 1, 1), 4),
]


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape, kernel, ratio", CASES)
def test_as_near_to_float64_as_the_plain_path(use_threads, lanes, poison, shape, kernel, ratio, dtype, threads):
    use_threads(threads)
    tensors = operands(shape, kernel, ratio, dtype)
    upstream = torch.randn(tensors[1].shape, dtype=torch.float64).to(dtype)
    exact = run(nonnegative_deconvolution_reference, [t.double() for t in tensors], upstream)
    plain = distances(run(nonnegative_deconvolution, tensors, upstream, backend="plain"), exact)
    found = run(nonnegative_deconvolution, tensors, upstream, backend="cpu")
    assert all(a.dtype == dtype for a in found)
    floor = 8 * torch.finfo(torch.float32).eps
    for distance, allowed in zip(distances(found, exact), plain, strict=True):
        assert distance <= 1.5 * allowed + floor


def composition(x, source_weight, source_bias, filter, out_weight, out_bias):
    """Eq. (6) without its first layer."""
    along = (slice(None), *[None] * (x.ndim - 2))
    source = torch.einsum("bc...,ec->be...", x, source_weight) + source_bias[along]
    source = nonnegative_deconvolution_reference(x, source.relu(), filter, groups=x.shape[1])
    if out_weight is None:
        return source
    return torch.einsum("be...,oe->bo...", source, out_weight) + out_bias[along]


@compiled
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape, kernel, ratio", CASES)
def test_projections_within_the_rows(use_threads, poison, shape, kernel, ratio, threads, projected):
    use_threads(threads)
    x, source, filter = operands(shape, kernel, ratio)
    channels, sources = x.shape[1], source.shape[1]
    tensors = [x, torch.randn(sources, channels), torch.randn(sources), filter]
    if projected:
        tensors += [torch.randn(12, sources), torch.randn(12)]
    tensors = [tensor.double() for tensor in tensors]

    def results(function, tensors):
        tensors = [tensor.detach().requires_grad_() for tensor in tensors]
        out = function(*tensors, *[None] * (6 - len(tensors)))
        return [out, *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]

    upstream = torch.randn(x.shape[0], 12 if projected else sources, *x.shape[2:], dtype=torch.float64)
    exact = results(composition, tensors)
    single = [tensor.float() for tensor in tensors]
    allowed = distances(results(composition, single), exact)
    found = results(lambda *t: cpu_update.projected_deconvolution(*t, eps=1e-8), single)
    assert found[0].shape == exact[0].shape
    for distance, other in zip(distances(found, exact), allowed, strict=True):
        # Gradients of a kernel of 1 are differences of nearly equal numbers: either's rounding may be the luckier.
        assert distance <= 1.5 * other + 4e-6


@compiled
def test_only_what_is_asked_for_has_a_gradient():
    x, _, filter = operands((1, 16, 5, 5), (3, 3), 2, torch.float32)
    weight = torch.rand(32, 16)
    bias = torch.zeros(32, requires_grad=True)
    out = cpu_update.projected_deconvolution(x, weight, bias, filter, None, None, eps=1e-8)
    out.sum().backward()
    assert bias.grad.abs().sum() > 0
    assert x.grad is weight.grad is filter.grad is None


@compiled
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_layouts(layout):
    tensors = operands((2, 16, 5, 6, 7), (3, 3, 3), 4, torch.float32)
    upstream = torch.randn(tensors[1].shape)
    expected = run(nonnegative_deconvolution, tensors, upstream, backend="plain")
    x, source, filter = tensors
    strided = [
        x.contiguous(memory_format=layout),
        source.repeat_interleave(2, -1)[..., ::2],
        filter.transpose(0, 1).contiguous().transpose(0, 1),
    ]
    for gradient in (upstream, upstream.contiguous(memory_format=torch.channels_last_3d)):
        for found, wanted in zip(
            run(nonnegative_deconvolution, strided, gradient, backend="cpu"), expected, strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@compiled
def test_zeros_and_the_largest_half():
    x, source, filter = operands((1, 16, 6, 6), (3, 3), 4, torch.float16)
    x[:, :, :3] = 0
    source[:, :, 3:] = 65504
    upstream = torch.ones(source.shape, dtype=torch.float64)
    for tensor in run(nonnegative_deconvolution, [x, source, filter], upstream, backend="cpu"):
        assert tensor.isfinite().all()


@compiled
def test_output_saturates_in_half_precision():
    # Of one pointwise source the update is x / filter.
    x, source, filter = (torch.full((1, 16, 3, 3), value, dtype=torch.float16) for value in (65504, 1, 0.5))
    found = nonnegative_deconvolution(x, source, filter[0, :, None, :1, :1], groups=16, backend="cpu")
    assert (found == 65504).all()


@compiled
def test_empty_batch():
    tensors = operands((0, 16, 6, 6), (3, 3), 4, torch.float32)
    out, *gradients = run(nonnegative_deconvolution, tensors, torch.zeros(0, 64, 6, 6), backend="cpu")
    assert out.shape == (0, 64, 6, 6)
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in tensors]


@compiled
def test_the_same_bits_each_time():
    tensors = operands((2, 16, 9, 8, 7), (3, 3, 3), 4, torch.float32)
    upstream = torch.randn(tensors[1].shape)
    once, again = (run(nonnegative_deconvolution, tensors, upstream, backend="cpu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@compiled
def test_any_number_of_threads(use_threads):
    tensors = operands((1, 16, 3, 2, 7), (3, 3, 3), 4, torch.float32)
    upstream = torch.randn(tensors[1].shape)
    expected = run(nonnegative_deconvolution, tensors, upstream, backend="plain")
    for threads in (1, 2, 5, 16):  # the last more than there are rows
        use_threads(threads)
        for found, wanted in zip(
            run(nonnegative_deconvolution, tensors, upstream, backend="cpu"), expected, strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@compiled
def test_taken_on_a_cpu_where_it_can_be(taken):
    x, source, filter = operands((1, 16, 6, 6), (3, 3), 2, torch.float32)
    nonnegative_deconvolution(x, source, filter, groups=16)
    nonnegative_deconvolution(x, source, filter, groups=16, iterations=2)
    nonnegative_deconvolution(x, source, filter.repeat(1, 2, 1, 1), groups=8)
    nonnegative_deconvolution(x.double(), source.double(), filter.double(), groups=16)
    nonnegative_deconvolution(x[:, :3], source[:, :6], filter[:3], groups=3)
    assert taken == ["cpu", "plain", "plain", "plain", "plain"]


@compiled
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_plain_where_nothing_is_computed_or_operations_are_watched(taken):
    tensors = operands((1, 16, 6, 6), (3, 3), 2, torch.float32)
    with FlopCounterMode(display=False) as counter:
        nonnegative_deconvolution(*tensors, groups=16)
    assert counter.get_total_flops() == 3 * 2 * 16 * 2 * 9 * 36
    with FakeTensorMode(allow_non_fake_inputs=True):
        nonnegative_deconvolution(*tensors, groups=16)
    nonnegative_deconvolution(*[tensor.to("meta") for tensor in tensors], groups=16)
    torch.jit.trace(lambda *t: nonnegative_deconvolution(*t, groups=16), tensors, check_trace=False)
    assert set(taken) == {"plain"}


@compiled
def test_without_compiled_kernels(monkeypatch, taken):
    monkeypatch.setattr(cpu_kernels, "libraries", dict)
    tensors = operands((1, 16, 6, 6), (3, 3), 2, torch.float32)
    nonnegative_deconvolution(*tensors, groups=16)
    assert taken == ["plain"]
    with pytest.raises(ValueError, match="C compiler"):
        nonnegative_deconvolution(*tensors, groups=16, backend="cpu")


@compiled
def test_kernels_compiled_for_another_version_are_not_called(monkeypatch):
    find = cpu_kernels.libraries.__wrapped__
    assert find()
    monkeypatch.setattr(cpu_kernels, "_INTERFACE", 0)
    assert not find()


@compiled
@pytest.mark.parametrize(
    "change, message",
    [
        ({"iterations": 2}, "1 update"),
        ({"groups": 8}, "group per channel"),
        ({"dtype": torch.float64}, "float32"),
        ({"channels": 3}, "3 is not a multiple"),
    ],
)
def test_forced_where_it_cannot_run(change, message):
    channels = change.pop("channels", 16)
    tensors = operands((1, channels, 6, 6), (3, 3), 2, change.pop("dtype", torch.float32))
    arguments = {"groups": channels} | change
    if arguments["groups"] == 8:
        tensors[2] = tensors[2].repeat(1, 2, 1, 1)
    with pytest.raises(ValueError, match=f"backend 'cpu' cannot compute this: .*{message}"):
        nonnegative_deconvolution(*tensors, backend="cpu", **arguments)


@compiled
def test_no_second_derivative():
    tensors = [tensor.requires_grad_() for tensor in operands((1, 16, 6, 6), (3, 3), 2, torch.float32)]
    out = nonnegative_deconvolution(*tensors, groups=16, backend="cpu")
    (gradient,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_installs_without_a_compiler(tmp_path):
    build = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        tmp_path / "lib",
        "--build-temp",
        tmp_path / "temp",
    ]
    done = subprocess.run(build, cwd=ROOT, env={"CC": "false", "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))
