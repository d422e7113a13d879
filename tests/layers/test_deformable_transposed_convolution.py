import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_deconver.layers.deformable_transposed_convolution import (
    DeformableTransposedConvolution,
    LinearUpsampling,
)
from nnunet_deconver.layers.dysample import DySample, DySampleUpsampling

STRIDES = [
    pytest.param((2, 2), id="2d"),
    pytest.param((1, 3), id="2d-anisotropic"),
    pytest.param((2, 2, 2), id="3d"),
    pytest.param((1, 2, 2), id="3d-anisotropic"),
    pytest.param((1, 1, 1), id="3d-no-upsampling"),
]
BASES = ["transposed", "linear", "dysample"]
MODES = {2: "bilinear", 3: "trilinear"}
SIZES = {2: (5, 8), 3: (3, 5, 4)}
CHANNELS = 4, 3


def layer_and_input(stride, dtype=torch.float64, size=None, **options):
    torch.manual_seed(0)
    layer = DeformableTransposedConvolution(*CHANNELS, stride, **options).to(dtype)
    x = torch.randn(2, CHANNELS[0], *(size or SIZES[len(stride)]), dtype=dtype)
    return layer, x


def randomise_offsets(layer, std=1.0):
    nn.init.normal_(layer.offset.weight, std=std)
    nn.init.normal_(layer.offset.bias, std=std)


def without_base(layer):
    """Leaves the deformable part alone."""
    for parameter in layer.base.parameters():
        nn.init.zeros_(parameter)
    return layer


def passing_through(stride, **options):
    """A layer whose deformable part samples its two or three input channels as they are, and adds nothing."""
    rank = len(stride)
    layer = without_base(DeformableTransposedConvolution(rank, rank, stride, **options).double())
    nn.init.zeros_(layer.projection.bias)
    with torch.no_grad():
        layer.projection.weight.copy_(torch.eye(rank, dtype=torch.float64).view(rank, rank, *[1] * rank))
    return layer


def ramps(size):
    """One channel per axis that counts voxels along it, so that sampling it tells the position."""
    axes = [torch.arange(n, dtype=torch.float64) for n in size]
    return torch.stack(torch.meshgrid(axes, indexing="ij"))[None]


def resolution(x, stride):
    return [s * t for s, t in zip(x.shape[2:], stride, strict=True)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("base", BASES)
def test_without_offsets_it_is_the_base_plus_interpolation(stride, base):
    layer, x = layer_and_input(stride, base=base)
    expected = layer.base(x) + F.interpolate(
        layer.projection(x), size=resolution(x, stride), mode=MODES[len(stride)], align_corners=False
    )
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("receptive_field", [1, 2, 4.0, 10, math.inf])
@pytest.mark.parametrize(
    "weighting, tanh, unit",
    [*itertools.product(["sigmoid", "linear", None], [True, False], ["half_pixel"]), ("sigmoid", True, "pixel")],
)
def test_it_is_the_papers_equation(stride, receptive_field, weighting, tanh, unit):
    """Eq. (1) and (2), written with PyTorch's own grid (affine_grid) and coordinates in its order."""
    options = {} if unit == "half_pixel" else {"offset_unit": unit}  # the paper's formula for lambda is the default
    layer, x = layer_and_input(stride, receptive_field=receptive_field, weighting=weighting, tanh=tanh, **options)
    randomise_offsets(layer)
    rank = len(stride)
    transposed = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    predicted = transposed(x, layer.offset.weight, layer.offset.bias, stride=stride)
    assert predicted.shape[1] == (rank if weighting is None else 2 * rank)
    offset = predicted[:, :rank].tanh() if tanh else predicted[:, :rank]
    weight = {
        "sigmoid": lambda: predicted[:, rank:].sigmoid(),
        "linear": lambda: predicted[:, rank:],
        None: lambda: 1,
    }[weighting]()
    # "1 divided by the size of the input feature map", or a pixel, of which 2 / size fills [-1, 1].
    unit_of = {"half_pixel": lambda n: 1 / n, "pixel": lambda n: 2 / n}[unit]
    limits = [1.0 if math.isinf(receptive_field) else receptive_field / 2 * unit_of(n) for n in x.shape[2:]]
    moved = torch.tensor(limits, dtype=torch.float64).view(1, rank, *[1] * rank) * offset * weight
    identity = torch.eye(rank, rank + 1, dtype=torch.float64).expand(2, -1, -1)
    grid = F.affine_grid(identity, [2, 1, *resolution(x, stride)], align_corners=False)
    grid = grid + moved.flip(1).movedim(1, -1)
    sampled = F.grid_sample(layer.projection(x), grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(layer(x), layer.base(x) + sampled)


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2)], ids=str)
def test_the_two_readings_of_lambda_differ_by_a_factor_of_two(stride):
    """An offset of 1 with the default receptive field, on a ramp: half a voxel by the formula, one by the sentence."""
    for unit, moved in ((None, 0.5), ("half_pixel", 0.5), ("pixel", 1.0)):
        layer = passing_through(stride, **({} if unit is None else {"offset_unit": unit}))
        assert layer.reach == moved
        image = ramps([9] * len(stride))
        before = layer(image)
        with torch.no_grad():
            layer.offset.bias.fill_(1e4)  # tanh and sigmoid are 1
        margin = (..., *(slice(3 * s, -3 * s) for s in stride))
        torch.testing.assert_close(layer(image)[margin], before[margin] + moved)
    with pytest.raises(ValueError, match="offset_unit must be one of 'half_pixel', 'pixel', got 'voxel'"):
        passing_through(stride, offset_unit="voxel")


