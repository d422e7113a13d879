import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_deconver.networks import BACKBONES, MedNeXt
from nnunet_deconver.networks.architecture import build_network
from nnunet_deconver.networks.backbones import backbone_of, recipe_trainer_name, with_components
from nnunet_deconver.networks.mednext import MedNeXtUpsampling

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
# What MONAI's MedNeXt calls the parts of five stages.
IN_MONAI = (
    (r"encoder\.stem", "stem"),
    (r"encoder\.stages\.4", "bottleneck"),
    (r"encoder\.stages", "enc_stages"),
    (r"encoder\.downsamplings", "down_blocks"),
    (r"decoder\.transpconvs", "up_blocks"),
    (r"decoder\.stages", "dec_stages"),
    (r"decoder\.seg_layers\.3", "out_0.conv_out"),
    (r"decoder\.seg_layers\.(\d)", lambda found: f"out_blocks.{int(found[1]) + 1}.conv_out"),
    (r"\.depthwise", ".conv1"),
    (r"\.expand", ".conv2"),
    (r"\.compress", ".conv3"),
    (r"\.residual", ".res_conv"),
)


def of_paper(rank=3, features=32, kernel=3, **kwargs):
    """Five stages with strides of 2."""
    strides = [1, 2, 2, 2, 2]
    return MedNeXt(2, 5, [features * 2**i for i in range(5)], CONVOLUTIONS[rank], kernel, strides, 3, True, **kwargs)


def small(**changes):
    arguments = {
        "input_channels": 1,
        "n_stages": 3,
        "features_per_stage": [4, 6, 10],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "num_classes": 2,
        "deep_supervision": True,
    }
    return MedNeXt(**arguments | changes)


def entry(**changes):
    """An architecture entry as nnU-Net plans it."""
    arch_kwargs = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arch_kwargs | changes,
        "_kw_requires_import": ["conv_op"],
    }


@pytest.mark.parametrize(
    "variant, kernel, options",
    [
        ("S", 3, {}),
        ("S", 5, {}),
        ("M", 3, {"n_blocks_per_stage": [3, 4, 4, 4, 4], "expansion": [2, 3, 4, 4, 4]}),
    ],
)
def test_it_has_the_parameters_of_monais(variant, kernel, options):
    """Without its head of the lowest resolution, and the blocks that downsample, where MONAI departs from the authors.

    Their expansion is that of the stage they lead to; MONAI's is that of the stage they come from.
    """
    mednext = pytest.importorskip("monai.networks.nets.mednext")
    with torch.device("meta"):
        ours = of_paper(kernel=kernel, **options)
        theirs = mednext.create_mednext(variant, 3, 2, 3, kernel, deep_supervision=True)
    heads = 512 * 3 + 3
    more = 0
    if variant == "M":
        ratios = [2, 3, 4, 4, 4]
        for i in range(4):
            channels = 32 * 2**i
            # expansion with its bias, and compression
            more += (ratios[i + 1] - ratios[i]) * channels * (channels + 1 + 2 * channels)
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    assert count[0] == count[1] - heads + more


