import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_deconver.ops import cpu_kernels
from nnunet_deconver.ops.pointwise import add_gradients, multiply, pointwise

compiled = pytest.mark.skipif(not cpu_kernels.libraries(), reason="no C compiler when the package was installed")
# Fewer rows than are computed together, as many, and some left over; more channels than are computed together.
SHAPES = [(0, 5, 16), (1, 1, 8), (2, 5, 3), (17, 7, 24), (64, 32, 128), (130, 130, 48)]


def operands(count, inputs, outputs, dtype):
    torch.manual_seed(count)
    return [
        torch.randn(shape, dtype=torch.float64).to(dtype) for shape in ((count, inputs), (inputs, outputs), (outputs,))
    ]


def results(function, tensors):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*tensors)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, tensors, upstream)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("count, inputs, outputs", SHAPES)
def test_is_a_matrix_product(lanes_or_none, use_threads, count, inputs, outputs, rectify, dtype, threads):
    tensors = operands(count, inputs, outputs, dtype)

    def product(rows, matrix, bias):
        out = rows @ matrix + bias
        return out.relu() if rectify else out

    use_threads(threads)
    found = results(lambda *t: pointwise(*t, rectify=rectify), tensors)
    for a, b in zip(found, results(product, [t.double() for t in tensors]), strict=True):
        torch.testing.assert_close(a, b.to(dtype), rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("transposed", [False, True])
def test_without_bias_from_any_layout_into_what_is_there(lanes_or_none, transposed):
    rows, matrix, bias = operands(17, 24, 16, torch.float32)
    if transposed:
        rows, matrix = (tensor.t().contiguous().t() for tensor in (rows, matrix))
    torch.testing.assert_close(pointwise(rows, matrix), rows @ matrix)
    (gradient,) = torch.autograd.grad(pointwise(rows, matrix.requires_grad_()).sum(), matrix)
    torch.testing.assert_close(gradient, rows.sum(0)[:, None].expand(24, 16))
    matrix = matrix.detach()
    out = torch.ones(17, 16)
    assert multiply(rows, matrix, bias, out=out) is out
    torch.testing.assert_close(out, rows @ matrix + bias)
    multiply(rows, matrix, out=out, add=True)
    torch.testing.assert_close(out, 2 * rows @ matrix + bias)
    multiply(rows, matrix, bias, out=out, rectify=True)
    torch.testing.assert_close(out, (rows @ matrix + bias).relu())


def test_gradients_are_added(lanes_or_none):
    rows, _, _ = operands(130, 7, 16, torch.float32)
    gradient = torch.randn(130, 16)
    matrix, bias = torch.ones(7, 16), torch.ones(16)
    add_gradients(rows, gradient, matrix, bias)
    torch.testing.assert_close(matrix, 1 + rows.t() @ gradient)
    torch.testing.assert_close(bias, 1 + gradient.sum(0))


def test_only_what_is_asked_for_has_a_gradient(lanes_or_none):
    for wanted in range(3):
        tensors = operands(6, 8, 16, torch.float32)
        tensors[wanted].requires_grad_()
        pointwise(*tensors).sum().backward()
        assert [tensor.grad is not None for tensor in tensors] == [i == wanted for i in range(3)]


def test_nan_stays(lanes_or_none):
    rows, matrix, bias = operands(6, 8, 16, torch.float32)
    rows[3, 2] = torch.nan
    assert pointwise(rows, matrix, bias, rectify=True).isnan().any(1).tolist() == [False] * 3 + [True] + [False] * 2


def test_second_derivatives(lanes_or_none):
    tensors = [tensor.requires_grad_() for tensor in operands(6, 8, 16, torch.float32)]

    def penalty(function):
        gradients = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), tensors)

    found = penalty(lambda *t: pointwise(*t, rectify=True))
    for a, b in zip(found, penalty(lambda rows, matrix, bias: (rows @ matrix + bias).relu()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-2)


@compiled
def test_pytorch_where_nothing_is_computed_operations_are_watched_or_under_autocast(monkeypatch):
    tensors = operands(6, 8, 16, torch.float32)
    monkeypatch.setattr(cpu_kernels, "call", lambda *_: pytest.fail("a kernel was called"))
    with FlopCounterMode(display=False) as counter:
        pointwise(*tensors)
    assert counter.get_total_flops() == 2 * 6 * 8 * 16
    with FakeTensorMode(allow_non_fake_inputs=True):
        pointwise(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert pointwise(*tensors).dtype == torch.bfloat16
    torch.compile(pointwise, backend="eager", fullgraph=True)(*tensors)
