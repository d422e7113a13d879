"""Networks of other packages, and a person's own, under everything that nnU-Net asks of a network."""

import copy
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_deconver.layers import DeformableTransposedConvolution, NeRDc
from nnunet_deconver.models.upgrade import transfer
from nnunet_deconver.networks import BACKBONES, Adapted, adapted
from nnunet_deconver.networks.architecture import ADAPTED, build_network
from nnunet_deconver.networks.backbones import backbone_of, with_components
from nnunet_deconver.networks.trust import check_trusted

SITE = Path(__file__).parents[1] / "own_network"
ONE_OUTPUT = [[1, 1, 1], [1, 1, 1], [2, 2, 2]]
DTC, NERDC = {"name": "dtc"}, {"name": "nerdc"}

# Of MONAI's classes: arguments that keep them small, the strides of a plan, and an extent that they take; one axis has
# twice as many voxels, for they are normalised at the lowest resolution too.
NARROW_MEDNEXT = {"init_filters": 4, "deep_supervision": True, "kernel_size": 3, "use_residual_connection": True}
NARROW_MEDNEXT |= {f"blocks_{part}": [1] * 4 for part in ("down", "up")} | {"blocks_bottleneck": 1}
NARROW_UNETR = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 8, "num_heads": 2}
SMALL = {
    "SegResNet": ({"upsample_mode": "deconv"}, (1, 1, 8), 16),
    "UNETR": (NARROW_UNETR, (1, 1, 16), 16),
    "SwinUNETR": ({"feature_size": 12, "depths": [1] * 4}, (1, 1, 32), 32),
    "SwinUNETR-V2": ({"feature_size": 12, "depths": [1] * 4, "use_v2": True}, (1, 1, 32), 32),
    "MedNeXt": (NARROW_MEDNEXT, (1, 2, 2, 2, 2, 1), 16),
    "AttentionUnet": ({"channels": [4, 8, 8], "strides": [2, 2]}, (1, 1, 4), 8),
    "BasicUNet": ({"features": [4, 4, 8, 8, 8, 4]}, (1, 1, 16), 16),
    "BasicUNet-linear": ({"features": [4, 4, 8, 8, 8, 4], "upsample": "nontrainable"}, (1, 1, 16), 16),
    "SegResNetDS": ({"init_filters": 8, "dsdepth": 3}, (1, 2, 2, 2), 16),
}
UPSAMPLINGS = {
    "transposed": None,
    "linear": {"name": "linear"},
    "dysample": {"name": "dysample"},
    "dtc": DTC,
    "dtc-on-linear": {"name": "dtc", "base": "linear", "receptive_field": 4},
    "dtc-on-dysample": {"name": "dtc", "base": "dysample", "receptive_field": "inf"},
}
HEADS = {"conv": None, "nerdm": {"name": "nerdm"}, "nerdc": NERDC, "norm": {"name": "norm"}}
# None of their layers makes stride x n voxels of n.
NO_UPSAMPLING = ("MedNeXt", "BasicUNet-linear")


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """The person's module can be imported."""
    monkeypatch.syspath_prepend(str(SITE))
    yield
    sys.modules.pop("own_network", None)


def make(network="own_network.OwnNetwork", *, inputs=1, classes=3, deep_supervision=True, **options):
    if str(network).startswith("own_network."):
        options = {"channel_arguments": {"input_channels": "in_chans", "num_classes": "n_classes"}} | options
    options = {"strides": ONE_OUTPUT} | options
    torch.manual_seed(0)
    return Adapted(inputs, classes, deep_supervision, network=network, **options)


def small(name, rank, upsampling=None, head=None, **options):
    """One of MONAI's networks, and an image for it."""
    kwargs, strides, extent = SMALL[name]
    size = [extent] * (rank - 1) + [2 * extent]
    kwargs = {"spatial_dims": rank, **kwargs} | ({"img_size": size} if name == "UNETR" else {})
    options |= {"upsampling": upsampling, "segmentation_head": head, "strides": [[s] * rank for s in strides]}
    network = make(f"monai.networks.nets.{name.partition('-')[0]}", network_kwargs=kwargs, **options)
    return network, torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))


EVERYTHING = [(*axes, 2) for axes in itertools.product(SMALL, UPSAMPLINGS, HEADS) if axes[0] != "SwinUNETR"]
EVERYTHING += [(name, *axes, 3) for name in SMALL for axes in (("transposed", "conv"), ("dtc", "nerdc"))]


