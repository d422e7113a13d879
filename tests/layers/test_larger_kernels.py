import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_deconver.layers import DeconverBlock, NonnegativeDeconvolution, enlarge_kernels

KERNELS = [((3, 3), (5, 5)), ((3, 3, 3), (5, 5, 5)), ((1, 3, 3), (1, 5, 5)), ((1, 3, 5), (3, 7, 5))]


@pytest.mark.parametrize("small, large", KERNELS)
def test_a_block_with_padded_filters_computes_the_same(small, large):
    torch.manual_seed(0)
    block, larger = DeconverBlock(4, small).double(), DeconverBlock(4, large).double()
    larger.load_state_dict(enlarge_kernels(block.state_dict(), larger))
    x = torch.randn(2, 4, *(5, 6, 7)[: len(small)], dtype=torch.float64)
    torch.testing.assert_close(larger(x), block(x), rtol=1e-8, atol=1e-10)


def test_in_float32_not_a_bit_differs_by_the_padding():
    torch.manual_seed(0)
    layer, larger = NonnegativeDeconvolution(4, (3, 3)), NonnegativeDeconvolution(4, (5, 5))
    larger.load_state_dict(enlarge_kernels(layer.state_dict(), larger))
    x = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(larger(x), layer(x), rtol=1e-6, atol=1e-7)


def test_padded_filters_learn():
    """Rectified, what starts at 0 would stay there for ever."""
    torch.manual_seed(0)
    layer = NonnegativeDeconvolution(4, (5, 5))
    layer.load_state_dict(enlarge_kernels(NonnegativeDeconvolution(4, (3, 3)).state_dict(), layer))
    nn.init.ones_(layer.source.bias)  # no source is 0 everywhere
    layer(torch.rand(2, 4, 8, 8)).square().sum().backward()
    ring = torch.ones(5, 5, dtype=torch.bool)
    ring[1:4, 1:4] = False
    assert layer.filter.grad[..., ring].all()


def test_interpolated_kernels_by_hand():
    """With three values on five places, the ones between are at 1.5 / 5 and 2.5 / 5 of the extent."""
    small, large = nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 5)
    with torch.no_grad():
        small.weight.copy_(torch.tensor([[[1.0, 2.0, 5.0]]]))
    weights = enlarge_kernels(small.state_dict(), large, interpolate=True)
    torch.testing.assert_close(weights["weight"], torch.tensor([[[1.0, 1.4, 2.0, 3.8, 5.0]]]))
    assert torch.equal(weights["bias"], small.bias)


@pytest.mark.parametrize("interpolate", [True, False])
def test_mednext_of_monai(interpolate):
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    small, large = (
        nets.MedNeXt(3, 4, 1, 2, kernel_size=size, deep_supervision=True, use_residual_connection=True).eval()
        for size in (3, 5)
    )
    weights = enlarge_kernels(small.state_dict(), large, interpolate=interpolate)
    large.load_state_dict(weights)
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        same = torch.allclose(large(x)[0], small(x)[0], rtol=1e-4, atol=1e-4)
    assert same != interpolate
    changed = 0
    for key, weight in small.state_dict().items():
        if weight.shape == weights[key].shape:
            assert torch.equal(weight, weights[key]), key
        elif interpolate:
            changed += 1
            assert torch.equal(F.interpolate(weight, size=(5, 5, 5), mode="trilinear"), weights[key]), key
    assert changed or not interpolate


@pytest.mark.parametrize(
    "small, large, message",
    [
        (nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, bias=False), "only one of the networks has bias"),
        (nn.Conv2d(1, 1, 3), nn.Conv2d(1, 2, 5), r"weight has the shapes \(1, 1, 3, 3\) and \(2, 1, 5, 5\)"),
        (nn.Conv2d(1, 1, 3), nn.Conv3d(1, 1, 5), r"weight has the shapes"),
        (nn.Linear(3, 3), nn.Linear(3, 5), r"weight has the shapes \(3, 3\) and \(5, 3\)"),
        (nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 4), r"weight has kernels of \(3, 3\), which cannot become \(4, 4\)"),
        (
            nn.Conv2d(1, 1, 5),
            nn.Conv2d(1, 1, 3),
            r"which cannot become \(3, 3\): extents grow by even numbers, or stay",
        ),
    ],
    ids=str,
)
def test_networks_that_differ_otherwise(small, large, message):
    with pytest.raises(ValueError, match=message):
        enlarge_kernels(small.state_dict(), large)
