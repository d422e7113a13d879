import pytest
import torch
import torch.nn.functional as F

from nnunet_deconver.layers.instance_norm import InstanceNorm
from nnunet_deconver.ops import assume_device, fast_layout


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 5, 4), (3, 2, 4, 3, 5), (0, 3, 4, 4)])
@pytest.mark.parametrize("layout", [fast_layout, torch.Tensor.contiguous])
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # by different paths
def test_is_pytorchs(shape, layout, device):
    torch.manual_seed(0)
    x = layout(3 * torch.randn(shape, dtype=torch.float64) + 5).requires_grad_()
    gradient = torch.randn(shape, dtype=torch.float64)
    expected = F.instance_norm(x)
    with assume_device(device):
        found = InstanceNorm()(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, gradient)[0] for out in (found, expected)))


def test_the_layout_stays():
    x = fast_layout(torch.randn(2, 3, 4, 5, 6))
    assert InstanceNorm()(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_single_voxel_says_what_is_wrong():
    with pytest.raises(ValueError, match="more than 1"):
        InstanceNorm()(torch.randn(2, 3, 1, 1))
