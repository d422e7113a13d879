"""What holds for nonnegative deconvolution and for every layer, whatever their sizes, options and inputs.

How many examples, tests/conftest.py says; `make soak` runs these for long, with other seeds. All in float64, on the
CPU's path and on the one that other devices fall back to.
"""

import copy
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nnunet_deconver.layers import DeconverBlock
from nnunet_deconver.layers.common import CONVOLUTIONS, CountsFeatures, transposed_convolution
from nnunet_deconver.layers.components import SEGMENTATION_HEADS, UPSAMPLINGS
from nnunet_deconver.layers.instance_norm import InstanceNorm
from nnunet_deconver.ops import device, nonnegative_deconvolution, same_convolution

# By option of the components; a new option has to come here.
OPTIONS = {
    "base": st.sampled_from(["transposed", "linear", "dysample"]),
    "receptive_field": st.sampled_from([0.5, 1, 2, 4, 10, 100, "inf"]),
    "tanh": st.booleans(),
    "weighting": st.sampled_from(["sigmoid", "linear", None]),
    "groups": st.sampled_from([1, 2, 4]),
    "offset_unit": st.sampled_from(["half_pixel", "pixel"]),
    "style": st.sampled_from(["lp", "pl"]),
    "dynamic_scope": st.booleans(),
    "bias": st.booleans(),
    "hidden_channels": st.integers(1, 9),
    "hidden_layers": st.integers(1, 3),
}
ELSEWHERE = patch.dict(device._POLICIES, {"cpu": device._ELSEWHERE})


def random_like(generator, shape, zeros=0.0):
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.masked_fill(torch.rand(shape, generator=generator) < zeros, 0)


