"""Any backbone x any upsampling x any head: one contract for all."""

import itertools

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures import unet
from torch import nn

from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
from nnunet_deconver.networks import Deconver, MedNeXt, PlainConvUNet, ResidualEncoderUNet

BACKBONES = {"plain": PlainConvUNet, "residual": ResidualEncoderUNet, "deconver": Deconver, "mednext": MedNeXt}
NNUNETS = ("plain", "residual")
UPSAMPLING_ENTRIES = {
    "transposed": None,
    "linear": {"name": "linear"},
    "dysample": {"name": "dysample", "dynamic_scope": True},
    "dtc": {"name": "dtc"},
    "dtc-on-linear": {"name": "dtc", "base": "linear", "receptive_field": 4},
    "dtc-on-dysample": {"name": "dtc", "base": "dysample", "receptive_field": "inf"},
}
HEAD_ENTRIES = {"conv": None, "nerdm": {"name": "nerdm"}, "nerdc": {"name": "nerdc"}, "norm": {"name": "norm"}}
# conv_op, kernels, strides, input size
GEOMETRIES = {
    "2d": (nn.Conv2d, [[3, 3]] * 3, [[1, 1], [2, 2], [2, 2]], (8, 12)),
    "3d": (nn.Conv3d, [[3, 3, 3]] * 3, [[1, 1, 1], [2, 2, 2], [2, 2, 2]], (8, 8, 8)),
    "anisotropic": (nn.Conv3d, [[1, 3, 3], [1, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]], (4, 8, 12)),
}
EVERYTHING = list(itertools.product(BACKBONES, UPSAMPLING_ENTRIES, HEAD_ENTRIES))
# One axis at most is not as the backbone has it.
ONE_AXIS = [axes for axes in itertools.product(UPSAMPLING_ENTRIES, HEAD_ENTRIES) if {"transposed", "conv"} & set(axes)]


