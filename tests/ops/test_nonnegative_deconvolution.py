"""Nonnegative deconvolution: theorem, adjoint, equation, gradients, half precision."""

import itertools

import pytest
import torch

from nnunet_deconver.ops import (
    adjoint_filter,
    nonnegative_deconvolution,
    nonnegative_deconvolution_reference,
    same_convolution,
)
from nnunet_deconver.ops.nonnegative_deconvolution.mixed_precision import differentiate_plain, saturated_relu

BOTH = pytest.mark.parametrize("operation", [nonnegative_deconvolution, nonnegative_deconvolution_reference])

# channels, source channels, groups, spatial size, kernel
PROBLEMS = [
    pytest.param(2, 6, 2, (9,), (3,), id="1d"),
    pytest.param(4, 4, 1, (7, 6), (3, 5), id="2d-dense-anisotropic"),
    pytest.param(6, 12, 3, (5, 8), (3, 3), id="2d-groups"),
    pytest.param(3, 12, 3, (4, 5, 6), (3, 3, 3), id="3d-one-group-per-channel"),
    pytest.param(4, 8, 2, (3, 7, 5), (1, 5, 3), id="3d-anisotropic"),
    pytest.param(2, 2, 1, (2, 2, 2), (3, 5, 7), id="3d-kernel-larger-than-image"),
]


