"""Without images, or with images without voxels, every layer does what PyTorch's convolutions do."""

import pytest
import torch

from nnunet_deconver import layers
from nnunet_deconver.layers.deconver_block import PointwiseMLP
from nnunet_deconver.layers.instance_norm import InstanceNorm

# Of 16 channels; for strides that upsamplings alone take.
LAYERS = {
    "ndc": lambda stride: layers.NonnegativeDeconvolution(16, (3,) * len(stride)),
    "ndc-groups": lambda stride: layers.NonnegativeDeconvolution(16, (3,) * len(stride), groups=4),
    "ndc-iterations": lambda stride: layers.NonnegativeDeconvolution(16, (3,) * len(stride), iterations=2),
    "mixer": lambda stride: layers.DeconvMixer(16, (3,) * len(stride)),
    "mlp": lambda stride: PointwiseMLP(16, 64, len(stride)),
    "block": lambda stride: layers.DeconverBlock(16, (3,) * len(stride)),
    "nerdm": lambda stride: layers.NeRDm(16, 3, len(stride)),
    "nerdc": lambda stride: layers.NeRDc(16, 3, len(stride)),
    "linear": lambda stride: layers.LinearUpsampling(16, 8, stride),
    "dysample": lambda stride: layers.DySample(16, stride, dynamic_scope=True),
    "dysample-pl": lambda stride: layers.DySample(16, stride, style="pl"),
    "dysample-projected": lambda stride: layers.DySampleUpsampling(16, 8, stride),
    "dtc": lambda stride: layers.DeformableTransposedConvolution(16, 8, stride),
    "dtc-on-linear": lambda stride: layers.DeformableTransposedConvolution(16, 8, stride, base="linear"),
    "dtc-on-dysample": lambda stride: layers.DeformableTransposedConvolution(16, 8, stride, base="dysample"),
}
EACH = pytest.mark.parametrize("layer", LAYERS)


@pytest.mark.parametrize("stride", [(1, 2), (1, 2, 2)], ids=["2d", "3d"])
@EACH
def test_no_images_have_an_output_and_zero_gradients(layer, stride, path, check_empty_batch):
    layer = LAYERS[layer](stride)
    size = (4, 6, 8)[: len(stride)]
    shape = layer(torch.zeros(1, 16, *size)).shape
    check_empty_batch(layer, (0, 16, *size), [(0, *shape[1:])])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch", [0, 2])
@EACH
def test_images_without_voxels_are_refused(layer, batch, axis, path):
    size = [4, 6, 8]
    size[axis] = 0
    with pytest.raises((ValueError, RuntimeError), match=r"voxel|Kernel size can't be greater|Only zero batch"):
        LAYERS[layer]((1, 2, 2))(torch.zeros(batch, 16, *size))


def test_normalisation_takes_images_without_voxels(path):
    """As PyTorch's does."""
    x = torch.zeros(2, 16, 0, 4, requires_grad=True)
    out = InstanceNorm()(x)
    out.sum().backward()
    assert out.shape == x.grad.shape == x.shape
