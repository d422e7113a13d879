"""Upsamplings and heads in networks that are not ours: the same function at the start, another one after a step."""

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.nn.utils import parametrizations

from nnunet_deconver.layers import (
    DeformableTransposedConvolution,
    DySampleUpsampling,
    LinearUpsampling,
    NeRDc,
    NeRDm,
    replace_segmentation_head,
    replace_transposed_convolutions,
)

DTC = {"name": "dtc"}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
GEOMETRIES = {
    "kernel = stride": {"kernel_size": 2, "stride": 2},
    "stride 3": {"kernel_size": 3, "stride": 3},
    "one axis": {"kernel_size": (1, 2), "stride": (1, 2)},
    "2 x stride": {"kernel_size": 4, "stride": 2, "padding": 1},
    "2 x stride - 1": {"kernel_size": 5, "stride": 3, "padding": 1},
    "output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "dilation": {"kernel_size": 2, "stride": 2, "padding": 1, "output_padding": 1, "dilation": 2},
    "groups": {"kernel_size": 2, "stride": 2, "groups": 2},
    "no bias": {"kernel_size": 2, "stride": 2, "bias": False},
}


class Net(nn.Module):
    """An encoder, two upsamplings and a head."""

    def __init__(self, rank=2, bias=True, **geometry):
        super().__init__()
        geometry = {
            key: (1,) * (rank - 2) + value if isinstance(value, tuple) else value for key, value in geometry.items()
        }
        self.stem = CONVOLUTION[rank](1, 8, 3, padding=1)
        self.up = TRANSPOSED[rank](8, 4, **geometry or {"kernel_size": 2, "stride": 2}, bias=bias)
        self.last = nn.ModuleDict({"up": TRANSPOSED[rank](4, 4, 2, 2)})
        self.head = CONVOLUTION[rank](4, 3, 1, bias=bias)

    def forward(self, x):
        return self.head(self.last["up"](self.up(self.stem(x)).relu()).relu())


def step(network, x):
    """One step of a training."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    output = network(x)
    output = output[0] if isinstance(output, list) else output
    (output - 1).square().mean().backward()
    optimizer.step()


def check_starts_the_same(network, x, replace):
    """Replaces layers, and checks what is promised of any network in training or evaluation."""
    network.eval()
    with torch.no_grad():
        before = network(x)
        names = replace(network)
        torch.testing.assert_close(network(x), before)
        twin = copy.deepcopy(network)
        torch.testing.assert_close(twin(x), before)

    # Two steps: the first moves the projection from zero, and then the offsets have a gradient.
    for _ in range(2):
        network.zero_grad()
        step(network, x)
    new = [
        (key, parameter)
        for key, parameter in network.named_parameters()
        if key.startswith(tuple(f"{name}." for name in names)) and "mlp.0" not in key and "mlp.2" not in key
    ]
    assert new
    for key, parameter in new:
        assert parameter.grad is not None and parameter.grad.any(), key
    with torch.no_grad():
        after = network(x)
        assert not torch.allclose(after, before, rtol=1e-3)
        torch.testing.assert_close(twin(x), before)  # a copy shares nothing
        twin.load_state_dict(network.state_dict())
        torch.testing.assert_close(twin(x), after)
    return names


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("rank", [2, 3])
def test_every_transposed_convolution_becomes_the_upsampling(rank, geometry):
    torch.manual_seed(0)
    network = Net(rank, **GEOMETRIES[geometry]).double()
    weight = network.up.weight
    x = torch.randn(2, 1, *(3, 4, 5)[:rank], dtype=torch.float64)
    names = check_starts_the_same(network, x, lambda net: replace_transposed_convolutions(net, DTC))
    assert names == ["up", "last.up"]
    assert isinstance(network.up, DeformableTransposedConvolution)
    assert isinstance(network.last["up"], DeformableTransposedConvolution)
    assert network.up.base.weight is weight


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head, kind", [("nerdm", NeRDm), ("nerdc", NeRDc)])
@pytest.mark.parametrize("rank", [2, 3])
def test_the_last_pointwise_convolution_becomes_the_head(rank, head, kind, bias):
    torch.manual_seed(0)
    network = Net(rank, bias=bias).double()
    x = torch.randn(2, 1, *(3, 4, 5)[:rank], dtype=torch.float64)
    assert check_starts_the_same(network, x, lambda net: [replace_segmentation_head(net, {"name": head})]) == ["head"]
    assert isinstance(network.head, kind)


def test_a_transposed_convolution_of_one_voxel_is_a_head_too():
    """As in MONAI's MedNeXt."""
    torch.manual_seed(0)
    network = Net().double()
    network.head = nn.ConvTranspose2d(4, 3, 1, dtype=torch.float64)
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    check_starts_the_same(network, x, lambda net: [replace_segmentation_head(net, {"name": "nerdc"})])