@pytest.mark.parametrize("name, upsampling, head, rank", EVERYTHING)
def test_contract(name, upsampling, head, rank):
    axes = UPSAMPLINGS[upsampling], HEADS[head]
    if name in NO_UPSAMPLING and axes[0] is not None:
        with pytest.raises(ValueError, match=f"upsampling '{axes[0]['name']}'.* {name.partition('-')[0]}"):
            small(name, rank, *axes)
        return
    network, x = small(name, rank, *axes)
    outputs = network(x)
    strides = network.strides
    assert len(outputs) == len(strides) - 1
    divisors = [
        [1] * rank,
        *itertools.accumulate(strides[1:-1], lambda a, b: [i * j for i, j in zip(a, b, strict=True)]),
    ]
    assert [list(o.shape) for o in outputs] == [
        [2, 3, *(extent // by for extent, by in zip(x.shape[2:], divisor, strict=True))] for divisor in divisors
    ]
    sum(o.square().mean() for o in outputs).backward()
    for key, parameter in network.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all()), key
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = network(x)
    assert all(o.isfinite().all() for o in halves)

    network.eval()
    assert [o.shape for o in network(x)] == [o.shape for o in outputs]
    network.decoder.deep_supervision = False
    other = small(name, rank, *axes, deep_supervision=False)[0].eval()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*SMALL, "own"])
def test_each_parameter_that_asks_for_a_gradient_gets_one_without_deep_supervision(name):
    network, x = (make(deep_supervision=False), torch.randn(2, 1, 8, 8, 8)) if name == "own" else small(name, 2)
    if name != "own":
        network = small(name, 2, deep_supervision=False)[0]
    network(x).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("head", [None, NERDC], ids=["conv", "nerdc"])
def test_an_output_without_a_target_is_not_trained(head):
    kwargs = {"spatial_dims": 2, "init_filters": 8, "dsdepth": 3}
    options = {"network_kwargs": kwargs, "strides": [[1, 1], [2, 2], [4, 4]], "segmentation_head": head}
    network = make("monai.networks.nets.SegResNetDS", **options)
    outputs = network(torch.randn(2, 1, 16, 16))
    assert len(outputs) == 2
    sum(o.square().mean() for o in outputs).backward()
    frozen = {key.split(".seg_layers")[0] for key, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"network.up_layers.0.head"}
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_heads_of_lower_resolutions_are_known_to_trainers():
    network, _ = small("SegResNetDS", 3)
    assert len(network.decoder.seg_layers) == 3
    network.decoder.seg_layers[:-1].requires_grad_(False)  # as a trainer with one head does
    frozen = {key.split(".seg_layers")[0] for key, p in network.named_parameters() if not p.requires_grad}
    # The highest resolution is the last of MONAI's list of layers.
    assert frozen == {f"network.up_layers.{i}.head" for i in (0, 1)}


def test_an_output_that_has_no_weight_is_a_view_and_the_loss_is_that_of_the_first():
    network, x = small("UNETR", 3)
    first, second = network(x)
    assert second.data_ptr() == first.data_ptr() and second.shape == first.shape
    loss = DeepSupervisionWrapper(nn.MSELoss(), [1.0, 0.0])
    assert loss([first, second], [first * 0, None]) == first.square().mean()


def test_views_are_at_the_voxels_of_lower_resolutions():
    network = make(strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]).eval()
    outputs = network(torch.randn(1, 1, 8, 16, 16))
    for output, slices in zip(outputs, ((1, 1, 1), (1, 2, 2), (2, 4, 4)), strict=True):
        torch.testing.assert_close(output, outputs[0][(..., *(slice(None, None, s) for s in slices))])


def test_deep_supervision_of_its_own_is_used_in_whatever_order_and_views_in_its_place_in_validation():
    network = make("own_network.Deep", strides=[[1] * 3, [2] * 3, [2] * 3])
    x = torch.randn(1, 1, 8, 8, 8)
    outputs = network(x)
    assert [tuple(o.shape[2:]) for o in outputs] == [(8, 8, 8), (4, 4, 4)]
    torch.testing.assert_close(outputs[1], network.network(x)[0])
    validated = network.eval()(x)
    torch.testing.assert_close(validated[1], validated[0][..., ::2, ::2, ::2])
    heads = [key for key in network.state_dict() if ".seg_layers." in key]
    assert heads == [f"network.{n}.seg_layers.0.{w}" for n in ("out", "low") for w in ("weight", "bias")]


def test_a_switch_for_deep_supervision_both_ways():
    network, x = make(deep_supervision=False), torch.randn(1, 1, 8, 8, 8)
    assert isinstance(network(x), torch.Tensor)
    network.decoder.deep_supervision = True
    assert len(network(x)) == 2