def close(found, expected, tolerance=1e-9):
    return (found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


@st.composite
def deconvolutions(draw):
    """Arguments of the operation: x, source and filter, not negative, with zeros; and the options."""
    rank = draw(st.integers(1, 3))
    size = draw(st.lists(st.integers(1, 6), min_size=rank, max_size=rank))
    kernel = draw(st.lists(st.sampled_from([1, 3, 5]), min_size=rank, max_size=rank))
    groups, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    channels, batch = groups * draw(st.integers(1, 3)), draw(st.integers(1, 3))
    zeros = draw(st.sampled_from([0.0, 0.0, 0.5, 0.95]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**40)))
    x = random_like(generator, (batch, channels, *size), zeros).abs()
    source = random_like(generator, (batch, channels * ratio, *size), zeros).abs()
    filter = random_like(generator, (channels, channels * ratio // groups, *kernel), zeros).abs()
    return x, source, filter, {"groups": groups, "eps": draw(st.sampled_from([1e-4, 1e-8, 1e-12]))}


@given(deconvolutions(), st.integers(1, 3))
def test_an_update_is_nonnegative_and_never_takes_the_reconstruction_further_away(problem, iterations):
    x, source, filter, options = problem

    def residual(source):
        return (x - same_convolution(source, filter, groups=options["groups"])).square().sum()

    updated = nonnegative_deconvolution(x, source, filter, iterations=iterations, **options)
    assert updated.isfinite().all() and (updated >= 0).all()
    before = residual(source)
    assert residual(updated) <= before + 1e-9 * max(1.0, before)


@given(deconvolutions())
def test_a_source_that_explains_the_input_stays(problem):
    _, source, filter, options = problem
    x = same_convolution(source, filter, groups=options["groups"])
    assert close(nonnegative_deconvolution(x, source, filter, **options), source)


@given(deconvolutions(), st.integers(-20, 20))
def test_the_source_is_as_bright_as_the_input(problem, exponent):
    x, source, filter, options = problem
    factor = 2.0**exponent
    scaled = nonnegative_deconvolution(
        factor * x, factor * source, filter, groups=options["groups"], eps=factor * options["eps"]
    )
    assert close(scaled / factor, nonnegative_deconvolution(x, source, filter, **options), 1e-12)


@given(deconvolutions())
def test_a_mirrored_problem_has_the_mirrored_solution(problem):
    x, source, filter, options = problem
    axes = tuple(range(2, x.ndim))
    mirrored = nonnegative_deconvolution(x.flip(axes), source.flip(axes), filter.flip(axes), **options)
    assert close(mirrored.flip(axes), nonnegative_deconvolution(x, source, filter, **options))


@given(deconvolutions(), st.data())
def test_in_float32_the_update_is_the_same_to_rounding(problem, data):
    # Away from zero: what float32 can do near it, tests/ops/test_numerics.py says.
    x, source, filter, options = problem
    x, source, filter = (tensor.clamp(0.1, 3) for tensor in (x, source, filter))
    options["eps"] = 1e-8
    found = nonnegative_deconvolution(x.float(), source.float(), filter.float(), **options)
    assert close(found.double(), nonnegative_deconvolution(x, source, filter, **options), 1e-5)


@st.composite
def layers(draw, kind):
    """A layer of this kind in float64 with random weights, an input, the shape of the output, and what it replaces."""
    rank = draw(st.sampled_from([2, 3]))
    size = draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank))
    if kind not in UPSAMPLINGS.choices and math.prod(size) == 1:
        size[0] = 2  # a single voxel cannot be normalised, which other tests say
    channels, out = 4 * draw(st.integers(1, 2)), draw(st.integers(1, 5))
    batch = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**40)))
    plain, grown = None, size
    if kind in UPSAMPLINGS.choices or kind in SEGMENTATION_HEADS.choices:
        components = UPSAMPLINGS if kind in UPSAMPLINGS.choices else SEGMENTATION_HEADS
        component = components.choices[kind]
        entry = {"name": kind} | {
            name: draw(OPTIONS[name], label=name) for name in component.options if draw(st.booleans())
        }
        components.check(entry)
        if components is UPSAMPLINGS:
            stride = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
            grown = [s * t for s, t in zip(size, stride, strict=True)]
            if channels % math.prod(stride):
                entry.pop("style", None)  # "pl" shuffles channels to positions
            layer, plain = components.build(entry, channels, out, stride), transposed_convolution(channels, out, stride)
        else:
            layer, plain = components.build(entry, channels, out, rank), CONVOLUTIONS[rank](channels, out, 1)
        # What cannot take over a transposed convolution, or a bias.
        if not component.can_start_as_plain or entry.get("base", "transposed") != "transposed":
            plain = None
        elif entry.get("bias", kind != "nerdm") is False:
            plain = CONVOLUTIONS[rank](channels, out, 1, bias=False)
    elif kind == "block":
        out, kernel = channels, draw(st.lists(st.sampled_from([1, 3, 5]), min_size=rank, max_size=rank))
        ratio, groups = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([None, 1, 2]))
        layer = DeconverBlock(channels, kernel, ratio, groups, draw(st.integers(1, 2)), draw(st.sampled_from([1, 4])))
    else:
        out, layer = channels, InstanceNorm(draw(st.sampled_from([None, channels])))
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * random_like(generator, parameter.shape)
    x = random_like(generator, (batch, channels, *size), draw(st.sampled_from([0.0, 0.9])))
    return layer, x, (batch, out, *grown), plain and plain.double()


KINDS = [*UPSAMPLINGS.choices, *SEGMENTATION_HEADS.choices, "block", "norm of instances"]


def gradients(layer, x, weights):
    x = x.clone().requires_grad_()
    output = layer(x)
    found = torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()], allow_unused=True)
    return output.detach(), [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_layer(kind, data):
    layer, x, shape, plain = data.draw(layers(kind))
    weights = random_like(torch.Generator().manual_seed(0), shape)
    output, found = gradients(layer, x, weights)
    assert output.shape == shape and output.dtype == torch.float64 and output.isfinite().all()
    assert len(found) == 1 + len(list(layer.parameters())) and all(each.isfinite().all() for each in found)
    # An image's result does not depend on the others of its batch.
    assert close(torch.cat([layer(image[None]) for image in x]), output)
    # Nor on the path.
    with ELSEWHERE:
        elsewhere, differentiated = gradients(layer, x, weights)
    assert close(elsewhere, output)
    assert all(close(a, b, 1e-7) for a, b in zip(differentiated, found, strict=True))
    # A copy from a checkpoint computes the same.
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        nn.init.constant_(parameter, 0.5)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), output)
    if isinstance(layer, CountsFeatures):
        assert layer.compute_conv_feature_map_size(x.shape[2:]) > 0
    if plain is not None:
        assert isinstance(plain, nn.Module)
        layer.start_as(plain)
        assert close(layer(x), plain(x), 1e-12)
