import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_deconver.ops import cpu_kernels
from nnunet_deconver.ops.displaced_sampling import (
    check_sampling_device,
    pixel_shuffle,
    sample_displaced,
)

# Spatial size of the features, stride of the output.
GEOMETRIES = [
    pytest.param((5, 8), (2, 2), id="2d"),
    pytest.param((7, 4), (1, 3), id="2d-anisotropic"),
    pytest.param((3, 5, 4), (2, 2, 2), id="3d"),
    pytest.param((4, 3, 6), (1, 2, 3), id="3d-anisotropic"),
    pytest.param((1, 3, 5), (1, 2, 2), id="3d-one-slice"),
]
MODES = {2: "bilinear", 3: "trilinear"}


def voxels(*size):
    """The scale that makes displacements count voxels."""
    return [2 / s for s in size]


def upsampled(size, stride):
    return [s * t for s, t in zip(size, stride, strict=True)]


def interpolated_by_hand(image, position):
    """Linear interpolation of one channel at a position in voxels, written out; beyond the border its value."""
    position = [min(max(p, 0), n - 1) for p, n in zip(position, image.shape, strict=True)]
    value = 0.0
    for corner in itertools.product((0, 1), repeat=len(position)):
        where = [min(math.floor(p) + c, n - 1) for p, c, n in zip(position, corner, image.shape, strict=True)]
        weights = [p % 1 if c else 1 - p % 1 for p, c in zip(position, corner, strict=True)]
        value += math.prod(weights) * image[tuple(where)].item()
    return value


@pytest.mark.parametrize("size, stride", GEOMETRIES)
@pytest.mark.parametrize("groups", [1, 2])
def test_without_displacement_it_is_interpolation(size, stride, groups):
    torch.manual_seed(0)
    features = torch.randn(2, 4, *size, dtype=torch.float64)
    target = upsampled(size, stride)
    displacement = torch.zeros(2, groups, len(size), *target, dtype=torch.float64)
    expected = F.interpolate(features, size=target, mode=MODES[len(size)], align_corners=False)
    torch.testing.assert_close(sample_displaced(features, displacement, voxels(*size)), expected)