def test_unetr_of_monai():
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    arguments = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4, "proj_type": "conv"}
    x = torch.randn(1, 1, 32, 32, 32)
    network = nets.UNETR(1, 3, (32, 32, 32), **arguments)
    names = check_starts_the_same(network, x, lambda net: replace_transposed_convolutions(net, DTC, only="decoder*"))
    assert names == [f"decoder{level}.transp_conv.conv" for level in (5, 4, 3, 2)]
    network = nets.UNETR(1, 3, (32, 32, 32), **arguments)
    assert len(replace_transposed_convolutions(copy.deepcopy(network), DTC)) == 10
    names = check_starts_the_same(network, x, lambda net: [replace_segmentation_head(net, {"name": "nerdc"})])
    assert names == ["out.conv.conv"]


@pytest.fixture(scope="module")
def trained():
    """nnU-Net's own network after some steps, and an image."""
    torch.manual_seed(0)
    network = PlainConvUNet(
        1,
        3,
        (4, 8, 16),
        nn.Conv3d,
        [(1, 3, 3), 3, 3],
        [1, (1, 2, 2), 2],
        1,
        3,
        1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )
    x = torch.randn(2, 1, 4, 8, 8)
    for _ in range(3):
        step(network, x)
    network.decoder.deep_supervision = False
    return network, x


def test_a_trained_nnunet(trained):
    network, x = trained
    names = check_starts_the_same(copy.deepcopy(network), x, lambda net: replace_transposed_convolutions(net, DTC))
    assert names == ["decoder.transpconvs.0", "decoder.transpconvs.1"]
    names = check_starts_the_same(
        copy.deepcopy(network), x, lambda net: [replace_segmentation_head(net, {"name": "nerdc"})]
    )
    assert names == ["decoder.seg_layers.1"]  # that of the highest resolution