SHIFTS = [
    # stride, size, receptive field, tanh(offset) * sigmoid(weight) per axis, hand-computed shift in input voxels
    ((2, 2), (8, 12), 2, (0.5, -0.25), (0.25, -0.125)),
    ((1, 2), (12, 8), 4, (0.8, 0.5), (0.8, 0.5)),
    ((2, 1, 3), (10, 14, 12), 10, (0.4, -0.8, 0.2), (1.0, -2.0, 0.5)),
    ((1, 2, 2), (8, 20, 10), math.inf, (0.5, 0.1, -0.2), (2.0, 1.0, -1.0)),
]


@pytest.mark.parametrize("stride, size, receptive_field, moved, shift", SHIFTS, ids=str)
def test_a_constant_offset_shifts_by_the_right_number_of_voxels(stride, size, receptive_field, moved, shift):
    """Shift = relative displacement * receptive_field / 4 voxels; half the size with an infinite one."""
    layer = passing_through(stride, receptive_field=receptive_field)
    with torch.no_grad():
        layer.offset.bias[: len(stride)] = torch.tensor(moved, dtype=torch.float64).atanh()
        layer.offset.bias[len(stride) :] = 1e4  # a factor of 1
    image = ramps(size)
    sampled = layer(image)
    assert sampled.shape[2:] == tuple(n * s for n, s in zip(size, stride, strict=True))
    margin = tuple(slice(3 * s, -3 * s) for s in stride)
    for axis, (n, s) in enumerate(zip(size, stride, strict=True)):
        positions = (torch.arange(n * s, dtype=torch.float64) + 0.5) / s - 0.5
        shape = [1] * len(size)
        shape[axis] = n * s
        expected = (positions + shift[axis]).view(shape).expand(sampled.shape[2:])
        torch.testing.assert_close(sampled[0, axis][margin], expected[margin])


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2)], ids=str)
def test_a_whole_voxel_shift_is_a_translation(stride):
    """On an arbitrary image: every axis in turn by one input voxel, which is `stride` output voxels."""
    size = (5, 7, 6)[-len(stride) :]
    for axis, step in enumerate(stride):
        layer = without_base(DeformableTransposedConvolution(3, 2, stride, receptive_field=8).double())
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        still = layer(x)
        with torch.no_grad():
            # lambda is 2 voxels, and with weight 1/2 an offset of infinity shifts by 1
            layer.offset.bias[axis] = 1e4
        moved = layer(x)
        dimension, length = 2 + axis, still.shape[2 + axis]
        # The last half voxel samples from beyond the last voxel's centre.
        kept = length - step - step // 2
        torch.testing.assert_close(moved.narrow(dimension, 0, kept), still.narrow(dimension, step, kept))


