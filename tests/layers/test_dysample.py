import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_deconver.layers.dysample import DySample, DySampleUpsampling

STRIDES = [
    pytest.param((2, 2), id="2d"),
    pytest.param((1, 3), id="2d-anisotropic"),
    pytest.param((2, 2, 2), id="3d"),
    pytest.param((1, 2, 2), id="3d-anisotropic"),
]
MODES = {2: "bilinear", 3: "trilinear"}
SIZES = {2: (4, 7), 3: (3, 4, 5)}
VARIANTS = pytest.mark.parametrize(
    "style, dynamic_scope",
    [("lp", False), ("lp", True), ("pl", False), ("pl", True)],
    ids=["lp", "lp-dynamic", "pl", "pl-dynamic"],
)


def layer_and_input(stride, dtype=torch.float64, channels=24, **options):
    torch.manual_seed(0)
    layer = DySample(channels, stride, **options).to(dtype)
    return layer, torch.randn(2, channels, *SIZES[len(stride)], dtype=dtype)


def randomise(layer, std=0.5):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=std)


def ramps(size, repeats):
    """Channels that count voxels along each axis in turn, `repeats` times."""
    axes = [torch.arange(n, dtype=torch.float64) for n in size]
    return torch.stack(torch.meshgrid(axes, indexing="ij")).repeat(repeats, *[1] * len(size))[None]


@VARIANTS
@pytest.mark.parametrize("stride", STRIDES)
def test_without_offsets_it_is_interpolation(stride, style, dynamic_scope):
    layer, x = layer_and_input(stride, style=style, dynamic_scope=dynamic_scope)
    nn.init.zeros_(layer.offset.weight)
    size = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    expected = F.interpolate(x, size=size, mode=MODES[len(stride)], align_corners=False)
    torch.testing.assert_close(layer(x), expected)


def test_the_initial_positions_are_the_papers():
    """Stride 2: a quarter of a voxel to either side of the input voxel's centre; stride 3: a third, and the centre."""
    layer = DySample(2, (2, 3), groups=1).double()
    nn.init.zeros_(layer.offset.weight)
    sampled = layer(ramps((5, 5), 1))[0]
    centre = 2
    assert sampled[0, 4:6, 0].tolist() == pytest.approx([centre - 0.25, centre + 0.25])
    assert sampled[1, 0, 6:9].tolist() == pytest.approx([centre - 1 / 3, centre, centre + 1 / 3])


@VARIANTS
def test_it_starts_as_the_paper(style, dynamic_scope):
    torch.manual_seed(0)
    layer = DySample(1024, (2, 2), groups=8, style=style, dynamic_scope=dynamic_scope)
    assert layer.offset.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert (layer.offset.bias == 0).all()
    static = DySample(1024, (2, 2), groups=8, style=style)
    static.load_state_dict(layer.state_dict(), strict=not dynamic_scope)
    x = torch.randn(1, 1024, 3, 4)
    torch.testing.assert_close(layer(x), static(x))  # a dynamic scope starts at 0.25
    if dynamic_scope:
        assert layer.scope.bias is None and (layer.scope.weight == 0).all()


def test_the_start_survives_nnunets_initialisation():
    layer = DySampleUpsampling(64, 4, (2, 2), dynamic_scope=True)

    def initialise(module):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=1e-2)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()

    layer.apply(initialise)
    assert layer.sample.offset.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert (layer.sample.scope.weight == 0).all()