def test_initialize_leaves_the_start_of_the_network():
    network = make(upsampling=DTC)
    before = copy.deepcopy(network.state_dict())
    network.apply(network.initialize)
    assert (network.network.first.weight == 0.25).all()
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_feature_maps_are_counted_as_nnunet_counts_them():
    kwargs = {"n_stages": 3, "features_per_stage": [4, 8, 16], "kernel_sizes": 3, "strides": [1, 2, 2]}
    kwargs |= {"conv_op": nn.Conv3d, "n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2}
    theirs = PlainConvUNet(1, num_classes=3, deep_supervision=True, **kwargs)
    network = make(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        network_kwargs={**kwargs, "deep_supervision": True},
        channel_arguments={"input_channels": "input_channels", "num_classes": "num_classes"},
        strides=[[1] * 3, [2] * 3, [2] * 3],
    )
    size = (8, 16, 16)
    assert network.compute_conv_feature_map_size(size) == theirs.compute_conv_feature_map_size(size)
    with pytest.raises(ValueError, match=r"does not take patches of 9 x 16 x 16"):
        network.compute_conv_feature_map_size((9, 16, 16))


@pytest.mark.parametrize("name", ["SegResNet", "UNETR", "SegResNetDS", "own"])
def test_compiled(name):
    torch.compiler.reset()
    network, x = (make(upsampling=DTC), torch.randn(2, 1, 8, 8, 8)) if name == "own" else small(name, 2)
    compiled = torch.compile(network, backend="aot_eager")
    for expected, output in zip(network(x), compiled(x), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    sum(o.square().mean() for o in compiled(x)).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_pretrained_weights_of_another_number_of_classes_are_taken_but_for_the_heads(tmp_path):
    source = make(classes=5)
    torch.save({"network_weights": source.state_dict()}, tmp_path / "pretrained.pth")
    target = make(classes=3)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(7)
    load_pretrained_weights(target, str(tmp_path / "pretrained.pth"))
    torch.testing.assert_close(target.network.down.weight, source.network.down.weight)
    assert (target.network.out.seg_layers[0].weight == 7).all()


def test_a_network_with_something_after_its_head_is_taken_as_it_is():
    network = make("own_network.Activated")
    assert len(network.decoder.seg_layers) == 0
    assert len(network(torch.randn(1, 1, 8, 8, 8))) == 2


def test_axes_are_put_into_the_network():
    network = make(upsampling=DTC, segmentation_head=NERDC)
    assert isinstance(network.network.up, DeformableTransposedConvolution)
    assert isinstance(network.network.out.seg_layers[0], NeRDc)
    assert make(upsampling={"name": "transposed"}, segmentation_head={"name": "conv"}).state_dict().keys() == (
        make().state_dict().keys()
    )


@pytest.mark.parametrize("name", SMALL)
def test_a_trained_network_takes_axes_without_a_change_of_what_it_computes(name):
    upsampling = None if name in NO_UPSAMPLING else DTC
    plain, x = small(name, 2)
    plain.eval().decoder.deep_supervision = False
    network, _ = small(name, 2, upsampling, NERDC)
    network.eval().decoder.deep_supervision = False
    assert not torch.allclose(network(x), plain(x), rtol=1e-2)
    transfer(plain, network)
    torch.testing.assert_close(network(x), plain(x), rtol=1e-4, atol=1e-5)
    network.train()(x).square().mean().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0 if parameter.grad is None else parameter.grad
    assert not torch.allclose(network.eval()(x), plain(x), rtol=1e-3)


def test_nnunet_builds_it_from_json():
    arch_kwargs = {"network": "own_network.OwnNetwork", "network_kwargs": {"ndim": 2}, "upsampling": DTC}
    arch_kwargs |= {"channel_arguments": {"input_channels": "in_chans", "num_classes": "n_classes"}}
    arch_kwargs = json.loads(json.dumps(arch_kwargs | {"strides": [[1, 1], [1, 1], [2, 2]]}))
    network = get_network_from_plans(ADAPTED, arch_kwargs, [], 2, 4, allow_init=True, deep_supervision=True)
    assert [tuple(o.shape) for o in network(torch.randn(1, 2, 8, 8))] == [(1, 4, 8, 8)] * 2


@pytest.mark.parametrize(
    "name, size, told",
    [
        ("SegResNet", (21, 33), "takes 16 x 32 or 24 x 40"),
        ("UNETR", (40, 32), "takes 16 x 32"),
        ("SwinUNETR", (64, 65), "takes 64 x 64 or 64 x 96"),
        ("MedNeXt", (16, 24), "takes 16 x 16 or 16 x 32"),
    ],
)
def test_a_patch_that_is_rejected_is_told_with_those_that_fit(name, size, told):
    network, _ = small(name, 2)
    for training in (True, False):
        with pytest.raises(ValueError, match=f"{name} does not take patches of {size[0]} x {size[1]} .*; it {told}:"):
            network.train(training)(torch.randn(1, 1, *size))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"network": "own_network.Missing"}, "own_network.Missing cannot be imported here; .* PYTHONPATH"),
        ({"network": "no_such_package.Net"}, "no_such_package.Net cannot be imported here"),
        ({"network": 3}, "must be the dotted name of a class, .* got 3"),
        ({"network": "own_network.function"}, "own_network.function is no class of networks .*, but <function"),
        ({"network": "pathlib.Path"}, "pathlib.Path is no class of networks"),
        (
            {"network": "own_network.Broken", "channel_arguments": {}},
            r"Broken cannot be built .* RuntimeError: no such",
        ),
        ({"network_kwargs": {"widht": 8}}, "no argument widht of network_kwargs; it takes in_chans, n_classes, width"),
        ({"network_kwargs": {"in_chans": 1}}, "network_kwargs has in_chans, which nnU-Net gives"),
        ({"channel_arguments": {}}, "has no argument in_channels nor out_channels .*; it takes in_chans"),
        ({"channel_arguments": {"inputs": "x"}}, "'inputs'; it may name input_channels and num_classes"),
        ({"network": "monai.networks.nets.UNETR", "channel_arguments": {}}, "UNETR needs img_size in network_kwargs"),
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "three entries at least"),
        ({"strides": [[1, 1, 1], [2, 2], [2, 2, 2]]}, "three entries at least"),
        ({"strides": 2}, "three entries at least"),
        ({"upsampling": {"name": "cubic"}}, "upsampling 'cubic' is unknown"),
        ({"segmentation_head": {"name": "nerdx"}}, "segmentation_head 'nerdx' is unknown"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    "options, shape, message",
    [
        ({}, (1, 1, 8, 8), "has 3 spatial axes by its strides, and got 8 x 8"),
        ({"network": "own_network.Half"}, (1, 1, 8, 8, 8), "must return logits .*; it returned .1, 3, 4, 4, 4."),
        ({"network_kwargs": {"ndim": 2}}, (1, 1, 8, 8, 8), "OwnNetwork does not take patches of 8 x 8 x 8 .* nor any"),
        (
            {"network": "own_network.Deep", "strides": [[1] * 3, [4] * 3, [1] * 3]},
            (1, 1, 8, 8, 8),
            "change the strides",
        ),
    ],
)
def test_an_image_that_does_not_fit_is_named(options, shape, message):
    with pytest.raises(ValueError, match=message):
        make(**options)(torch.randn(shape))


