import pytest
import torch

from nnunet_deconver.ops import nonnegative_deconvolution
from nnunet_deconver.ops.nonnegative_deconvolution import backends
from nnunet_deconver.ops.nonnegative_deconvolution.reference import nonnegative_deconvolution_reference


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


CASES = [
    ((2, 8, 13), (5,), 4),
    ((2, 6, 7, 9), (3, 3), 4),
    ((1, 16, 6, 5), (1, 7), 2),
    ((2, 8, 5, 6, 7), (3, 3, 3), 4),
    ((1, 3, 4, 9, 6), (1, 3, 5), 1),
    ((2, 1, 5, 4, 3), (5, 5, 5), 3),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape, kernel, ratio", CASES)
def test_as_near_to_float64_as_the_plain_path(shape, kernel, ratio, dtype):
    tensors = operands(shape, kernel, ratio, dtype)
    upstream = torch.randn(tensors[1].shape, dtype=torch.float64).to(dtype)
    exact = run(nonnegative_deconvolution_reference, [t.double() for t in tensors], upstream)
    plain = distances(run(nonnegative_deconvolution, tensors, upstream, backend="plain"), exact)
    found = run(nonnegative_deconvolution, tensors, upstream, backend="depthwise")
    assert all(a.dtype == dtype for a in found)
    floor = 8 * torch.finfo(torch.float32).eps
    for distance, allowed in zip(distances(found, exact), plain, strict=True):
        assert distance <= 1.5 * allowed + floor


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_layouts(layout):
    x, source, filter = operands((2, 8, 5, 6, 7), (3, 3, 3), 4, torch.float32)
    expected = nonnegative_deconvolution(x, source, filter, groups=8, backend="plain")
    found = nonnegative_deconvolution(
        x.contiguous(memory_format=layout), source.flip(2).flip(2)[:, :], filter, groups=8, backend="depthwise"
    )
    torch.testing.assert_close(found, expected)


def test_zeros_and_the_largest_half():
    x, source, filter = operands((1, 4, 6, 6), (3, 3), 4, torch.float16)
    x[:, :, :3] = 0
    source[:, :, 3:] = 65504
    upstream = torch.ones(source.shape, dtype=torch.float64)
    for tensor in run(nonnegative_deconvolution, [x, source, filter], upstream, backend="depthwise"):
        assert tensor.isfinite().all()


def test_output_saturates_in_half_precision():
    # Of one pointwise source the update is x / filter.
    x, source, filter = (torch.full((1, 2, 3, 3), value, dtype=torch.float16) for value in (65504, 1, 0.5))
    found = nonnegative_deconvolution(x, source, filter[0, :, None, :1, :1], groups=2, backend="depthwise")
    assert (found == 65504).all()


def test_empty_batch():
    x, source, filter = operands((0, 4, 6, 6), (3, 3), 4, torch.float32)
    assert nonnegative_deconvolution(x, source, filter, groups=4).shape == (0, 16, 6, 6)


def test_taken_on_a_cpu_where_it_can_be(monkeypatch):
    taken = []

    def recorded(name):
        run = backends.BACKENDS[name].run
        return backends.BACKENDS[name]._replace(run=lambda *a, **k: taken.append(name) or run(*a, **k))

    monkeypatch.setattr(backends, "BACKENDS", {name: recorded(name) for name in backends.BACKENDS})
    x, source, filter = operands((1, 4, 6, 6), (3, 3), 2, torch.float32)
    nonnegative_deconvolution(x, source, filter, groups=4)
    nonnegative_deconvolution(x, source, filter, groups=4, iterations=2)
    nonnegative_deconvolution(x, source, filter.repeat(1, 2, 1, 1), groups=2)
    nonnegative_deconvolution(x.double(), source.double(), filter.double(), groups=4)
    assert taken == ["depthwise", "plain", "plain", "plain"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"iterations": 2}, "1 update"),
        ({"groups": 2}, "group per channel"),
        ({"dtype": torch.float64}, "float32"),
    ],
)
def test_forced_where_it_cannot_run(change, message):
    x, source, filter = operands((1, 4, 6, 6), (3, 3), 2, change.pop("dtype", torch.float32))
    arguments = {"groups": 4} | change
    if arguments["groups"] == 2:
        filter = filter.repeat(1, 2, 1, 1)
    with pytest.raises(ValueError, match=f"backend 'depthwise' cannot compute this: .*{message}"):
        nonnegative_deconvolution(x, source, filter, backend="depthwise", **arguments)


def test_no_second_derivative():
    tensors = [tensor.requires_grad_() for tensor in operands((1, 4, 6, 6), (3, 3), 2, torch.float32)]
    out = nonnegative_deconvolution(*tensors, groups=4, backend="depthwise")
    (gradient,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_merged_channels_divide_the_channels():
    """The filter's gradient takes the diagonals of larger groups, whose size follows the channels."""
    for channels in (1, 2, 3, 5, 8, 12, 16):
        tensors = operands((1, channels, 5, 5), (3, 3), 2, torch.float32)
        upstream = torch.ones(tensors[1].shape, dtype=torch.float64)
        exact = run(nonnegative_deconvolution_reference, [t.double() for t in tensors], upstream)
        assert distances(run(nonnegative_deconvolution, tensors, upstream, backend="depthwise"), exact)[3] < 1e-5