@pytest.mark.parametrize("scale", [2, 3])
@VARIANTS
def test_in_two_dimensions_it_is_the_papers_equations(scale, style, dynamic_scope):
    """Section 3 written with PyTorch's 2D operations only, in pixels at the input's resolution."""
    groups, channels = 2, 36
    options = {"groups": groups, "style": style, "dynamic_scope": dynamic_scope}
    layer, x = layer_and_input((scale, scale), channels=channels, **options)
    randomise(layer, 0.2)
    batch, _, height, width = x.shape
    shuffled = F.pixel_shuffle(x, scale) if style == "pl" else x
    offset, scope = layer.offset(shuffled), 0.25
    if dynamic_scope:
        scope = 0.5 * layer.scope(shuffled).sigmoid()
    offset = offset * scope
    if style == "lp":
        offset = F.pixel_shuffle(offset, scale)
    offset = offset.view(batch, groups, 2, scale * height, scale * width)
    rows = (torch.arange(scale * height, dtype=torch.float64)[:, None] + 0.5) / scale
    columns = (torch.arange(scale * width, dtype=torch.float64) + 0.5) / scale
    grid = torch.stack([2 * (columns + offset[:, :, 1]) / width - 1, 2 * (rows + offset[:, :, 0]) / height - 1], dim=-1)
    expected = torch.cat(
        [
            F.grid_sample(part, grid[:, g], padding_mode="border", align_corners=False)
            for g, part in enumerate(x.split(channels // groups, dim=1))
        ],
        dim=1,
    )
    torch.testing.assert_close(layer(x), expected)


@VARIANTS
@pytest.mark.parametrize("scale", [2, 3])
def test_in_three_dimensions_with_a_trivial_axis_it_is_two_dimensional(scale, style, dynamic_scope):
    """One slice that is not upsampled: the third component of the displacement has nowhere to go."""
    groups, channels = 3, 36
    flat, x = layer_and_input(
        (scale, scale), groups=groups, style=style, dynamic_scope=dynamic_scope, channels=channels
    )
    randomise(flat, 0.2)
    deep = DySample(channels, (1, scale, scale), groups=groups, style=style, dynamic_scope=dynamic_scope).double()
    randomise(deep, 0.2)
    positions = scale**2 if style == "lp" else 1
    for name, values in flat.named_parameters():
        with torch.no_grad():
            rows = getattr(deep, name.split(".")[0]).get_parameter(name.split(".")[1])
            by_axis = rows.view(groups, 3, positions, *rows.shape[1:])
            by_axis[:, 1:] = values.view(groups, 2, positions, *values.shape[1:], *[1] * (values.ndim > 1))
    torch.testing.assert_close(deep(x[:, :, None]), flat(x)[:, :, None])


@pytest.mark.parametrize("stride", STRIDES)
def test_groups_shift_their_channels_independently(stride):
    """A constant offset of one group and axis moves that group's channels along that axis, by 0.25 voxels each unit."""
    rank, groups = len(stride), 2
    layer = DySample(rank * groups, stride, groups=groups).double()
    nn.init.zeros_(layer.offset.weight)
    image = ramps((7, 8, 9)[:rank], groups)
    still = layer(image)
    for group in range(groups):
        for axis in range(rank):
            nn.init.zeros_(layer.offset.bias)
            with torch.no_grad():
                layer.offset.bias.view(groups, rank, -1)[group, axis] = 2
            inside = [slice(2 * s, -2 * s) for s in stride]
            moved = (layer(image) - still)[0][(slice(None), *inside)].unflatten(0, (groups, rank))
            expected = torch.zeros_like(moved)
            expected[group, axis] = 0.5
            torch.testing.assert_close(moved, expected)


def test_the_scope_scales_the_offset():
    """0.25 of it; a dynamic scope stays between 0 and 0.5."""
    static, x = layer_and_input((2, 2))
    dynamic, _ = layer_and_input((2, 2), dynamic_scope=True)
    randomise(static, 3)
    offset = F.pixel_shuffle(static.offset(x), 2).view(2, 4, 2, 8, 14)
    torch.testing.assert_close(static.displacement(x), 0.25 * offset)
    for scope in (0.1, 3.0, 1e4):
        nn.init.normal_(dynamic.scope.weight, std=scope)
        dynamic.offset.load_state_dict(static.offset.state_dict())
        ratio = dynamic.displacement(x) / offset
        assert ratio.min() >= 0 and ratio.max() <= 0.5
    assert ratio.min() == 0 and ratio.max().item() == pytest.approx(0.5)


@VARIANTS
@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2)], ids=str)
def test_gradients(stride, style, dynamic_scope):
    torch.manual_seed(0)
    layer = DySample(4, stride, groups=2, style=style, dynamic_scope=dynamic_scope).double()
    randomise(layer, 0.05)
    nn.init.constant_(layer.offset.bias, 0.4)  # away from voxel centres, where interpolation has a kink
    x = torch.randn(1, 4, *(1, 2, 3)[-len(stride) :], dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().requires_grad_() for p in layer.parameters()]

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