def test_errors_that_are_not_the_size_stay_what_they_are():
    network = make()
    network.network.down.weight.data = network.network.down.weight.data.double()
    with pytest.raises(RuntimeError, match="type"):
        network(torch.randn(1, 1, 8, 8, 8))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(adapted.pydoc, "locate", lambda name: None)
    monkeypatch.setattr(adapted, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape('run: pip install "nnunet-deconver[monai]"')):
        make("monai.networks.nets.SegResNet")


def test_monai_is_imported_when_it_is_built_and_no_sooner():
    script = "import sys, nnunet_deconver.trainers, nnunet_deconver.plans; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def nnunet_entry(rank):
    kwargs = {"conv_op": f"torch.nn.modules.conv.Conv{rank}d", "n_stages": 3, "strides": [[1] * rank, [2] * rank] * 2}
    return {"network_class_name": "x.PlainConvUNet", "arch_kwargs": kwargs, "_kw_requires_import": ["conv_op"]}


ADAPTED_BACKBONES = [name for name, backbone in BACKBONES.items() if backbone.adaptation]


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ADAPTED_BACKBONES)
def test_entries_of_backbones_are_theirs_alone_and_trusted(name, rank):
    backbone = BACKBONES[name]
    entry = backbone.architecture(nnunet_entry(rank))
    assert backbone_of(json.loads(json.dumps(entry))) is backbone
    assert backbone.architecture(entry) is entry
    patch = backbone.adaptation.patch_size([40] * rank)
    fitted = backbone.for_patch(entry, patch)
    assert backbone_of(fitted) is backbone
    check_trusted(fitted, "plans")
    chosen = with_components(fitted, upsampling=DTC)
    assert chosen["arch_kwargs"]["upsampling"] == DTC and backbone_of(chosen) is backbone
    with pytest.raises(ValueError, match="the plans have upsampling"):
        with_components(chosen, upsampling={"name": "linear"})