@pytest.mark.parametrize("size, stride", GEOMETRIES)
def test_every_sample_is_where_it_should_be(size, stride):
    """Output j samples at (j + 1/2) / stride - 1/2 + displacement input voxels, along each axis."""
    torch.manual_seed(0)
    features = torch.randn(2, 4, *size, dtype=torch.float64)
    target = upsampled(size, stride)
    displacement = torch.randn(2, 2, len(size), *target, dtype=torch.float64)
    sampled = sample_displaced(features, displacement, voxels(*size))
    for batch, channel in ((0, 0), (1, 3)):
        for j in itertools.product(*map(range, target)):
            moved = displacement[(batch, channel // 2, slice(None), *j)].tolist()
            position = [(k + 0.5) / t - 0.5 + d for k, t, d in zip(j, stride, moved, strict=True)]
            expected = interpolated_by_hand(features[batch, channel], position)
            assert sampled[(batch, channel, *j)].item() == pytest.approx(expected, abs=1e-12)


def test_the_scale_is_per_axis_in_the_features_order():
    """Ramps along each axis tell which axis was moved, and how far."""
    size = (6, 9, 12)
    axes = [torch.arange(n, dtype=torch.float64) for n in size]
    ramps = torch.stack(torch.meshgrid(axes, indexing="ij"))[None]
    displacement = torch.ones(1, 1, 3, *size, dtype=torch.float64)
    moved = sample_displaced(ramps, displacement, [2 * 0.25 / 6, 2 * 1.5 / 9, -2 * 2.0 / 12]) - ramps
    inside = moved[0, :, 1:-2, 2:-3, 3:-3]
    for axis, shift in enumerate((0.25, 1.5, -2.0)):
        torch.testing.assert_close(inside[axis], torch.full_like(inside[axis], shift))


def test_groups_move_their_own_channels_only():
    torch.manual_seed(0)
    features = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    displacement = torch.zeros(1, 3, 2, 10, 14, dtype=torch.float64)
    still = sample_displaced(features, displacement, voxels(5, 7))
    displacement[:, 1] = 0.7
    moved = sample_displaced(features, displacement, voxels(5, 7))
    changed = (still != moved).flatten(2).any(dim=2)[0]
    assert changed.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("size, stride", GEOMETRIES)
def test_gradients(size, stride):
    torch.manual_seed(0)
    features = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    # Small enough to cross neither a voxel centre nor the border, where interpolation has a kink, but for axes
    # sampled on voxel centres, which are moved clear of them first.
    displacement = 0.1 + 0.02 * torch.randn(1, 2, len(size), *upsampled(size, stride), dtype=torch.float64)
    inputs = features, displacement.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, d: sample_displaced(x, d, voxels(*size)), inputs, fast_mode=True)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_half_precision_features_are_sampled_at_exact_coordinates(dtype, tolerance, autocast):
    """Rounding of features and displacements costs one half-precision step; a rounded grid would cost many voxels.

    In float16, coordinates near the end of 512 voxels are 512 / 2^12 voxels apart; a grid of bfloat16 misses voxels.
    """
    torch.manual_seed(0)
    features = torch.randn(1, 2, 512, 3).to(dtype)
    displacement = torch.rand(1, 1, 2, 1024, 6).to(dtype)
    expected = sample_displaced(features.double(), displacement.double(), voxels(512, 3))
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        sampled = sample_displaced(features, displacement, voxels(512, 3))
    assert sampled.dtype == dtype
    torch.testing.assert_close(sampled.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("stride", [2, 3])
def test_pixel_shuffle_is_pytorchs(stride):
    x = torch.randn(2, 3 * stride**2, 4, 5)
    assert torch.equal(pixel_shuffle(x, (stride, stride)), F.pixel_shuffle(x, stride))


def test_pixel_shuffle_of_no_images():
    assert pixel_shuffle(torch.zeros(0, 12, 4, 5), (2, 3)).shape == (0, 2, 8, 15)


@pytest.mark.parametrize("size, stride", GEOMETRIES)
def test_pixel_shuffle_is_a_transposed_convolution(size, stride):
    """A 1x1 convolution, shuffled, is a transposed convolution with kernel = stride of the same weights."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    weight = torch.randn(3, 4, *stride, dtype=torch.float64)
    transposed = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(size)](x, weight, stride=stride)
    convolved = torch.einsum("ic,bi...->bc...", weight.flatten(1), x)
    torch.testing.assert_close(pixel_shuffle(convolved, stride), transposed)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("rank", [2, 3])
def test_devices_that_sample(device, rank):
    check_sampling_device(device, rank)
    with torch.no_grad():
        check_sampling_device(torch.device(device), rank)


@pytest.mark.parametrize(
    "error",
    [NotImplementedError("'aten::grid_sampler_3d' is not implemented for the MPS device.\nmore"), RuntimeError()],
    ids=repr,
)
def test_devices_without_a_kernel(monkeypatch, error):
    def grid_sample(*args, **kwargs):
        raise error

    monkeypatch.setattr(F, "grid_sample", grid_sample)
    with pytest.raises(ValueError, match=r"grid_sample in 3 dimensions.*'cpu'.*-device cuda.*FALLBACK") as raised:
        check_sampling_device("cpu", 3)
    assert "more" not in str(raised.value)


def test_devices_without_the_backward_kernel(monkeypatch):
    """What some versions of PyTorch have on MPS."""

    class ForwardOnly(torch.autograd.Function):
        @staticmethod
        def forward(ctx, features, grid):
            return torch.zeros(*features.shape[:2], *grid.shape[1:-1])

        @staticmethod
        def backward(ctx, gradient):
            raise NotImplementedError("aten::grid_sampler_3d_backward")

    monkeypatch.setattr(F, "grid_sample", lambda features, grid, **kwargs: ForwardOnly.apply(features, grid))
    with pytest.raises(ValueError, match="grid_sampler_3d_backward"):
        check_sampling_device("cpu", 3)


@pytest.mark.parametrize(
    "features, displacement, scale, message",
    [
        ((1, 2, 4), (1, 1, 1, 8), [1], "2 or 3 spatial axes"),
        ((1, 2, 4, 4), (1, 1, 3, 8, 8), [1, 1], "displacement must be"),
        ((1, 2, 4, 4), (2, 1, 2, 8, 8), [1, 1], "displacement must be"),
        ((1, 2, 4, 4), (1, 2, 8, 8), [1, 1], "displacement must be"),
        ((1, 3, 4, 4), (1, 2, 2, 8, 8), [1, 1], "2 groups"),
        ((1, 2, 4, 4), (1, 1, 2, 8, 8), [1], "scale"),
    ],
)
def test_bad_input(features, displacement, scale, message):
    with pytest.raises(ValueError, match=message):
        sample_displaced(torch.rand(features), torch.rand(displacement), scale)


compiled = pytest.mark.skipif(not cpu_kernels.libraries(), reason="no C compiler when the package was installed")


@pytest.fixture
def called(monkeypatch):
    """Names of the kernels that are called."""
    names, call = [], cpu_kernels.call
    libraries = cpu_kernels.libraries().values()

    def watched(function, *arguments):
        names.append(next(name for library in libraries for name in library if library[name] is function))
        call(function, *arguments)

    monkeypatch.setattr(cpu_kernels, "call", watched)
    return names


def sampled_with_gradients(tensors, scale, upstream):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    out = sample_displaced(*tensors, scale)
    return [out, *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size, stride", GEOMETRIES)
def test_kernels_sample_as_pytorch_does_in_float64(lanes, use_threads, called, size, stride, groups, threads):
    """Far beyond the borders, too; on them, where a step outwards changes nothing, as well."""
    torch.manual_seed(0)
    features = torch.randn(2, 3 * groups * lanes, *size, dtype=torch.float64)
    displacement = 2 * torch.randn(2, groups, len(size), *upsampled(size, stride), dtype=torch.float64)
    displacement[:, :, :, 0] = 0
    upstream = torch.randn(2, 3 * groups * lanes, *upsampled(size, stride), dtype=torch.float64)
    exact = sampled_with_gradients([features, displacement], voxels(*size), upstream)
    assert not called
    use_threads(threads)
    found = sampled_with_gradients([features.float(), displacement.float()], voxels(*size), upstream)
    assert called == ["sample", "differentiate_sample"]
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@compiled
def test_kernels_leave_to_pytorch_what_they_cannot(called):
    displacement = torch.zeros(1, 1, 2, 4, 4)
    sample_displaced(torch.ones(1, 5, 2, 2), displacement, voxels(2, 2))
    sample_displaced(torch.ones(1, 16, 2, 2).double(), displacement.double(), voxels(2, 2))
    sample_displaced(torch.ones(0, 16, 2, 2), displacement[:0], voxels(2, 2))
    torch.compile(sample_displaced, backend="eager", fullgraph=True)(
        torch.ones(1, 16, 2, 2), displacement, voxels(2, 2)
    )
    assert not called


@compiled
def test_kernels_take_displacements_that_are_not_finite():
    displacement = torch.zeros(1, 1, 2, 4, 4)
    displacement[..., 0], displacement[..., 1] = torch.nan, torch.inf
    features = torch.arange(64, dtype=torch.float32).view(1, 16, 2, 2)
    for tensor in sampled_with_gradients([features, displacement], voxels(2, 2), torch.ones(1, 16, 4, 4)):
        assert tensor.isfinite().all()


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_compute_half_precision_in_float32(called, dtype):
    torch.manual_seed(0)
    features, displacement = torch.randn(1, 16, 4, 5).to(dtype), torch.randn(1, 1, 2, 8, 10).to(dtype)
    found = sample_displaced(features, displacement, voxels(4, 5))
    assert called == ["sample"]
    assert torch.equal(found, sample_displaced(features.float(), displacement.float(), voxels(4, 5)).to(dtype))