@pytest.mark.slow
def test_compiled(trained):
    network, x = copy.deepcopy(trained[0]), trained[1]
    expected = network(x)
    replace_transposed_convolutions(network, DTC)
    replace_segmentation_head(network, {"name": "nerdc"})
    compiled = torch.compile(network, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    step(compiled, x)
    assert not torch.allclose(compiled(x), expected, rtol=1e-3)


def test_only_chooses_layers_by_name_and_pattern():
    for only, names in [("up", ["up"]), ("last.*", ["last.up"]), (["up", "*up"], ["up", "last.up"]), ([], [])]:
        network = Net()
        assert replace_transposed_convolutions(network, DTC, only=only) == names
        replaced = [key for key, each in network.named_modules() if isinstance(each, DeformableTransposedConvolution)]
        assert replaced == names


def test_a_layer_with_two_names_is_replaced_under_both():
    """As in MONAI's DynUNet, whose forward pass knows its layers by names of their own."""
    network = Net()
    network.alias = network.up
    assert replace_transposed_convolutions(network, DTC, only="alias") == ["up"]
    assert network.alias is network.up
    assert isinstance(network.up, DeformableTransposedConvolution)
    network.same_head = network.head
    assert replace_segmentation_head(network, {"name": "nerdc"}) == "same_head"
    assert network.head is network.same_head


def test_what_upsamples_by_a_way_of_its_own_stays_the_base():
    class Doubled(nn.ConvTranspose2d):
        def forward(self, x, output_size=None):
            return 2 * super().forward(x, output_size)

    torch.manual_seed(0)
    network = Net()
    network.up = Doubled(8, 4, 2, 2)
    parametrizations.weight_norm(network.last["up"])
    x = torch.randn(1, 1, 4, 4)
    expected = network(x)
    replace_transposed_convolutions(network, DTC)
    torch.testing.assert_close(network(x), expected)
    assert isinstance(network.up.base, Doubled)


def test_layers_of_stride_1_are_no_upsampling():
    network = Net()
    network.extra = nn.ConvTranspose2d(4, 4, 3, padding=1)
    assert "extra" not in replace_transposed_convolutions(network, DTC)


@pytest.mark.parametrize("entry, kind", [("linear", LinearUpsampling), ("dysample", DySampleUpsampling)])
def test_a_network_that_is_not_trained_yet_takes_any_upsampling(entry, kind):
    network = Net(**GEOMETRIES["output padding"])
    assert replace_transposed_convolutions(network, {"name": entry}, same_start=False) == ["up", "last.up"]
    assert isinstance(network.up, kind)
    assert network(torch.randn(1, 1, 4, 4)).shape == (1, 3, 16, 16)


def test_without_the_same_start_the_layers_start_as_in_a_new_network():
    network = Net()
    up, head = network.up, network.head
    replace_transposed_convolutions(network, DTC, same_start=False)
    assert network.up.base is up and network.up.projection.weight.any()
    replace_segmentation_head(network, {"name": "nerdc"}, same_start=False)
    assert not torch.equal(network.head.classifier.weight, head.weight)


@pytest.mark.parametrize("entry", [None, {"name": "transposed"}])
def test_the_default_replaces_nothing(entry):
    network = Net()
    assert replace_transposed_convolutions(network, entry) == []
    assert replace_segmentation_head(network, entry and {"name": "conv"}) is None
    assert repr(network) == repr(Net())


def test_device_dtype_and_mode_are_those_of_the_old_layer():
    network = Net().to("meta", torch.bfloat16).eval()
    replace_transposed_convolutions(network, DTC)
    replace_segmentation_head(network, {"name": "nerdc"})
    assert {(p.device.type, p.dtype) for p in network.parameters()} == {("meta", torch.bfloat16)}
    assert not any(module.training for module in network.modules())


def lazy():
    network = Net()
    network.up = nn.LazyConvTranspose2d(4, 2, 2)
    return network


def with_1d():
    network = Net()
    network.up = nn.ConvTranspose1d(8, 4, 2, 2)
    return network


def replaced():
    network = Net()
    replace_transposed_convolutions(network, DTC)
    return network


@pytest.mark.parametrize(
    "network, entry, options, message",
    [
        (Net, {"name": "dtx"}, {}, "upsampling 'dtx' is unknown; known are transposed, dtc"),
        (Net, {"name": "dtc", "base": "linear"}, {}, "Net: up: base LinearUpsampling cannot start as a transposed"),
        (Net, {"name": "linear"}, {}, "into Net: only dtc can start as the .* pass same_start=False for a network"),
        (
            lambda: Net(kernel_size=3, stride=2, padding=1),
            DTC,
            {},
            r"Net: up \(8, 4, kernel_size=\(3, 3\), stride=\(2, 2\), padding=\(1, 1\)\); a layer fits that has 2 or 3 "
            r"axes and makes stride x n voxels of n, .*; name those to replace by only=\['last.up'\]",
        ),
        (lambda: Net(kernel_size=3, stride=2), DTC, {"only": "up"}, "Net: up .*; a layer fits"),
        (Net, DTC, {"only": ["down"]}, "only='down' names none of its transposed convolutions, which are up, last.up"),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 3)), DTC, {}, "into Sequential: it has no transposed convolution"),
        (lambda: nn.ConvTranspose2d(1, 1, 2, 2), DTC, {}, "it is the layer itself, not a network that has it"),
        (lazy, DTC, {}, "up has no weights before the network was run once"),
        (with_1d, DTC, {}, r"up \(8, 4, kernel_size=\(2,\), stride=\(2,\)\); a layer fits that has 2 or 3 axes"),
        (replaced, DTC, {}, "it has no transposed .*; replaced already: up, last.up"),
        (Net, {"name": "dysample", "groups": 8}, {"same_start": False}, "Net: last.up: groups = 8 must be a positive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_replaced_is_named_and_nothing_is_changed(network, entry, options, message):
    network = network()
    before = repr(network)
    with pytest.raises(ValueError, match=message):
        replace_transposed_convolutions(network, entry, **options)
    assert repr(network) == before


class Standardised(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) - 1


def with_standardised_head():
    network = Net()
    network.head = Standardised(4, 3, 1)
    return network


def with_a_convolution_after():
    network = Net()
    network.smooth = nn.Conv2d(3, 3, 3)
    return network


def with_head_replaced():
    network = Net()
    network.up = nn.Sequential(network.up, nn.Conv2d(4, 4, 1))
    replace_segmentation_head(network, {"name": "nerdc"})
    return network


@pytest.mark.parametrize(
    "network, entry, options, message",
    [
        (Net, {"name": "nerd"}, {}, "segmentation_head 'nerd' is unknown; known are conv"),
        (Net, {"name": "norm"}, {}, "only nerdm and nerdc can start as the 1x1 convolution"),
        (Net, {"name": "nerdc"}, {"name": "up"}, "name='up' is no pointwise convolution of it; its .* are head"),
        (Net, {"name": "nerdc"}, {"name": "none"}, "name='none' is no pointwise convolution of it; its .* are head"),
        (
            with_a_convolution_after,
            {"name": "nerdc"},
            {},
            r"its last convolution is smooth \(3, 3, kernel_size=.*; its pointwise .* are head; choose one by name=",
        ),
        (nn.Sequential, {"name": "nerdc"}, {}, "into Sequential: it has none that is pointwise"),
        (lambda: nn.Conv2d(4, 3, 1), {"name": "nerdc"}, {}, "it is the layer itself"),
        (with_standardised_head, {"name": "nerdc"}, {}, "head: its class, Standardised, computes otherwise"),
        (with_head_replaced, {"name": "nerdc"}, {}, "convolutions are up.1; replaced already: head; choose"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_heads_that_cannot_be_replaced_are_named_and_nothing_is_changed(network, entry, options, message):
    network = network()
    before = repr(network)
    with pytest.raises(ValueError, match=message):
        replace_segmentation_head(network, entry, **options)
    assert repr(network) == before


def test_a_head_is_chosen_by_name():
    network = with_a_convolution_after()
    assert replace_segmentation_head(network, {"name": "nerdc"}, name="head") == "head"
    assert isinstance(network.head, NeRDc)
