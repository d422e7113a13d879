import math

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.abstract_arch import test_submodules_loadable as assert_loadable
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_deconver.layers import deconver_block
from nnunet_deconver.networks import Deconver
from nnunet_deconver.ops import assume_device, fast_layout
from nnunet_deconver.ops import recompute as recompute_module


def network(conv_op=nn.Conv3d, *, features=(4, 8, 16), kernels=3, strides=(1, 2, 2), inputs=1, classes=2, **kwargs):
    return Deconver(inputs, len(features), features, conv_op, kernels, strides, classes, **kwargs)


def paper_network(inputs, classes, conv_op, width, stages, kernel, **kwargs):
    """The paper's topology on no memory; its tables count one head, so the lower ones are left out."""
    with torch.device("meta"):
        return network(
            conv_op,
            features=[min(width * 2**level, 512) for level in range(stages)],
            kernels=kernel,
            strides=[1] + [2] * (stages - 1),
            inputs=inputs,
            classes=classes,
            **kwargs,
        )


ISLES = (2, 1, nn.Conv3d, 64, 4)
BRATS = (4, 3, nn.Conv3d, 32, 5)
GLAS = (3, 1, nn.Conv2d, 32, 6)

# configuration, kernel, options, parameters in M, FLOPs/voxel in K without and with NDC's own convolutions
TABLE = [
    pytest.param(ISLES, 3, {}, 10.48, 597.9, 707.4, id="isles-k3-r4"),
    pytest.param(ISLES, 3, {"source_ratio": 2}, 8.66, 479.1, 533.9, id="isles-r2"),
    pytest.param(ISLES, 3, {"source_ratio": 1}, 7.75, 419.7, 447.1, id="isles-r1"),
    pytest.param(ISLES, 3, {"ndc_groups": 8}, 16.19, None, None, id="isles-g8"),
    pytest.param(ISLES, 3, {"ndc_groups": 1}, 57.22, None, None, id="isles-g1"),
    pytest.param(ISLES, 5, {}, 11.03, 597.9, 1104.9, id="isles-k5"),
    pytest.param(BRATS, 3, {}, 10.55, 162.9, 218.0, id="brats-k3"),
    pytest.param(BRATS, 5, {}, 11.13, None, None, id="brats-k5"),
    pytest.param(GLAS, 3, {}, 20.64, 416.0, 442.9, id="glas-k3"),
    pytest.param(GLAS, 5, {}, 20.79, None, 490.7, id="glas-k5"),
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # by different paths
@pytest.mark.parametrize("configuration, kernel, options, parameters, flops, flops_with_ndc", TABLE)
def test_published_parameters_and_flops(
    monkeypatch, configuration, kernel, options, parameters, flops, flops_with_ndc, device
):
    monkeypatch.setattr(recompute_module, "GROUP_ELEMENTS", 10**9)  # parts of a layer do not count as that layer
    model = paper_network(*configuration, kernel, **options)
    lower_heads = sum(p.numel() for head in model.decoder.seg_layers[:-1] for p in head.parameters())
    counted = sum(p.numel() for p in model.parameters()) - lower_heads
    assert round(counted / 1e6, 2) == parameters

    with assume_device(device):
        without, with_ndc = flops_per_voxel(model, configuration[0], configuration[2])
    if flops is not None:
        assert round(without / 1e3, 1) == flops
    if flops_with_ndc is not None:
        assert round(with_ndc / 1e3, 1) == flops_with_ndc


def flops_per_voxel(model, inputs, conv_op):
    size = (64,) * (3 if conv_op is nn.Conv3d else 2)
    with FlopCounterMode(display=False, depth=None) as counter:
        model(torch.empty(1, inputs, *size, device="meta"))
    per_module = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    ndc = sum(flops for name, flops in per_module.items() if name.endswith(".ndc"))
    ndc -= sum(flops for name, flops in per_module.items() if name.endswith(".ndc.source"))
    assert ndc > 0
    return (counter.get_total_flops() - ndc) / math.prod(size), counter.get_total_flops() / math.prod(size)


# conv_op, kernels, strides, input size: what nnU-Net plans for anisotropic data, and strides other than 2
GEOMETRIES = [
    pytest.param(nn.Conv1d, 3, [1, 2, 2], (16,), id="1d"),
    pytest.param(nn.Conv2d, [[3, 3]] * 3, [[1, 1], [2, 2], [2, 2]], (8, 12), id="2d"),
    pytest.param(nn.Conv2d, 5, [1, 3, 2], (12, 18), id="2d-stride-3"),
    pytest.param(nn.Conv3d, 3, [1, 2, 2], (8, 4, 12), id="3d"),
    pytest.param(
        nn.Conv3d, [[1, 3, 3], [1, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]], (6, 8, 12), id="3d-anisotropic"
    ),
    pytest.param(nn.Conv3d, 3, [[1, 1, 1], [1, 4, 3], [3, 1, 2]], (3, 8, 12), id="3d-uneven-strides"),
    pytest.param(nn.Conv3d, 3, [[1, 2, 2], [2, 2, 2], [1, 1, 1]], (4, 8, 8), id="3d-stride-on-entry"),
]


@pytest.mark.parametrize("deep_supervision", [False, True], ids=["plain", "deep-supervision"])
@pytest.mark.parametrize("conv_op, kernels, strides, size", GEOMETRIES)
def test_geometries(conv_op, kernels, strides, size, deep_supervision):
    """Shapes as nnU-Net's own network has them; every parameter gets a gradient."""
    model = network(conv_op, kernels=kernels, strides=strides, inputs=2, classes=3, deep_supervision=deep_supervision)
    reference = PlainConvUNet(
        2, 3, (4, 8, 16), conv_op, 3, strides, 1, 3, 1, deep_supervision=deep_supervision, nonlin=nn.ReLU
    )
    x = torch.randn(2, 2, *size)
    outputs, expected = model(x), reference(x)
    if not deep_supervision:
        outputs, expected = [outputs], [expected]
    assert [o.shape for o in outputs] == [e.shape for e in expected]
    sum(o.square().mean() for o in outputs).backward()
    unused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert unused == (
        [] if deep_supervision else [f"decoder.seg_layers.{i}.{kind}" for i in range(1) for kind in ("weight", "bias")]
    )


def test_deep_supervision_is_switched_on_the_decoder():
    model = network().eval()
    x = torch.randn(1, 1, 8, 8, 8)
    single = model(x)
    model.decoder.deep_supervision = True
    outputs = model(x)
    assert [tuple(o.shape[2:]) for o in outputs] == [(8, 8, 8), (4, 4, 4)]
    torch.testing.assert_close(outputs[0], single)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("conv_op, kernels, strides, size", GEOMETRIES)
def test_feature_map_size_counts_every_convolution(monkeypatch, conv_op, kernels, strides, size, deep_supervision):
    """The sum of the sizes of all outputs of convolutions, as they really run."""
    # The path that runs the convolutions of the equations and no others.
    options = {"classes": 3, "deep_supervision": deep_supervision, "backend": "plain"}
    model = network(conv_op, kernels=kernels, strides=strides, **options)
    counted = []
    for layer in model.modules():
        if isinstance(layer, (nn.modules.conv._ConvNd, type(model.decoder.projections[0]))):
            layer.register_forward_hook(lambda module, inputs, output: counted.append(output.numel()))
    from nnunet_deconver.ops.nonnegative_deconvolution import reference

    inside = reference.same_convolution

    def spy(*args, **kwargs):
        out = inside(*args, **kwargs)
        counted.append(out.numel())
        return out

    monkeypatch.setattr(reference, "same_convolution", spy)
    # Where every layer is called.
    with torch.no_grad(), assume_device("cuda"):
        model(torch.randn(1, 1, *size))
    size_claimed = model.compute_conv_feature_map_size(size)
    assert isinstance(size_claimed, np.int64)
    assert size_claimed == sum(counted)


def test_initialize_leaves_the_design():
    """As nnU-Net applies it: the filters stay Kaiming uniform, the same distribution as after construction."""
    torch.manual_seed(0)
    model = network(features=(16, 32), strides=(1, 2))
    built = {name: p.clone() for name, p in model.named_parameters()}
    model.apply(model.initialize)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, built[name]), name
        if parameter.numel() >= 256:
            assert parameter.abs().max().item() == pytest.approx(built[name].abs().max().item(), rel=0.05), name
            assert parameter.std().item() == pytest.approx(built[name].std().item(), rel=0.15), name