@VARIANTS
@pytest.mark.parametrize("stride", STRIDES)
def test_every_parameter_gets_a_gradient(stride, style, dynamic_scope):
    torch.manual_seed(0)
    layer = DySampleUpsampling(24, 5, stride, style=style, dynamic_scope=dynamic_scope)
    out = layer(torch.randn(2, 24, *SIZES[len(stride)]))
    assert out.shape == (2, 5, *(n * s for n, s in zip(SIZES[len(stride)], stride, strict=True)))
    out.square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("dynamic_scope", [False, True])
def test_autocast_is_close_to_float64(dtype, tolerance, dynamic_scope):
    """Along 512 voxels a half-precision coordinate would be voxels off."""
    torch.manual_seed(0)
    layer = DySampleUpsampling(8, 4, (2, 2), dynamic_scope=dynamic_scope)
    randomise(layer, 0.3)
    x = torch.randn(1, 8, 512, 4)
    expected = copy.deepcopy(layer).double()(x.double())
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
        assert layer.sample(x.to(dtype)).dtype == dtype
        assert layer.sample.displacement(x).dtype == torch.float32
    assert out.dtype == dtype
    assert (out.double() - expected).norm() / expected.norm() < tolerance


@VARIANTS
@pytest.mark.parametrize("stride", STRIDES)
def test_the_size_of_convolution_outputs_is_what_hooks_count(stride, style, dynamic_scope):
    layer = DySampleUpsampling(24, 5, stride, style=style, dynamic_scope=dynamic_scope)
    counted = []
    for module in layer.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.register_forward_hook(lambda module, inputs, output: counted.append(output[0].numel()))
    layer(torch.randn(2, 24, *SIZES[len(stride)]))
    size = layer.compute_conv_feature_map_size(SIZES[len(stride)])
    assert isinstance(size, np.int64)
    assert size == sum(counted)


@VARIANTS
def test_the_state_is_the_parameters(style, dynamic_scope):
    layer, x = layer_and_input((1, 2, 2), style=style, dynamic_scope=dynamic_scope)
    randomise(layer)
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    other = DySample(24, (1, 2, 2), style=style, dynamic_scope=dynamic_scope).double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(x), layer(x))


@VARIANTS
def test_shapes_on_the_meta_device(style, dynamic_scope):
    with torch.device("meta"):
        layer = DySample(8, (1, 2, 2), style=style, dynamic_scope=dynamic_scope)
        assert layer(torch.empty(1, 8, 4, 5, 6)).shape == (1, 8, 4, 10, 12)


def test_devices_are_checked_before_training(monkeypatch):
    layer = DySampleUpsampling(4, 3, (2, 2, 2))
    layer.check_device("cpu")

    def missing(*args, **kwargs):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(F, "grid_sample", missing)
    with pytest.raises(ValueError, match="grid_sample in 3 dimensions"):
        layer.check_device("cpu")


def test_repr_tells_the_configuration():
    text = repr(DySample(8, (1, 2), groups=2, style="pl", dynamic_scope=True))
    assert "8, stride=(1, 2), groups=2, style='pl', dynamic_scope=True" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stride": 2}, "stride"),
        ({"stride": (2, 0)}, "stride"),
        ({"groups": 3}, "groups = 3 must be a positive divisor of the 8 channels"),
        ({"groups": 0}, "groups = 0"),
        ({"groups": -2}, "groups = -2"),
        ({"style": "pp"}, "lp, pl.*'pp'"),
        ({"style": "pl", "stride": (3, 3)}, "multiple of the 9 positions"),
    ],
    ids=str,
)
def test_bad_input(arguments, message):
    arguments = {"channels": 8, "stride": (2, 2)} | arguments
    channels, stride = arguments.pop("channels"), arguments.pop("stride")
    with pytest.raises(ValueError, match=message):
        DySample(channels, stride, **arguments)
    with pytest.raises(ValueError, match=message):
        DySampleUpsampling(channels, 4, stride, **arguments)