@pytest.mark.parametrize(
    "planned, chosen, message",
    [
        (
            "unetr",
            "segresnet",
            "SegResNet cannot be put in the place of .*, the network monai.networks.nets.UNETR; use",
        ),
        ("mednext-l", "mednext-s", "MedNeXt cannot be put in the place of .*, it with other network_kwargs; use plans"),
    ],
)
def test_an_entry_of_another_network_is_not_translated(planned, chosen, message):
    entry = BACKBONES[planned].architecture(nnunet_entry(3))
    with pytest.raises(ValueError, match=message):
        BACKBONES[chosen].architecture(entry)


# What MONAI built in each of the twelve blocks of UNETR when the paper was written, and nothing used.
CROSS_ATTENTION = 12 * (4 * 768**2 + 768)


@pytest.mark.parametrize(
    "name, kwargs, rank, extent, channels, unused, printed",
    [
        ("SegResNet", {"init_filters": 64, "upsample_mode": "deconv"}, 3, 64, (2, 1), 0, "75.9"),
        ("SegResNet", {"init_filters": 64, "upsample_mode": "deconv"}, 3, 128, (4, 3), 0, "75.9"),
        ("SegResNet", {"init_filters": 64, "upsample_mode": "deconv"}, 2, 512, (3, 1), 0, "25.5"),
        ("UNETR", {"feature_size": 32}, 3, 64, (2, 1), CROSS_ATTENTION, "133.2"),
        ("UNETR", {"feature_size": 32}, 3, 128, (4, 3), CROSS_ATTENTION, "139.8"),
        ("UNETR", {"feature_size": 32}, 2, 512, (3, 1), CROSS_ATTENTION, "120.2"),
        ("SwinUNETR", {"feature_size": 48}, 3, 64, (2, 1), 0, "62.2"),
        ("SwinUNETR", {"feature_size": 48}, 3, 128, (4, 3), 0, "62.2"),
        ("SwinUNETR", {"feature_size": 48}, 2, 512, (3, 1), 0, "25.1"),
    ],
)
def test_parameters_are_those_of_deconvers_tables(name, kwargs, rank, extent, channels, unused, printed):
    """Tables I to III of arXiv 2504.00302, in millions: ISLES'22, BraTS'23, and the 2D datasets."""
    kwargs = {"spatial_dims": rank, **kwargs} | ({"img_size": [extent] * rank} if name == "UNETR" else {})
    with FakeTensorMode():
        options = {"network_kwargs": kwargs, "strides": [[1] * rank, [1] * rank, [32] * rank]}
        network = make(f"monai.networks.nets.{name}", inputs=channels[0], classes=channels[1], **options)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"{(count + unused) / 1e6:.1f}" == printed


@pytest.mark.parametrize(
    "features, rank, channels, printed",
    [
        ([64, 128, 256, 512], 3, (2, 1), "22.4"),
        ([32, 64, 128, 256, 512], 3, (4, 3), "22.6"),
        ([32, 64, 128, 256, 512, 512], 2, (3, 1), "20.6"),
    ],
)
def test_parameters_of_nnunet_are_those_of_deconvers_tables(features, rank, channels, printed):
    """With the stages of Deconver there, and one head."""
    convolution, norm = (nn.Conv2d, nn.InstanceNorm2d) if rank == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    kwargs = {"conv_op": convolution, "norm_op": norm, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
    stages = {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2, "conv_bias": True, "kernel_sizes": 3}
    strides = [1] + [2] * (len(features) - 1)
    with torch.device("meta"):
        network = PlainConvUNet(
            channels[0], len(features), features, strides=strides, num_classes=channels[1], **kwargs, **stages
        )
    lower = sum(parameter.numel() for parameter in network.decoder.seg_layers[:-1].parameters())
    assert f"{(sum(parameter.numel() for parameter in network.parameters()) - lower) / 1e6:.1f}" == printed


@pytest.mark.parametrize("name", ADAPTED_BACKBONES)
def test_backbones_are_built_as_planned_and_take_the_patch_they_say(name):
    backbone = BACKBONES[name]
    patch = backbone.adaptation.patch_size([40, 40, 40])
    entry = backbone.for_patch(backbone.architecture(nnunet_entry(3)), patch)
    with FakeTensorMode():
        network = build_network(entry, 1, 3, deep_supervision=True)
        outputs = network(torch.empty(2, 1, *patch))
    assert len(outputs) == len(entry["arch_kwargs"]["strides"]) - 1