def problem(channels, sources, groups, size, kernel, *, dtype=torch.float64, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        uniform(batch, channels, *size),
        uniform(batch, sources, *size),
        uniform(channels, sources // groups, *kernel),
    )


def squared_error(x, source, filter, groups):
    difference = x - same_convolution(source, filter, groups=groups)
    return difference.square().flatten(1).sum(1)


@BOTH
@pytest.mark.parametrize("channels, sources, groups, size, kernel", PROBLEMS)
def test_the_error_never_increases(operation, channels, sources, groups, size, kernel):
    """Theorem 1: eight iterations of eight random problems, of different scales and with zeros."""
    for seed in range(8):
        x, source, filter = problem(channels, sources, groups, size, kernel, seed=seed)
        x = x * 10.0 ** (seed % 4 - 2)
        source = torch.relu(source - 0.1 * (seed % 3))
        error = squared_error(x, source, filter, groups)
        first = error
        for _ in range(8):
            source = operation(x, source, filter, groups=groups)
            updated = squared_error(x, source, filter, groups)
            assert (updated <= error * (1 + 1e-9) + 1e-12).all()
            error = updated
        assert (error < first).all()


@BOTH
def test_iterations_are_repeated_updates(operation):
    x, source, filter = problem(4, 8, 2, (6, 5), (3, 3))
    repeated = source
    for _ in range(3):
        repeated = operation(x, repeated, filter, groups=2)
    torch.testing.assert_close(operation(x, source, filter, groups=2, iterations=3), repeated)


@pytest.mark.parametrize("channels, sources, groups, size, kernel", PROBLEMS)
def test_the_adjoint_filter_is_the_adjoint(channels, sources, groups, size, kernel):
    """<S (*) V, Y> = <S, Y (*) V^->, for filters of either sign."""
    y, source, filter = (t - 0.5 for t in problem(channels, sources, groups, size, kernel))
    left = (same_convolution(source, filter, groups=groups) * y).sum()
    right = (source * same_convolution(y, adjoint_filter(filter, groups=groups), groups=groups)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def literal_correlation(image, kernel):
    """Zero-padded cross-correlation of one channel, written out."""
    out = torch.zeros_like(image)
    for position in itertools.product(*map(range, image.shape)):
        for tap in itertools.product(*map(range, kernel.shape)):
            where = [p + t - k // 2 for p, t, k in zip(position, tap, kernel.shape, strict=True)]
            if all(0 <= w < n for w, n in zip(where, image.shape, strict=True)):
                out[position] += image[tuple(where)] * kernel[tap]
    return out


@BOTH
def test_the_update_is_the_equation_written_out(operation):
    """Eq. (1) as loops over groups, channels, positions and taps."""
    channels, sources, groups, size, kernel = 4, 6, 2, (4, 5), (3, 1)
    eps = 1e-3
    x, source, filter = problem(channels, sources, groups, size, kernel, batch=1)
    c, e = channels // groups, sources // groups
    expected = torch.zeros_like(source)
    for g in range(groups):
        reconstruction = [
            sum(literal_correlation(source[0, g * e + j], filter[g * c + i, j]) for j in range(e)) for i in range(c)
        ]
        for j in range(e):
            flipped = [filter[g * c + i, j].flip((0, 1)) for i in range(c)]
            numerator = sum(literal_correlation(x[0, g * c + i], flipped[i]) for i in range(c)) + eps
            denominator = sum(literal_correlation(reconstruction[i], flipped[i]) for i in range(c)) + eps
            expected[0, g * e + j] = source[0, g * e + j] * numerator / denominator
    torch.testing.assert_close(operation(x, source, filter, groups=groups, eps=eps), expected)


def test_an_exact_source_is_a_fixed_point():
    _, source, filter = problem(3, 6, 3, (6, 7), (3, 3))
    x = same_convolution(source, filter, groups=3)
    torch.testing.assert_close(nonnegative_deconvolution(x, source, filter, groups=3), source)


@pytest.mark.parametrize("channels, sources, groups, size, kernel", PROBLEMS)
@pytest.mark.parametrize("iterations", [1, 2])
def test_gradients(channels, sources, groups, size, kernel, iterations):
    tensors = [t.requires_grad_() for t in problem(channels, sources, groups, size, kernel, batch=1)]

    def function(x, source, filter):
        return nonnegative_deconvolution(x, source, filter, groups=groups, iterations=iterations, eps=1e-2)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels, sources, groups, size, kernel", PROBLEMS)
def test_gradients_written_out_are_those_that_autograd_records(channels, sources, groups, size, kernel, dtype):
    tensors = [
        tensor.requires_grad_() for tensor in problem(channels, sources, groups, size, kernel, dtype=dtype, batch=3)
    ]
    out = nonnegative_deconvolution(*tensors, groups=groups, backend="plain")
    gradient = torch.rand(out.shape, dtype=torch.float64).to(dtype) - 0.5
    expected = torch.autograd.grad(out, tensors, gradient)
    with torch.no_grad():
        found = differentiate_plain(gradient, *tensors, groups=groups, eps=1e-8)
    rtol, atol = (1e-12, 1e-12) if dtype == torch.float64 else (4 * torch.finfo(dtype).eps, 1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_gradients_written_out_saturate_as_the_recorded():
    """Cut outputs pass none; finite values beyond the range become its end; inf upstream stays visible."""
    x = torch.tensor([[[65504, 60000, 100, 100, 1]]], dtype=torch.float16).requires_grad_()
    source = torch.tensor([[[1, 1, 0, 0, 1]]], dtype=torch.float16).requires_grad_()
    filter = torch.full((1, 1, 1), 0.5, dtype=torch.float16).requires_grad_()
    upstream = torch.tensor([[[1, 1, 1, -1, float("inf")]]], dtype=torch.float16)
    out = nonnegative_deconvolution(x, source, filter, backend="plain")
    expected = torch.autograd.grad(out, (x, source, filter), upstream)
    found = differentiate_plain(upstream, *(t.detach() for t in (x, source, filter)), groups=1, eps=1e-8)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    assert found[0][0, 0, 0] == 0 and found[1][0, 0, 2:4].tolist() == [65504, -65504]
    assert found[0][0, 0, 4] == float("inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_exact_zeros_are_finite_and_stay_zero(dtype):
    """A black background, a dead source and a dead filter."""
    x, source, filter = problem(2, 8, 2, (6, 6, 6), (3, 3, 3), dtype=dtype)
    x[:, :, :3] = 0
    source[:, :, :4] = 0
    source[:, 0] = 0
    filter[0] = 0
    tensors = [t.requires_grad_() for t in (x, source, filter)]
    updated = nonnegative_deconvolution(*tensors, groups=2)
    assert updated.isfinite().all()
    assert (updated[source == 0] == 0).all()
    updated.float().mean().backward()
    for name, tensor in zip(("x", "source", "filter"), tensors, strict=True):
        assert tensor.grad.isfinite().all(), name


def test_all_zeros():
    x, source, filter = (torch.zeros_like(t).requires_grad_() for t in problem(2, 8, 2, (4, 4), (3, 3)))
    updated = nonnegative_deconvolution(x, source, filter, groups=2)
    updated.sum().backward()
    assert (updated == 0).all()
    # S * eps / eps: the source passes through
    assert (source.grad == 1).all()


# Largest relative error of outputs stored in half precision: rounding of inputs and of the result.
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels, sources, groups, size, kernel", PROBLEMS)
def test_autocast_is_close_to_float64(dtype, channels, sources, groups, size, kernel):
    x, source, filter = problem(channels, sources, groups, size, kernel)
    expected = nonnegative_deconvolution_reference(x, source, filter, groups=groups)
    with torch.autocast("cpu", dtype=dtype):
        updated = nonnegative_deconvolution(x.to(dtype), source.to(dtype), filter.float(), groups=groups)
        # also where the inputs are float32 and autocast alone would go to half precision
        from_float32 = nonnegative_deconvolution(x.float(), source.float(), filter.float(), groups=groups)
    assert updated.dtype == dtype
    torch.testing.assert_close(updated.double(), expected, rtol=TOLERANCE[dtype], atol=1e-6)
    assert from_float32.dtype == torch.float32
    torch.testing.assert_close(from_float32.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-7, 300.0, 65504.0])
@pytest.mark.parametrize("source_scale", [1.0, 1e-7, 65504.0])
def test_half_precision_is_finite_up_to_the_largest_half(dtype, scale, source_scale):
    x, source, filter = problem(2, 8, 2, (5, 5, 5), (3, 3, 3))
    tensors = [
        (t * factor).clamp(max=65504).to(dtype).requires_grad_()
        for t, factor in ((x, scale), (source, source_scale), (filter, 1))
    ]
    with torch.autocast("cpu", dtype=dtype):
        updated = nonnegative_deconvolution(*tensors, groups=2)
    assert updated.isfinite().all()
    assert (updated >= 0).all()
    updated.float().mean().backward()
    for tensor in tensors:
        assert tensor.grad.isfinite().all()


def test_float16_saturates_at_its_largest_value():
    """A lone source under a large image wants to become twice the largest half."""
    x = torch.full((1, 1, 5, 5), 65504.0, dtype=torch.float16)
    source = torch.zeros_like(x)
    source[0, 0, 2, 2] = 1
    source.requires_grad_()
    filter = torch.ones(1, 1, 3, 3, dtype=torch.float16)
    exact = nonnegative_deconvolution_reference(x, source.detach(), filter)[0, 0, 2, 2]
    assert exact.item() == pytest.approx(65504)  # 9 * 65504 / 9
    filter = torch.full_like(filter, 0.5)
    updated = nonnegative_deconvolution(x, source, filter)
    assert updated[0, 0, 2, 2].item() == 65504  # 9 * 0.5 * 65504 / (9 * 0.25) is twice as much
    updated.sum().backward()
    assert source.grad[0, 0, 2, 2] == 0


def test_float16_gradients_saturate_but_an_overflow_upstream_stays_visible():
    x = torch.full((1, 1, 3), 100.0, dtype=torch.float16)
    filter = torch.ones(1, 1, 1, dtype=torch.float16)
    # dS'/dS where S vanishes: (x + eps) / eps = 1e10
    source = torch.zeros(1, 1, 3, dtype=torch.float16, requires_grad=True)
    nonnegative_deconvolution(x, source, filter).sum().backward()
    assert (source.grad == 65504).all()
    source.grad = None
    upstream = torch.tensor([[[float("inf"), 1.0, -1.0]]], dtype=torch.float16)
    nonnegative_deconvolution(x, source, filter).backward(upstream)
    assert not source.grad[0, 0, 0].isfinite()
    assert source.grad[0, 0, 1:].tolist() == [65504, -65504]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    x, source, filter = problem(2, 4, 2, (4, 4), (3, 3), dtype=dtype)
    assert nonnegative_deconvolution(x, source, filter, groups=2).dtype == dtype
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert nonnegative_deconvolution_reference(x, source, filter, groups=2).dtype == expected


@pytest.mark.parametrize(
    "change, message",
    [
        ({"filter": (4, 2, 2, 3)}, "odd"),
        ({"groups": 3}, "groups = 3"),
        ({"groups": 0}, "groups = 0"),
        ({"filter": (4, 3, 3, 3)}, "filter must have shape"),
        ({"filter": (4, 2, 3)}, "kernel axes"),
        ({"source": (2, 8, 5, 7)}, "spatial size of x"),
        ({"source": (1, 8, 5, 6)}, "batch"),
        ({"x": (2, 4, 5, 6, 7, 8)}, "1, 2 or 3 spatial axes"),
        ({"x": (2, 4, 0, 6), "source": (2, 8, 0, 6)}, "a voxel at least"),
        ({"iterations": 0}, "iterations"),
        ({"eps": 0.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
    ],
)
@BOTH
def test_bad_input(operation, change, message):
    arguments = {"x": (2, 4, 5, 6), "source": (2, 8, 5, 6), "filter": (4, 2, 3, 3), "groups": 4} | change
    arguments = {k: torch.rand(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=message):
        operation(**arguments)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_memory_layouts_give_the_same(layout):
    x, source, filter = problem(3, 12, 3, (4, 5, 6), (3, 3, 3))
    expected = nonnegative_deconvolution_reference(x, source, filter, groups=3)
    inputs = [t.contiguous(memory_format=layout) for t in (x, source)]
    torch.testing.assert_close(nonnegative_deconvolution(*inputs, filter, groups=3), expected)


def test_the_saturated_relu_keeps_its_result_alone():
    largest = torch.finfo(torch.float16).max
    x = torch.tensor([-float("inf"), -1, 0, 1, largest, float("inf")], dtype=torch.float16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = saturated_relu(x)
    expected = torch.nn.functional.hardtanh(x, 0, largest)
    assert out.tolist() == expected.tolist() == [0, 0, 0, 1, largest, largest]
    assert [tensor.data_ptr() for tensor in kept] == [out.data_ptr()]
    gradient = torch.full_like(x, 2)
    torch.testing.assert_close(*(torch.autograd.grad(each, x, gradient) for each in (out, expected)))
