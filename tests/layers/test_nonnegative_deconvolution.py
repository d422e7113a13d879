import pytest
import torch

from nnunet_deconver.layers import NonnegativeDeconvolution
from nnunet_deconver.ops import nonnegative_deconvolution_reference


@pytest.mark.parametrize(
    "kernel, groups, ratio",
    [((3,), None, 4), ((3, 5), 2, 1), ((1, 3, 3), None, 2), ((3, 3, 3), 1, 0.5)],
    ids=str,
)
def test_the_layer_is_the_operation_on_its_rectified_projection(kernel, groups, ratio):
    torch.manual_seed(0)
    layer = NonnegativeDeconvolution(4, kernel, ratio, groups, iterations=2).double()
    x = torch.rand(2, 4, *[6] * len(kernel), dtype=torch.float64)
    expected = nonnegative_deconvolution_reference(
        x, layer.source(x).relu(), layer.filter.relu(), groups=groups or 4, iterations=2
    )
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == (2, round(4 * ratio), *x.shape[2:])
    assert (layer(x) >= 0).all()


def test_parameters():
    """A filter of C x E/G x k and a projection with bias."""
    layer = NonnegativeDeconvolution(8, (3, 3, 3), source_ratio=4, groups=2)
    assert layer.filter.shape == (8, 16, 3, 3, 3)
    assert sum(p.numel() for p in layer.parameters()) == 8 * 16 * 27 + 8 * 32 + 32


def test_the_filter_starts_kaiming_uniform():
    """Uniform with bound 1 / sqrt(fan in) for a = sqrt(5)."""
    torch.manual_seed(0)
    layer = NonnegativeDeconvolution(32, (3, 3, 3), source_ratio=4)
    bound = (4 * 27) ** -0.5
    assert layer.filter.abs().max() <= bound
    assert layer.filter.abs().max() > 0.99 * bound
    assert layer.filter.mean().abs() < 0.05 * bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 65504.0])
def test_autocast_is_finite(dtype, scale):
    torch.manual_seed(0)
    layer = NonnegativeDeconvolution(8, (3, 3, 3))
    layer.source.weight.data.abs_()  # all the same sign: the projection of large inputs overflows float16
    x = (torch.rand(2, 8, 6, 6, 6) * scale).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    assert out.dtype == dtype
    assert out.isfinite().all()
    out.float().mean().backward()
    assert x.grad.isfinite().all()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)], ids=str)
def test_autocast_is_close_to_float64(dtype, tolerance):
    torch.manual_seed(0)
    layer = NonnegativeDeconvolution(8, (3, 3))
    x = torch.rand(2, 8, 12, 12)
    expected = layer.double()(x.double())
    with torch.autocast("cpu", dtype=dtype):
        out = layer.float()(x)
    error = (out.double() - expected).norm() / expected.norm()
    assert error < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_on_the_gpu(dtype):
    torch.manual_seed(0)
    layer = NonnegativeDeconvolution(8, (3, 3, 3)).cuda()
    x = torch.rand(2, 8, 16, 16, 16, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=dtype):
        out = layer(x)
    out.float().mean().backward()
    expected = layer.double()(x.double())
    assert (out.double() - expected).norm() / expected.norm() < 6e-2
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel_size": (3, 4)}, "odd"),
        ({"kernel_size": 3}, "one entry per spatial axis"),
        ({"kernel_size": (3, 3, 3, 3)}, "1 to 3"),
        ({"groups": 3}, "groups = 3"),
        ({"groups": -1}, "groups = -1"),
        ({"source_ratio": 0.3}, "source_ratio = 0.3"),
        ({"source_ratio": 0}, "source_ratio = 0"),
        ({"iterations": 0}, "iterations"),
        ({"eps": -1.0}, "eps"),
    ],
    ids=str,
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        NonnegativeDeconvolution(**({"channels": 8, "kernel_size": (3, 3)} | arguments))