@pytest.mark.parametrize("rank, kernel, size", [(2, 3, (32, 48)), (2, 5, (32, 32)), (3, 3, (32, 32, 32))])
def test_with_upsampling_that_pads_it_computes_what_monais_does(rank, kernel, size):
    """What blocks that upsample make of the border is all that differs: see the class."""
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    theirs = nets.MedNeXt(
        rank, 4, 2, 3, kernel_size=kernel, deep_supervision=True, use_residual_connection=True
    ).double()
    for parameter in theirs.parameters():  # norms too
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = of_paper(rank, 4, kernel).double()
    weights, known = {}, theirs.state_dict()
    for key, value in ours.state_dict().items():
        name = key
        for pattern, replacement in IN_MONAI:
            name = re.sub(pattern, replacement, name, count=1)
        weight = known.pop(name)
        weights[key] = weight.transpose(0, 1) if "seg_layers" in key and weight.ndim > 1 else weight
        assert weights[key].shape == value.shape, key
    assert known.keys() == {"out_blocks.0.conv_out.weight", "out_blocks.0.conv_out.bias"}
    ours.load_state_dict(weights)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    expected = theirs.train()(x)[:-1]  # the last is of the lowest resolution
    differing = ours(x)

    for upsampling in ours.decoder.transpconvs:
        for layer in (upsampling.depthwise, upsampling.residual):
            layer.output_padding = (0,) * rank
        upsampling.register_forward_hook(lambda module, inputs, output: F.pad(output, [1, 0] * rank))
    for output, found, other in zip(ours(x), expected, differing, strict=True):
        torch.testing.assert_close(output, found)
        assert not torch.allclose(other, found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "stride, kernel, size",
    [
        ((2, 2), (3, 3), (3, 4)),
        ((2, 1), (5, 3), (2, 3)),
        ((1, 2, 2), (1, 3, 3), (3, 2, 4)),
        ((2, 2, 2), (5,) * 3, (2,) * 3),
    ],
)
def test_upsampling_is_the_adjoint_of_downsampling(stride, kernel, size):
    """Of a strided convolution with its kernel and padding: every voxel is at its place, none is missing."""
    torch.manual_seed(0)
    block = MedNeXtUpsampling(3, 2, stride, kernel, 2).double()
    convolve = {2: F.conv2d, 3: F.conv3d}[len(stride)]
    below = torch.randn(1, 3, *size, dtype=torch.float64)
    above = torch.randn(1, 3, *(n * s for n, s in zip(size, stride, strict=True)), dtype=torch.float64)
    up = block.depthwise(below) - block.depthwise(torch.zeros_like(below))
    down = convolve(above, block.depthwise.weight, stride=stride, padding=[k // 2 for k in kernel], groups=3)
    assert up.shape == above.shape
    torch.testing.assert_close((up * above).sum(), (below * down).sum())
    # The residual puts what it makes of a voxel where that voxel is.
    residual = block.residual(below)[(..., *(slice(None, None, s) for s in stride))]
    pointwise = convolve(below, block.residual.weight.transpose(0, 1), block.residual.bias)
    torch.testing.assert_close(residual, pointwise)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_feature_map_size_counts_every_convolution(deep_supervision):
    options = {"n_blocks_per_stage": [1, 3, 2], "expansion": [2, 3, 4], "strides": [2, [1, 2, 2], 2]}
    network = small(deep_supervision=deep_supervision, **options)
    found = []
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(lambda module, inputs, output: found.append(output.numel()))
    network(torch.zeros(1, 1, 8, 16, 24))
    assert network.compute_conv_feature_map_size((8, 16, 24)) == sum(found)


def test_kernels_strides_and_expansion_go_where_the_plan_has_them():
    network = small(n_blocks_per_stage=[1, 3, 2], expansion=[2, 3, 4])
    stages = [*network.encoder.stages, *network.decoder.stages]
    assert [len(stage) for stage in stages] == [1, 3, 2, 3, 1]
    flat, deep = (1, 3, 3), (3, 3, 3)
    assert [stage[0].depthwise.kernel_size for stage in stages] == [flat, flat, deep, flat, flat]
    assert [stage[0].expand.out_channels // stage[0].expand.in_channels for stage in stages] == [2, 3, 4, 3, 2]
    between = [*network.encoder.downsamplings, *network.decoder.transpconvs]
    assert [block.depthwise.kernel_size for block in between] == [flat, deep, deep, flat]
    assert [block.depthwise.stride for block in between] == [(1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert [block.expand.out_channels // block.expand.in_channels for block in between] == [3, 4, 3, 2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kernel_sizes": 4}, "kernel_sizes must be odd numbers, got 4"),
        ({"conv_op": nn.Linear}, "conv_op must be"),
        ({"strides": [1, 2]}, "strides must have one entry for each of the 3 stages"),
        ({"features_per_stage": [4, 8]}, "features_per_stage must be a positive number or a list of 3"),
        ({"expansion": [2, 0, 2]}, "expansion must be a positive number or a list of 3"),
        ({"n_blocks_per_stage": [2, 2]}, "n_blocks_per_stage must be a positive number or a list of 3"),
    ],
    ids=str,
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_patch_that_the_strides_do_not_divide():
    network = small()
    for use in (lambda size: network(torch.zeros(1, 1, *size)), network.compute_conv_feature_map_size):
        with pytest.raises(ValueError, match=r"patch size \(2, 4, 6\) must be divisible by .* \(2, 4, 4\)"):
            use((2, 4, 6))


@pytest.mark.parametrize("name, extent", [("mednext", 3), ("mednext-k5", 5)])
def test_backbones_carry_the_plans_stages_over(name, extent):
    dtc = {"name": "dtc"}
    chosen = with_components(BACKBONES[name].architecture(entry(upsampling=dtc)), segmentation_head={"name": "nerdc"})
    planned = entry()["arch_kwargs"]
    kept = ("n_stages", "features_per_stage", "conv_op", "strides")
    assert chosen["arch_kwargs"] == {key: planned[key] for key in kept} | {
        "kernel_sizes": [[1, extent, extent], [extent] * 3, [extent] * 3],
        "upsampling": dtc,
        "segmentation_head": {"name": "nerdc"},
    }
    assert (
        backbone_of(chosen).label.startswith("MedNeXt") and recipe_trainer_name(chosen) == "nnUNetTrainer_AdamWPoly1e3"
    )
    assert BACKBONES[name].architecture(chosen) is chosen
    assert type(build_network(chosen, 1, 2, deep_supervision=True)) is MedNeXt
    with pytest.raises(ValueError, match="cannot be carried over to MedNeXt; use plans of PlainConvUNet or"):
        BACKBONES[name].architecture(BACKBONES["deconver"].architecture(entry()))


def test_the_start_is_drawn_anew():
    network = small()
    parameters = dict(network.named_parameters())
    for parameter in parameters.values():
        nn.init.constant_(parameter, 7)
    network.apply(network.initialize)
    assert not [name for name, parameter in parameters.items() if (parameter == 7).any()]