def build(backbone, upsampling=None, head=None, geometry="3d", deep_supervision=False, *, inputs=1, classes=3):
    conv_op, kernels, strides, _ = GEOMETRIES[geometry]
    kwargs = {
        "input_channels": inputs,
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": conv_op,
        "kernel_sizes": kernels,
        "strides": strides,
        "num_classes": classes,
        "deep_supervision": deep_supervision,
    }
    if backbone in NNUNETS:
        norm = nn.InstanceNorm2d if conv_op is nn.Conv2d else nn.InstanceNorm3d
        blocks = "n_conv_per_stage" if backbone == "plain" else "n_blocks_per_stage"
        kwargs |= {blocks: 1, "n_conv_per_stage_decoder": 1, "conv_bias": True}
        kwargs |= {"norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
        kwargs |= {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    network = BACKBONES[backbone](**kwargs, upsampling=upsampling, segmentation_head=head)
    network.apply(network.initialize)
    return network


def image(geometry, *, batch=2, inputs=1):
    return torch.randn(batch, inputs, *GEOMETRIES[geometry][3])


@pytest.mark.parametrize("geometry, deep_supervision", [*itertools.product(GEOMETRIES, [True]), ("2d", False)])
@pytest.mark.parametrize("backbone, upsampling, head", EVERYTHING)
def test_contract(backbone, upsampling, head, geometry, deep_supervision):
    torch.manual_seed(0)
    arguments = (backbone, UPSAMPLING_ENTRIES[upsampling], HEAD_ENTRIES[head], geometry, deep_supervision)
    network = build(*arguments)
    assert type(network).__name__ in repr(network)
    x = image(geometry)

    outputs = network(x)
    expected = build(backbone, None, None, geometry, deep_supervision)(x)
    outputs, expected = (o if deep_supervision else [o] for o in (outputs, expected))
    assert [o.shape for o in outputs] == [e.shape for e in expected]
    sum(o.square().mean() for o in outputs).backward()
    for name, parameter in network.named_parameters():
        unused = not deep_supervision and name.startswith("decoder.seg_layers.0.")
        assert unused or (parameter.grad is not None and parameter.grad.isfinite().all()), name

    network.zero_grad()
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            halves = network(x)
        halves = halves if deep_supervision else [halves]
        assert all(o.isfinite().all() for o in halves)
        sum(o.float().square().mean() for o in halves).backward()
        for name, parameter in network.named_parameters():
            # Not nnU-Net's own convolutions: on a CPU and so few voxels, the gradients of their weights in half
            # precision are now and then not finite in nnU-Net's network as well.
            ours = backbone not in NNUNETS or "transpconvs" in name or "seg_layers" in name
            assert not ours or parameter.grad is None or parameter.grad.isfinite().all(), name

    network.eval()
    network.decoder.deep_supervision = False
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(x), rtol=0, atol=0)
        other = build(*arguments[:-1], deep_supervision=False).eval()
        other.load_state_dict(network.state_dict())
        torch.testing.assert_close(other(x), network(x))


@pytest.mark.parametrize("upsampling, head", ONE_AXIS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_images_have_an_output_and_zero_gradients(backbone, upsampling, head, path, check_empty_batch):
    network = build(backbone, UPSAMPLING_ENTRIES[upsampling], HEAD_ENTRIES[head], "anisotropic", True)
    check_empty_batch(network, (0, 1, 4, 8, 12), [(0, 3, 4, 8, 12), (0, 3, 4, 4, 6)])


@pytest.mark.parametrize("entry", [None, {"name": "transposed"}], ids=["none", "by-name"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("backbone, stock", [("plain", unet.PlainConvUNet), ("residual", unet.ResidualEncoderUNet)])
def test_without_axes_they_are_nnunets_own(backbone, stock, geometry, entry):
    """Same keys, same function: stock checkpoints load."""
    ours = build(backbone, entry, None if entry is None else {"name": "conv"}, geometry, True)
    conv_op, kernels, strides, size = GEOMETRIES[geometry]
    blocks = "n_conv_per_stage" if backbone == "plain" else "n_blocks_per_stage"
    norm = nn.InstanceNorm2d if conv_op is nn.Conv2d else nn.InstanceNorm3d
    theirs = stock(
        1,
        3,
        [4, 8, 16],
        conv_op,
        kernels,
        strides,
        num_classes=3,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **{blocks: 1},
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = image(geometry)
    for mine, their in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(mine, their, rtol=0, atol=0)
    assert ours.compute_conv_feature_map_size(size) == theirs.compute_conv_feature_map_size(size)


@pytest.mark.parametrize("backbone", NNUNETS)
def test_initialize_is_nnunets_but_for_the_axes(backbone):
    """He initialisation of the convolutions, zero offsets, heads that start as the plain classifier."""
    torch.manual_seed(0)
    network = build(backbone, {"name": "dtc"}, {"name": "nerdc"})
    transposed = network.decoder.transpconvs[0].base.weight
    fan_in = transposed.shape[1] * transposed[0, 0].numel()
    assert transposed.std().item() == pytest.approx((2 / (1 + 1e-4) / fan_in) ** 0.5, rel=0.1)
    for upsampling in network.decoder.transpconvs:
        assert not upsampling.offset.weight.any() and not upsampling.offset.bias.any()
    for head in network.decoder.seg_layers:
        assert not head.mlp[-1].weight.any()
        assert not head.classifier.bias.any()
    residual_gammas = [m.conv2.norm.weight for m in network.modules() if hasattr(m, "conv2")]
    assert all(not gamma.any() for gamma in residual_gammas)
    assert bool(residual_gammas) == (backbone == "residual")


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_feature_map_size_counts_what_the_axes_add(backbone, deep_supervision):
    """DTC: a 1x1 convolution below and 2g channels above per stage; NeRDm: the normalised features."""
    size = GEOMETRIES["anisotropic"][3]
    plain = build(backbone, geometry="anisotropic", deep_supervision=deep_supervision)
    dtc = build(backbone, {"name": "dtc"}, geometry="anisotropic", deep_supervision=deep_supervision)
    voxels = [4 * 8 * 12, 4 * 4 * 6, 2 * 2 * 3]
    added = (4 * voxels[1] + 6 * voxels[0]) + (8 * voxels[2] + 6 * voxels[1])
    if backbone == "mednext":
        # DTC's base replaces its block: depthwise, expansion, residual; as many channels as the base come out of both.
        added -= (8 + 16 + 4) * voxels[0] + (16 + 32 + 8) * voxels[1]
    assert dtc.compute_conv_feature_map_size(size) - plain.compute_conv_feature_map_size(size) == added
    nerdm = build(backbone, None, {"name": "nerdm"}, geometry="anisotropic", deep_supervision=deep_supervision)
    added = 4 * voxels[0] + (8 * voxels[1] if deep_supervision else 0)
    difference = nerdm.compute_conv_feature_map_size(size) - plain.compute_conv_feature_map_size(size)
    assert difference == added
    assert isinstance(difference, np.int64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "upsampling, head", [("dtc", "conv"), ("dysample", "conv"), ("linear", "nerdm"), ("transposed", "nerdc")]
)
def test_compiled(upsampling, head):
    torch.manual_seed(0)
    network = build("plain", UPSAMPLING_ENTRIES[upsampling], HEAD_ENTRIES[head], "2d", True)
    x = image("2d")
    compiled = torch.compile(network, backend="aot_eager")
    expected, outputs = network(x), compiled(x)
    for output, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5)
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    "upsampling, head, message",
    [
        ({"name": "dtx"}, None, r"upsampling 'dtx' is unknown; known are transposed, dtc, dysample, linear"),
        (None, {"name": "nerd"}, r"segmentation_head 'nerd' is unknown; known are conv, nerdm, nerdc"),
        ({"name": "dtc", "recptive_field": 2}, None, r"no option recptive_field; it has base, receptive_field"),
        ({"name": "linear", "groups": 2}, None, r"no option groups; it has none"),
        (None, {"name": "nerdc", "stages": 2}, r"no option stages; it has bias"),
        ({"name": "dtc", "receptive_field": 0}, None, "receptive_field"),
        ({"name": "dtc", "receptive_field": -1.0}, None, "receptive_field"),
        ({"name": "dtc", "receptive_field": float("nan")}, None, "receptive_field"),
        ({"name": "dtc", "base": "nearest"}, None, "base must be one of transposed, linear, dysample"),
        ("dtc", None, 'must be a dict with a "name"'),
        ({"receptive_field": 2}, None, 'must be a dict with a "name"'),
        ({"name": "dysample", "groups": 3}, None, "groups = 3"),
    ],
    ids=str,
)
def test_bad_input(backbone, upsampling, head, message):
    with pytest.raises(ValueError, match=message):
        build(backbone, upsampling, head)


def test_every_choice_is_in_the_sweep():
    assert {e["name"] for e in UPSAMPLING_ENTRIES.values() if e} == UPSAMPLINGS.choices.keys()
    assert {e["name"] for e in HEAD_ENTRIES.values() if e} == SEGMENTATION_HEADS.choices.keys()
