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
