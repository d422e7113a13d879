"""At the edge of float32 each path finds what float32 can hold, as near to float64 as `numerics_sweep` allows."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from nnunet_deconver.ops import cpu_kernels, nonnegative_deconvolution, nonnegative_deconvolution_reference
from nnunet_deconver.ops.nonnegative_deconvolution import mixed_precision, reference, triton_machine

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


sweep = load("numerics_sweep")
compiled = pytest.mark.skipif(not cpu_kernels.compiled_kernels(), reason="no C compiler when the package was installed")
interpreted = pytest.mark.skipif(
    triton_machine.TRITON_OBSTACLE is not None or not triton_machine.INTERPRETED,
    reason="Triton's interpreter is not used here",
)
PATHS = ["plain", pytest.param("cpu", marks=compiled), pytest.param("triton", marks=interpreted)]
# NumPy's, in the interpreter, about numbers that are out of range in float64 too.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def examined(indices, paths):
    return [f for index in indices for f in sweep.examine(sweep.random_problem(0, index), index, paths)]


@pytest.mark.parametrize("path", ["plain", pytest.param("cpu", marks=compiled)])
def test_random_problems(path):
    findings = examined(range(1, 600, 2 if path == "cpu" else 3), [path])
    assert not [finding for finding in findings if finding.wrong]
    # of all output and gradients
    assert len({finding.index for finding in findings}) >= 200
    assert sum(finding.representable for finding in findings) > 0.75 * len(findings)
    assert sum(finding.well_conditioned for finding in findings) > 0.6 * len(findings)
    assert max(finding.error for finding in findings if finding.well_conditioned) <= 1e-5


@interpreted
def test_a_random_problem_in_the_interpreter():
    """The smallest of a hundred: it takes seconds."""
    problems = {index: sweep.random_problem(0, index) for index in range(0, 200, 2)}
    products = {index: p.source.numel() * p.filter[0].numel() for index, p in problems.items() if p.iterations == 1}
    findings = examined([min(products, key=products.get)], ["triton"])
    assert len(findings) == 4
    assert not [finding for finding in findings if finding.wrong]


# Voxels that are updated by themselves, as the filter is 1: x, source and the gradient that arrives, at eps = 1e-30.
# Each leaves the range on the way to a result that does not, if it is computed in another order.
EDGES = {
    "N / D overflows where S is zero": (1e10, 0, 1e-20),
    "N / D overflows and S N / D does not": (1e12, 1e-30, 1e-10),
    "N / D vanishes and S N / D does not": (0, 1e20, 1),
    "S N overflows": (1e25, 1e25, 1),
    "G S overflows": (1, 1e25, 1e25),
    "G S vanishes": (1, 1e-28, 1e-25),
    "G N / D overflows beside a dead source": (1e20, 1e-29, 1e-15),
    "G / D overflows": (1e-15, 1e-20, 1e20),
    "N / D^2 overflows": (1e5, 1e-25, 1e-20),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge, path):
    channels = 16 if path == "cpu" else 1
    x, source, gradient = (torch.full((1, channels, 2, 1), float(value)) for value in EDGES[edge])
    problem = sweep.Problem(x, source, torch.ones(channels, 1, 1, 1), gradient, channels, 1, 1e-30)
    findings = list(sweep.examine(problem, 0, [path]))
    assert len(findings) == 4
    for finding in findings:
        assert finding.representable, finding
        assert not finding.wrong, finding


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda first, second, denominator: first * (second / denominator), id="out-of-range-on-the-way"),
        pytest.param(lambda *tensors: 1.0001 * reference._Quotient.apply(*tensors), id="wrong-by-1e-4"),
    ],
)
def test_the_sweep_notices(monkeypatch, other):
    monkeypatch.setattr(reference, "quotient", other)
    assert [finding for finding in examined(range(40), ["plain"]) if finding.wrong]


def test_what_cannot_be_held_is_not_asked_for():
    """A reconstruction of 1e40, though its update is 1; and a gradient by the source that is zero but for rounding."""
    x, source, filter, gradient = (torch.full((1, 1, 2, 2), value) for value in (1e20, 1e20, 1e20, 1.0))
    problem = sweep.Problem(x, source, filter[..., :1, :1], gradient, 1, 1, 1e-8)
    assert [f.in_range and not f.representable for f in sweep.examine(problem, 0, ["plain"])] == [True] * 4
    x, source, filter = (torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 1 for _ in range(3))
    problem = sweep.Problem(x, source, filter[..., :1, :1], gradient, 1, 1, 1e-8)
    _, by_x, by_source, _ = sweep.examine(problem, 0, ["plain"])
    assert by_x.well_conditioned
    assert by_source.representable and not by_source.well_conditioned and by_source.error > 1e-5


def positive(*shape):
    return torch.rand(*shape, dtype=torch.float64).add_(0.5).requires_grad_()


def test_second_derivatives():
    torch.manual_seed(0)
    assert torch.autograd.gradgradcheck(reference.quotient, [positive(3) for _ in range(3)])
    tensors = [positive(1, 2, 3, 2), positive(1, 4, 3, 2), positive(2, 2, 3, 1)]

    def function(x, source, filter):
        return nonnegative_deconvolution(x, source, filter, groups=2, iterations=2, eps=1e-2, backend="plain")

    assert torch.autograd.gradgradcheck(function, tensors)


def test_gradients_are_the_same_compiled():
    """Also where written in another order they would leave the range."""
    first, second, denominator, gradient = (
        torch.tensor(values)
        for values in ([1e-20, 1e-30, 0, 2], [1e-20, 1e20, 1e-10, 3], [1e-30, 1e-5, 1e-25, 4], [1e-30, 1e-10, 1e15, 5])
    )

    def results(function):
        inputs = [tensor.clone().requires_grad_() for tensor in (first, second, denominator)]
        out = function(*inputs)
        return [out, *torch.autograd.grad(out, inputs, gradient)]

    compiled = torch.compile(reference.quotient, fullgraph=True, backend="aot_eager")
    expected = results(reference.quotient)
    assert all(tensor.isfinite().all() for tensor in expected)
    for found, wanted in zip(results(compiled), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("batched", range(3), ids=["x", "source", "filter"])
def test_transformed_functions(batched):
    """torch.func's gradients of each of several problems, which share two of the three tensors."""
    torch.manual_seed(0)
    tensors = [torch.rand(1, 2, 4, 3), torch.rand(1, 4, 4, 3), torch.rand(2, 2, 3, 1)]
    tensors[batched] = torch.rand(3, *tensors[batched].shape)
    dims = [0 if i == batched else None for i in range(3)]

    def function(x, source, filter):
        return nonnegative_deconvolution_reference(x, source, filter, groups=2, eps=1e-2).square().sum()

    differentiate = torch.func.grad(function, argnums=batched)
    together = torch.func.vmap(differentiate, in_dims=tuple(dims))(*tensors)
    for i, found in enumerate(together):
        alone = [tensor[i] if dim == 0 else tensor for tensor, dim in zip(tensors, dims, strict=True)]
        torch.testing.assert_close(found, differentiate(*alone))


def test_a_quotient_keeps_what_it_was_given():
    kept = []
    tensors = [positive(5) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        reference.quotient(*tensors)
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in tensors]


def test_gradients_are_computed_in_one_layout(monkeypatch):
    """Of the one that arrives, too: a mean's is the same number everywhere, a contiguous one has channels apart."""
    layouts = []
    differentiate = reference.differentiate_quotient

    def recorded(*tensors):
        layouts.append({tensor.stride() for tensor in tensors})
        return differentiate(*tensors)

    monkeypatch.setattr(reference, "differentiate_quotient", recorded)
    x, source, filter = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 4, 5, requires_grad=True), torch.rand(3, 2, 3, 3)
    out = nonnegative_deconvolution(x, source, filter, groups=3, backend="plain")
    for gradient in (torch.ones(()).expand_as(out), torch.rand(out.shape)):
        out.backward(gradient, retain_graph=True)
    assert layouts == [{mixed_precision.fast_layout(source).stride()}] * 2