def test_state_dict_has_one_key_per_weight_and_loads_either_way():
    model = network(deep_supervision=True)
    state = model.state_dict()
    assert len(state) == len(list(model.parameters()))
    network(deep_supervision=False).load_state_dict(state)
    assert any(".seg_layers." in key for key in state)


def test_parts_are_where_fine_tuning_tools_look():
    assert_loadable(network())


def test_evaluation_is_deterministic_and_training_too():
    model = network()
    x = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(model.eval()(x), model.train()(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("conv_op, size", [(nn.Conv2d, (16, 16)), (nn.Conv3d, (8, 8, 8))], ids=["2d", "3d"])
def test_autocast_with_black_background(conv_op, size, dtype):
    torch.manual_seed(0)
    model = network(conv_op, deep_supervision=True)
    x = torch.randn(2, 1, *size)
    x[:, :, : size[0] // 2] = 0
    exact = [o.double() for o in model.double()(x.double())]
    model.float()
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(x)
    sum(o.float().square().mean() for o in outputs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    for output, expected in zip(outputs, exact, strict=True):
        assert (output.double() - expected).norm() / expected.norm() < (0.02 if dtype == torch.float16 else 0.15)


def test_a_plan_of_nnunets_network_builds_by_changing_its_name_alone():
    """The keywords of a PlainConvUNet plan are accepted and make the same network as the topology alone."""
    plan = {
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    assert str(network(**plan)) == str(network())
    with pytest.raises(TypeError, match="source_ration"):
        network(source_ration=2)


def test_more_blocks_per_stage():
    model = network(n_blocks_per_stage=[1, 2, 3], n_blocks_per_stage_decoder=2)
    assert [len(stage) for stage in model.encoder.stages] == [1, 2, 3]
    assert [len(stage) for stage in model.decoder.stages] == [2, 2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernels": 4}, "odd"),
        ({"kernels": [[3, 3, 3], [3, 3, 3], [3, 2, 3]]}, "odd"),
        ({"kernels": [3, 3]}, "kernel_sizes must have one entry for each of the 3 stages"),
        ({"kernels": [[3, 3]] * 3}, "kernel_sizes must have 3 positive"),
        ({"strides": [1, 2, 0]}, "strides"),
        ({"features": (4, 8, 0)}, "features_per_stage"),
        ({"ndc_groups": 3}, "groups = 3"),
        ({"ndc_iterations": 0}, "iterations"),
        ({"conv_op": nn.ConvTranspose3d}, "conv_op"),
        ({"n_blocks_per_stage": [1, 1]}, "n_blocks_per_stage"),
        ({"source_ratio": 0.1}, "source_ratio"),
        (
            {"recompute": "auto"},
            r'recompute must be "always", "never", or one .* of the 3 stages, got \'auto\'; planners',
        ),
        ({"recompute": [True, False]}, r"recompute must be .* got \[True, False\]"),
        ({"recompute": [1, 0, 1]}, r"recompute must be .* got \[1, 0, 1\]"),
        ({"recompute": True}, "recompute must be .* got True"),
        ({"recompute": None}, "recompute must be .* got None"),
    ],
    ids=str,
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_more_updates_of_the_deconvolutions_are_an_argument():
    """As in the paper's ablation; by theorem 1 each explains its input better, and the network is another."""
    torch.manual_seed(0)
    one = network()
    three = network_with_weights(one, ndc_iterations=3)
    x = torch.randn(1, 1, 8, 8, 8)
    assert {block.mixer.ndc.iterations for stage in three.encoder.stages for block in stage} == {3}
    assert not torch.allclose(one(x), three(x))
    torch.testing.assert_close(one(x), network_with_weights(one, ndc_iterations=1)(x))


def network_with_weights(model, **arguments):
    other = network(**arguments)
    other.load_state_dict(model.state_dict())
    return other


def test_a_patch_that_the_strides_do_not_divide():
    model = network()
    with pytest.raises(ValueError, match=r"\(8, 10, 8\) must be divisible .* \(4, 4, 4\)"):
        model(torch.randn(1, 1, 8, 10, 8))
    with pytest.raises(ValueError, match="divisible"):
        model.compute_conv_feature_map_size((8, 10, 8))
    with pytest.raises(ValueError, match="3 spatial axes"):
        model(torch.randn(1, 1, 8, 8))


SETTINGS = ["always", "never", [True, False, True], (False, True, False)]


def step(model, x) -> list:
    outputs = model(x)
    loss = sum(output.sin().sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("device", ["elsewhere", "cpu"])  # where memory is short, and where it is slow
@pytest.mark.parametrize("recompute", SETTINGS, ids=str)
def test_what_is_computed_again_changes_no_result(monkeypatch, recompute, device):
    monkeypatch.setattr(recompute_module, "GROUP_ELEMENTS", 4 * 4**3)
    torch.manual_seed(0)
    model = network(deep_supervision=True).double()
    other = network(deep_supervision=True, recompute=recompute).double()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8, 8, dtype=torch.float64)
    with assume_device(device):
        for found, expected in zip(step(other, x), step(model, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("recompute", SETTINGS, ids=str)
def test_the_stages_that_are_named_compute_again(monkeypatch, recompute):
    seen = []
    checkpointed = deconver_block.checkpointed

    def watched(function, x, *further):
        seen.append(x.shape[-1])
        return checkpointed(function, x, *further)

    monkeypatch.setattr(deconver_block, "checkpointed", watched)
    with assume_device("elsewhere"):
        network(recompute=recompute)(torch.randn(1, 1, 8, 8, 8))
    again = {"always": (True,) * 3, "never": (False,) * 3}.get(str(recompute), recompute)
    # Mixer and MLP, on the way down and, but for the lowest stage, on the way up.
    assert {size: seen.count(size) for size in (8, 4, 2)} == {8: 4 * again[0], 4: 4 * again[1], 2: 2 * again[2]}


@pytest.mark.parametrize("recompute", SETTINGS, ids=str)
def test_networks_compile_whatever_is_computed_again(recompute):
    torch.manual_seed(0)
    model = network(nn.Conv2d, features=(8, 8, 8), deep_supervision=True, recompute=recompute)
    x = torch.randn(2, 1, 8, 8)
    with assume_device("elsewhere"):
        expected = step(model, x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        loss = sum(output.sin().sum() for output in compiled(x))
        found = torch.autograd.grad(loss, list(model.parameters()))
    for a, b in zip(found, expected[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_compiled_training_step_on_the_gpu(dtype):
    torch.manual_seed(0)
    model = network(deep_supervision=True).cuda()
    x = torch.randn(2, 1, 16, 16, 16, device="cuda")
    exact = [o.double() for o in model.double()(x.double())]
    model.float()
    compiled = torch.compile(model)
    scaler = torch.amp.GradScaler("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with torch.autocast("cuda", dtype=dtype):
        outputs = compiled(x)
        loss = sum(o.float().square().mean() for o in outputs)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert all(p.isfinite().all() for p in model.parameters())
    for output, expected in zip(outputs, exact, strict=True):
        assert (output.double() - expected).norm() / expected.norm() < 0.15


@pytest.mark.parametrize("rank", [2, 3])
def test_the_decoder_joins_without_putting_side_by_side(rank):
    """The weights are those of a convolution of both, and a skip is kept once."""
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
    model = network(convolution).double()
    joining = model.decoder.projections[-1]
    # As they lie in a network on a CPU.
    images = (fast_layout(torch.randn(2, 4, *(6, 5, 7)[:rank], dtype=torch.float64)) for _ in range(2))
    x, skip = (image.requires_grad_() for image in images)
    plain = convolution(8, 4, 1, bias=False).double()
    plain.load_state_dict(joining.state_dict())
    expected = plain(torch.cat((x, skip), dim=1))
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        found = joining(x, skip)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, [x, skip, joining.weight], gradient),
        torch.autograd.grad(expected, [x, skip, plain.weight], gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    weights = joining.weight.numel()
    assert {pointer for pointer, elements in kept.items() if elements > weights} == {x.data_ptr(), skip.data_ptr()}


def test_the_decoders_projections_start_as_convolutions():
    torch.manual_seed(0)
    expected = nn.Conv2d(8, 4, 1, bias=False).weight
    projection = network(nn.Conv2d).decoder.projections[-1]
    torch.manual_seed(0)
    Deconver.initialize(projection)
    assert torch.equal(projection.weight, expected)
