import pytest
import torch
import torch.nn.functional as F

from nnunet_deconver.layers.instance_norm import InstanceNorm
from nnunet_deconver.ops import assume_device, fast_layout


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 5, 4), (3, 2, 4, 3, 5), (0, 3, 4, 4)])
@pytest.mark.parametrize("layout", [fast_layout, torch.Tensor.contiguous])
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # by different paths
@pytest.mark.parametrize("affine", [False, True])
def test_is_pytorchs(shape, layout, device, affine):
    torch.manual_seed(0)
    norm = InstanceNorm(shape[1] if affine else None).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = layout(3 * torch.randn(shape, dtype=torch.float64) + 5).requires_grad_()
    gradient = torch.randn(shape, dtype=torch.float64)
    shape = (-1, *[1] * (x.ndim - 2))
    # PyTorch's own, with parameters, fails without images.
    expected = F.instance_norm(x) if len(x) else x
    expected = expected * norm.weight.view(shape) + norm.bias.view(shape) if affine else expected
    with assume_device(device):
        found = norm(x)
    torch.testing.assert_close(found, expected)
    inputs = [x, *norm.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(out, inputs, gradient) for out in (found, expected)))


def test_second_derivatives():
    torch.manual_seed(0)
    norm = InstanceNorm(3).double()
    x = fast_layout(torch.randn(2, 3, 4, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


def test_parameters_start_as_no_scale_and_no_shift():
    norm = InstanceNorm(4)
    assert [parameter.tolist() for parameter in norm.parameters()] == [[1] * 4, [0] * 4]
    assert not list(InstanceNorm().parameters())


def test_the_layout_stays():
    x = fast_layout(torch.randn(2, 3, 4, 5, 6))
    assert InstanceNorm()(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_single_voxel_says_what_is_wrong():
    with pytest.raises(ValueError, match="more than 1"):
        InstanceNorm()(torch.randn(2, 3, 1, 1))


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 5, 4), (1, 2, 4, 3, 5)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_in_parts(shape, affine, size):
    torch.manual_seed(0)
    norm = InstanceNorm(shape[1] if affine else None).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = (3 * torch.randn(shape, dtype=torch.float64) + 5).requires_grad_()
    parts = x.split(size, 2)
    mean, variance = norm.statistics(parts)
    found = torch.cat([norm.of_part(part, mean, variance) for part in parts], 2)
    expected = norm(x)
    torch.testing.assert_close(found, expected)
    gradient, inputs = torch.randn(shape, dtype=torch.float64), [x, *norm.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(out, inputs, gradient) for out in (found, expected)))


def test_parts_in_half_precision_have_statistics_in_float32():
    """float16 has neither the mean's digits nor the variance's range."""
    x = (300 * torch.randn(1, 2, 64, 16) + 1000).half()
    norm = InstanceNorm()
    mean, variance = norm.statistics(x.split(5, 2))
    assert mean.dtype == variance.dtype == torch.float32
    assert (variance > torch.finfo(torch.float16).max).all()
    found = torch.cat([norm.of_part(part, mean, variance) for part in x.split(5, 2)], 2)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), norm(x.double()), rtol=1e-3, atol=1e-3)