@pytest.mark.parametrize("stride", [(2, 2), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("receptive_field", [1, 2, 4, 10])
def test_no_sample_moves_further_than_a_quarter_of_the_receptive_field(stride, receptive_field):
    """|displacement| <= lambda = rf / 2 / size; a voxel is 2 / size wide: rf / 4 voxels, reached in the limit."""
    size = (16, 9, 12)[: len(stride)]
    image = ramps(size)
    layer = passing_through(stride, receptive_field=receptive_field)
    still = layer(image)
    for scale in (0.3, 3.0, 1e4):
        randomise_offsets(layer, scale)
        furthest = (layer(image) - still).abs().amax()
        assert furthest <= receptive_field / 4 + 1e-12
    with torch.no_grad():
        layer.offset.weight.zero_()
        layer.offset.bias.fill_(1e4)
    moved = (layer(image) - still)[0]
    assert moved.amax().item() == pytest.approx(receptive_field / 4)


@pytest.mark.parametrize("receptive_field", [1, 2, 4, 10])
def test_an_impulse_is_seen_no_further_than_a_quarter_of_the_receptive_field_plus_one_voxel(receptive_field):
    """Linear interpolation touches the voxels less than one away from where it samples."""
    size, stride, centre = (17, 15), (2, 2), (8, 7)
    layer = without_base(DeformableTransposedConvolution(1, 1, stride, receptive_field=receptive_field).double())
    nn.init.constant_(layer.projection.weight, 1)
    nn.init.zeros_(layer.projection.bias)
    impulse = torch.zeros(1, 1, *size, dtype=torch.float64)
    impulse[0, 0, centre[0], centre[1]] = 1
    seen = torch.zeros(34, 30, dtype=torch.bool)
    for signs in itertools.product((-1e4, 1e4), repeat=2):
        with torch.no_grad():
            layer.offset.bias.copy_(torch.tensor([*signs, 1e4, 1e4]))
        seen |= layer(impulse)[0, 0] != 0
    for axis in range(2):
        positions = (seen.nonzero()[:, axis] + 0.5) / 2 - 0.5
        distance = (positions - centre[axis]).abs().max()
        assert receptive_field / 4 < distance < receptive_field / 4 + 1


def test_an_infinite_receptive_field_reaches_half_the_feature_map():
    size = (10, 6)
    layer = passing_through((2, 2), receptive_field="inf")
    with torch.no_grad():
        layer.offset.bias.fill_(1e4)
    sampled = layer(ramps(size))[0]
    # The first output lies at -1/4 and moves by size / 2 = 5 and 3.
    assert sampled[0, 0, 0].item() == pytest.approx(4.75)
    assert sampled[1, 0, 0].item() == pytest.approx(2.75)


@pytest.mark.parametrize(
    "options, channels, limit",
    [
        ({}, 4, 0.5),
        ({"weighting": None}, 2, 0.5),
        ({"weighting": "linear"}, 4, None),
        ({"tanh": False}, 4, None),
        ({"tanh": False, "weighting": None}, 2, None),
        ({"tanh": False, "weighting": "linear"}, 4, None),
    ],
    ids=str,
)
def test_the_ablation_bounds_what_it_says_and_learns(options, channels, limit):
    """Every switch changes the displacement, and none starts where offsets get no gradient."""
    layer = passing_through((2, 2), **options)
    assert layer.offset.out_channels == channels
    image = ramps((12, 12))
    still = layer(image)
    still.square().sum().backward()
    assert (layer.offset.bias.grad[:2] != 0).all()
    with torch.no_grad():
        layer.offset.bias.fill_(2.5)
    moved = (layer(image) - still).amax().item()
    offset = 2.5 if options.get("tanh") is False else math.tanh(2.5)
    weight = {"sigmoid": 1 / (1 + math.exp(-2.5)), "linear": 2.5, None: 1}[options.get("weighting", "sigmoid")]
    assert moved == pytest.approx(0.5 * offset * weight)  # receptive field 2: half a voxel per lambda
    assert (moved < 0.5) == (limit is not None)


@pytest.mark.parametrize("weighting", ["sigmoid", "linear", None])
def test_weights_start_at_a_half(weighting):
    """So that the two ways of weighting start as the same function with the same gradient of the offsets."""
    reference, x = layer_and_input((2, 2))
    layer, _ = layer_and_input((2, 2), weighting=weighting)
    layer.base.load_state_dict(reference.base.state_dict())
    layer.projection.load_state_dict(reference.projection.state_dict())
    layer(x).square().sum().backward()
    reference(x).square().sum().backward()
    factor = 2 if weighting is None else 1
    torch.testing.assert_close(layer(x), reference(x))
    torch.testing.assert_close(layer.offset.bias.grad[:2], factor * reference.offset.bias.grad[:2])


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_gradients(stride, base):
    layer, x = layer_and_input(stride, base=base, size=(3, 2, 3)[: len(stride)])
    # Away from voxel centres, where interpolation has a kink and stride 1 starts.
    nn.init.normal_(layer.offset.weight, std=0.05)
    nn.init.constant_(layer.offset.bias, 0.3)
    x = x[:1].requires_grad_()
    parameters = [p.detach().requires_grad_() for p in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("base", BASES)
def test_every_parameter_gets_a_gradient(stride, base):
    layer, x = layer_and_input(stride, dtype=torch.float32, base=base)
    layer(x).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


# Rounding of features and outputs; a coordinate rounded to half precision is voxels off at this size.
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size, stride", [((512, 4), (2, 2)), ((2, 4, 384), (1, 1, 2))], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_autocast_is_close_to_float64(dtype, size, stride, base):
    layer, x = layer_and_input(stride, dtype=torch.float32, size=size, base=base, receptive_field=2)
    randomise_offsets(layer, 0.5)
    expected = copy.deepcopy(layer).double()(x.double())
    x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert (out.double() - expected).norm() / expected.norm() < TOLERANCE[dtype]
    out.float().mean().backward()
    assert x.grad.isfinite().all()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_coordinates_stay_float32_under_autocast(monkeypatch, dtype):
    layer, x = layer_and_input((2, 2), dtype=torch.float32)
    seen = []
    original = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda x, grid, **kw: seen.append(grid.dtype) or original(x, grid, **kw))
    with torch.autocast("cpu", dtype=dtype):
        assert layer.projection(x).dtype == dtype
        assert layer.relative_displacement(x).dtype == torch.float32
        layer(x.to(dtype))
    assert seen == [torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_autocast_on_the_gpu(dtype, base):
    layer, x = layer_and_input((1, 2, 2), dtype=torch.float32, size=(4, 8, 256), base=base)
    randomise_offsets(layer, 0.5)
    expected = copy.deepcopy(layer).double()(x.double())
    layer, x = layer.cuda(), x.cuda().requires_grad_()
    layer.check_device("cuda")
    with torch.autocast("cuda", dtype=dtype):
        out = layer(x)
    out.float().mean().backward()
    assert out.dtype == dtype
    assert (out.double().cpu() - expected).norm() / expected.norm() < TOLERANCE[dtype]
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_shapes_without_data(stride, base):
    """Trainers send a patch through on the meta device, memory estimates through fake tensors."""
    rank = len(stride)
    size = (6, 8, 10)[:rank]
    expected = (2, 3, *(n * s for n, s in zip(size, stride, strict=True)))
    with torch.device("meta"):
        layer = DeformableTransposedConvolution(4, 3, stride, base=base)
        assert layer(torch.empty(2, 4, *size)).shape == expected
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(torch.empty(2, 4, *size)).shape == expected
    with FakeTensorMode():
        layer = DeformableTransposedConvolution(4, 3, stride, base=base)
        out = layer(torch.empty(2, 4, *size))
        assert out.shape == expected
        out.sum().backward()


@pytest.mark.parametrize("base", BASES)
def test_the_state_is_the_parameters(base):
    layer, x = layer_and_input((1, 2, 2), base=base)
    randomise_offsets(layer)
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    torch.manual_seed(1)
    other = DeformableTransposedConvolution(*CHANNELS, (1, 2, 2), base=base).double()
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_evaluation_is_deterministic():
    layer, x = layer_and_input((2, 2, 2), dtype=torch.float32, base="dysample")
    randomise_offsets(layer)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_parameters():
    """The base's, a 1x1 convolution, and 2 g channels of a transposed convolution with kernel = stride."""
    layer = DeformableTransposedConvolution(64, 32, (1, 2, 2))
    base = 64 * 32 * 4 + 32
    assert sum(p.numel() for p in layer.base.parameters()) == base
    assert sum(p.numel() for p in layer.parameters()) == base + (64 * 32 + 32) + (64 * 6 * 4 + 6)


@pytest.mark.parametrize("weighting", ["sigmoid", "linear"])
def test_the_start_survives_nnunets_initialisation(weighting):
    """nnU-Net re-initialises every convolution, children first; a module may then restore its own start."""
    layer, x = layer_and_input((2, 2, 2), weighting=weighting)

    def initialise(module):
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=1e-2)
            nn.init.constant_(module.bias, 7)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()

    nn.Sequential(layer).apply(initialise)
    assert (layer.base.bias == 7).all()
    assert (layer.offset.weight == 0).all()
    assert (layer.offset.bias[:3] == 0).all()
    assert (layer.offset.bias[3:] == (0.5 if weighting == "linear" else 0)).all()
    assert layer.projection.weight.abs().max() <= 0.5  # PyTorch's own: uniform within 1 / sqrt(4 channels)
    expected = layer.base(x) + F.interpolate(layer.projection(x), scale_factor=2, mode="trilinear")
    torch.testing.assert_close(layer(x), expected)


class Repeat(nn.Module):
    def __init__(self, stride, channels=3):
        super().__init__()
        self.stride, self.channels = stride, channels

    def forward(self, x):
        x = x[:, : self.channels]
        for axis, s in enumerate(self.stride):
            x = x.repeat_interleave(s, dim=2 + axis)
        return x


def test_any_module_can_be_the_base():
    layer, x = layer_and_input((1, 2), base=Repeat((1, 2)))
    interpolated = F.interpolate(layer.projection(x), size=(5, 16), mode="bilinear")
    torch.testing.assert_close(layer(x), Repeat((1, 2))(x) + interpolated)


@pytest.mark.parametrize("base", [Repeat((2, 2)), Repeat((1, 1)), Repeat((1, 2), channels=2)], ids=str)
def test_a_base_that_does_not_fit(base):
    layer, x = layer_and_input((1, 2), base=base)
    with pytest.raises(ValueError, match=r"base Repeat must map \(2, 4, 5, 8\) to \(2, 3, 5, 16\)"):
        layer(x)


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("weighting", ["sigmoid", None])
@pytest.mark.parametrize("base", [*BASES, "dynamic-dysample"])
def test_the_size_of_convolution_outputs_is_what_hooks_count(stride, weighting, base):
    if base == "dynamic-dysample":
        base = DySampleUpsampling(*CHANNELS, stride, dynamic_scope=True)
    layer, x = layer_and_input(stride, base=base, weighting=weighting)
    counted = []
    for module in layer.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            module.register_forward_hook(lambda module, inputs, output: counted.append(output[0].numel()))
    layer(x)
    size = layer.compute_conv_feature_map_size(x.shape[2:])
    assert isinstance(size, np.int64)
    assert size == sum(counted)


def test_the_size_of_a_foreign_base_counts_as_its_output():
    layer = DeformableTransposedConvolution(4, 3, (1, 2), base=Repeat((1, 2)))
    assert layer.compute_conv_feature_map_size((5, 8)) == (3 + 4) * 80 + 3 * 40
    with pytest.raises(ValueError, match="2 spatial axes"):
        layer.compute_conv_feature_map_size((5, 8, 4))
    with pytest.raises(ValueError, match="2 spatial axes"):
        LinearUpsampling(4, 3, (1, 2)).compute_conv_feature_map_size((5, 8, 4))


def test_repr_tells_the_configuration():
    text = repr(DeformableTransposedConvolution(8, 4, (1, 2, 2), base="dysample", receptive_field=math.inf))
    for part in ("8, 4", "stride=(1, 2, 2)", "receptive_field=inf", "tanh=True", "weighting='sigmoid'", "DySample("):
        assert part in text
    assert "stride=(1, 2)" in repr(LinearUpsampling(8, 4, (1, 2)))


@pytest.mark.parametrize("base", BASES)
def test_devices_are_checked_before_training(monkeypatch, base):
    layer = DeformableTransposedConvolution(4, 3, (2, 2, 2), base=base)
    layer.check_device("cpu")
    layer.check_device(torch.device("meta"))

    def missing(*args, **kwargs):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(F, "grid_sample", missing)
    with pytest.raises(ValueError, match="grid_sample in 3 dimensions"):
        layer.check_device("cpu")


def test_the_bases_are_checked_too(monkeypatch):
    def missing(*args, **kwargs):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(F, "interpolate", missing)
    with pytest.raises(ValueError, match="trilinear interpolation in 3 dimensions"):
        DeformableTransposedConvolution(4, 3, (2, 2, 2), base="linear").check_device("cpu")


@pytest.mark.parametrize("stride", STRIDES)
def test_linear_upsampling_is_interpolation_and_projection(stride):
    torch.manual_seed(0)
    layer = LinearUpsampling(4, 3, stride).double()
    x = torch.randn(2, 4, *SIZES[len(stride)], dtype=torch.float64)
    upsampled = F.interpolate(x, size=resolution(x, stride), mode=MODES[len(stride)], align_corners=False)
    torch.testing.assert_close(layer(x), layer.projection(upsampled))


# DySample alone goes the same way through the compiler.
@pytest.mark.slow
@pytest.mark.parametrize(
    "stride, base, dynamic",
    [
        ((2, 2), "dysample", None),
        ((1, 2, 2), "transposed", None),
        ((1, 2, 2), "linear", None),
        ((2, 2, 2), "transposed", True),
    ],
    ids=str,
)
def test_compiled_without_graph_breaks(stride, base, dynamic):
    torch.compiler.reset()
    layer, x = layer_and_input(stride, dtype=torch.float32, base=base)
    randomise_offsets(layer, 0.5)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    expected = layer(x)
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    out = compiled(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    out.square().mean().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stride": 2}, "one positive whole number per spatial axis"),
        ({"stride": (2,)}, "stride"),
        ({"stride": (2, 2, 2, 2)}, "stride"),
        ({"stride": (0, 2)}, "stride"),
        ({"stride": (2, 1.5)}, "stride"),
        ({"stride": (2, None)}, "stride"),
        ({"stride": "22"}, "stride"),
        ({"base": "bilinear"}, "transposed, linear, dysample.*'bilinear'"),
        ({"base": None}, "transposed, linear, dysample"),
        ({"base": nn.Identity}, "transposed, linear, dysample"),
        ({"base": "dysample", "in_channels": 6}, "groups = 4"),
        ({"receptive_field": 0}, "receptive_field must be a positive number or inf, got 0"),
        ({"receptive_field": -2.0}, "receptive_field"),
        ({"receptive_field": -math.inf}, "receptive_field"),
        ({"receptive_field": math.nan}, "receptive_field"),
        ({"receptive_field": None}, "receptive_field"),
        ({"receptive_field": True}, "receptive_field"),
        ({"receptive_field": "2"}, "receptive_field"),
        ({"weighting": "softmax"}, "weighting must be one of 'sigmoid', 'linear', None"),
    ],
    ids=str,
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformableTransposedConvolution(**({"in_channels": 8, "out_channels": 4, "stride": (2, 2)} | arguments))


@pytest.mark.parametrize(
    "layer",
    [DeformableTransposedConvolution(4, 3, (2, 2)), LinearUpsampling(4, 3, (2, 2)), DySample(4, (2, 2))],
    ids=lambda layer: type(layer).__name__,
)
def test_input_of_another_rank(layer):
    with pytest.raises(ValueError, match="2 spatial axes"):
        layer(torch.zeros(1, 4, 3, 3, 3))
