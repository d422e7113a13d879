"""Random problems of nonnegative deconvolution at the edge of float32, each path beside float64.

    python benchmarks/numerics_sweep.py --problems 22000 --seed 0

2D and 3D, kernels of 1 to 5, groups, ratios and iterations, exact zeros, magnitudes of 1e-30 to 1e30 within a problem,
eps of 1e-4 to 1e-30. Of each path's output and three gradients it counts, by eps:

| column | results |
| --- | --- |
| in_range | that are within float32's range in float64 |
| representable | of these, that float32 must find: `Limits` |
| not_finite | of these, that the path does not find: inf or NaN. None may be |
| wrong | of these, that are further from float64 than `Limits` allow. None may be |
| well_conditioned | of these, for which that is no more than 1e-5 of the largest value |
| largest_error | the largest distance of such a one, by its largest value |
| beyond | that are in range and not representable |
| beyond_not_finite | of these, that the path does not find |

It prints the problems with results that none may be, and then ends with status 1. Without --out nothing is written.
`--paths triton` takes kernels in Triton's interpreter where TRITON_INTERPRET is 1: minutes for some problems.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from recording import record
from torch import Tensor
from tqdm import tqdm

from nnunet_deconver.ops import adjoint_filter, nonnegative_deconvolution, same_convolution
from nnunet_deconver.ops.nonnegative_deconvolution.backends import BACKENDS

RESULTS = ("output", "gradient of x", "gradient of source", "gradient of filter")
EPS = (1e-4, 1e-8, 1e-30)
AGREEMENT = 1e-5
FLOAT = torch.finfo(torch.float32)
ROUNDING = FLOAT.eps / 2
# Rounding may not take a number from here out of the range.
LARGEST = FLOAT.max * (1 - 2**-10)


class Problem(NamedTuple):
    """Arguments of the operation, and the gradient that arrives, all float32."""

    x: Tensor
    source: Tensor
    filter: Tensor
    gradient: Tensor
    groups: int
    iterations: int
    eps: float

    @property
    def options(self) -> dict:
        """The arguments that are no tensors."""
        return {"groups": self.groups, "iterations": self.iterations, "eps": self.eps}


def random_problem(seed: int, index: int) -> Problem:
    """The problem number `index` of a sweep; every other one is such as the CPU path covers."""
    random = torch.Generator().manual_seed(seed * 2**32 + index)

    def choose(*values):
        return values[torch.randint(len(values), (), generator=random)]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=random, dtype=torch.float64).item()

    rank = choose(2, 3)
    if index % 2:
        groups, channels, ratio, iterations = (*[choose(8, 16)] * 2, choose(1, 2, 4), 1)
    else:
        groups, channels = choose((1, 1), (1, 2), (2, 2), (2, 4), (3, 3))
        ratio, iterations = choose(1, 2, 4), choose(1, 1, 2, 3)
    size = [choose(1, 2, 4, 6) for _ in range(rank)]
    kernel = [choose(1, 3, 5) for _ in range(rank)]
    decades = choose(1, 5, 10, 20, 30)

    def tensor(*shape: int) -> Tensor:
        """Numbers about a power of ten, over some or all of the decades, some or all zeros among them."""
        center = uniform(-decades, decades)
        spread = choose(0, 0, 1, min(decades - abs(center), 10), decades - abs(center))
        powers = center + spread * (2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1)
        values = (0.05 + torch.rand(shape, generator=random, dtype=torch.float64)) * 10**powers
        zeros = torch.rand(shape, generator=random) < choose(0, 0, 0.3, 0.9)
        if choose(False, False, True):
            # A dark half, a dead channel, or both.
            zeros[:, :, : shape[2] // 2] = True
            zeros[:, choose(0, shape[1] - 1)] |= choose(False, True)
        return values.masked_fill(zeros, 0).float()

    x = tensor(choose(1, 2), channels, *size)
    source = tensor(len(x), channels * ratio, *size)
    filter = tensor(channels, channels * ratio // groups, *kernel)
    gradient = tensor(*source.shape)
    if choose(False, True):
        gradient = torch.where(torch.rand(gradient.shape, generator=random) < 0.5, -gradient, gradient)
    return Problem(x, source, filter, gradient, groups, iterations, choose(1e-8, 1e-8, 1e-30, 1e-4))


def exact_results(problem: Problem) -> list[Tensor]:
    """Output and gradients in float64, as autograd finds them for the equation as it is written."""
    inputs = [tensor.double().requires_grad_() for tensor in problem[:3]]
    x, source, filter = inputs
    adjoint = adjoint_filter(filter, groups=problem.groups)
    numerator = same_convolution(x, adjoint, groups=problem.groups) + problem.eps
    for _ in range(problem.iterations):
        reconstruction = same_convolution(source, filter, groups=problem.groups)
        denominator = same_convolution(reconstruction, adjoint, groups=problem.groups) + problem.eps
        source = source * numerator / denominator
    return [source.detach(), *torch.autograd.grad(source, inputs, problem.gradient.double())]


class Limits(NamedTuple):
    """What float32 can make of one result.

    Both follow from the result's terms without their signs: |G| in place of the gradient that arrives, and dD added
    where it is subtracted. Names are those of `ops.nonnegative_deconvolution.triton_update`.

    Attributes:
        largest: of all that is made on the way to it. What is made is Y, N, D and S' of every update; for a gradient
            dN, dD, dY and dS likewise, those which it is made of; and the result.
        error: how far it may be from float64's. With c channels and e sources in a group and k taps in a kernel, a sum
            has e k terms for Y, dX and dY, c k for N, D and dS, and as many as there are voxels, v, for dV. On the
            longest way through these sums and the quotients a term meets n = 3 e k + 4 c k + 24 roundings, for dV v
            more, of u = 2^-24 of what is made there, or of the smallest normal number where that is larger. They move
            it by n u of itself at most, and by some sqrt(n) u as they do not agree. So 2 sqrt(n) u of the sum of the
            terms are allowed, and twice that for each further update, whose source has errors already.
    """

    largest: float
    error: float


def limits(problem: Problem) -> list[Limits]:
    """Those of the output and each gradient."""
    groups, eps, tiny = problem.groups, problem.eps, FLOAT.tiny

    def convolve(image: Tensor, filter: Tensor) -> Tensor:
        return same_convolution(image, filter, groups=groups)

    def filter_gradient(image: Tensor, filter: Tensor, upstream: Tensor) -> Tensor:
        filter = filter.detach().requires_grad_()
        return torch.autograd.grad(convolve(image, filter), filter, upstream)[0]

    x, source, filter, gradient = (tensor.double() for tensor in problem[:4])
    adjoint = adjoint_filter(filter, groups=groups)
    gradient, exact_source = gradient.abs(), source
    # Every value made is raised by the smallest normal number, below which a rounding is no smaller.
    exact_numerator = convolve(x, adjoint) + eps
    numerator = exact_numerator + tiny
    largest, updates = numerator.max(), []
    for _ in range(problem.iterations):
        exact_denominator = convolve(convolve(exact_source, filter), adjoint) + eps
        exact_source = exact_source * exact_numerator / exact_denominator
        reconstruction = convolve(source, filter) + tiny
        denominator = convolve(reconstruction, adjoint) + eps + tiny
        # 1 / D, and what the raised value says about its error.
        inverse = denominator / exact_denominator**2
        updated = source * numerator * inverse + tiny
        updates.append((source, reconstruction, inverse, updated))
        largest = torch.stack([largest, *(made.max() for made in (reconstruction, denominator, updated))]).max()
        source = updated
    terms = {"output": (largest, updated)}
    x_largest = filter_largest = largest
    # N is the same in all updates, and so its gradient is one, too.
    d_numerator, d_filter = torch.zeros_like(source), torch.zeros_like(filter)
    for source, reconstruction, inverse, updated in reversed(updates):
        d_numerator += gradient * source * inverse + tiny
        d_denominator = gradient * updated * inverse + tiny
        d_reconstruction = convolve(d_denominator, filter) + tiny
        d_adjoint = filter_gradient(reconstruction, adjoint, d_denominator)
        d_filter += filter_gradient(source, filter, d_reconstruction) + adjoint_filter(d_adjoint, groups=groups) + tiny
        gradient = gradient * numerator * inverse + convolve(d_reconstruction, adjoint) + tiny
        x_largest = torch.stack([x_largest, largest, d_numerator.max()]).max()
        filter_largest = torch.stack([filter_largest, x_largest, d_denominator.max(), d_reconstruction.max()]).max()
        largest = torch.stack([largest, d_denominator.max(), d_reconstruction.max(), gradient.max()]).max()
    d_x = convolve(d_numerator, filter) + tiny
    d_filter += adjoint_filter(filter_gradient(x, adjoint, d_numerator), groups=groups) + tiny
    terms["gradient of x"] = torch.maximum(x_largest, d_x.max()), d_x
    terms["gradient of source"] = largest, gradient
    terms["gradient of filter"] = torch.maximum(filter_largest, d_filter.max()), d_filter

    taps = math.prod(filter.shape[2:])
    roundings = 3 * taps * problem.source.shape[1] // groups + 4 * taps * x.shape[1] // groups + 24
    found = []
    for name in RESULTS:
        largest, sums = terms[name]
        along = roundings + (x[:, 0].numel() if name == "gradient of filter" else 0)
        error = 2**problem.iterations * math.sqrt(along) * ROUNDING * sums.max().item()
        found.append(Limits(largest.item(), error))
    return found


class Finding(NamedTuple):
    """One result of one path.

    Attributes:
        index: of the problem.
        path: name of the backend.
        eps: of the problem.
        result: which of RESULTS.
        in_range: whether float64's is within float32's range.
        representable: whether all that is made on the way to it is, too.
        finite: whether the path's is finite.
        error: the largest distance from float64's, by its largest value.
        allowed: the same of the distance that `Limits` allow.
    """

    index: int
    path: str
    eps: float
    result: str
    in_range: bool
    representable: bool
    finite: bool
    error: float
    allowed: float

    @property
    def well_conditioned(self) -> bool:
        """Whether it must agree with float64's."""
        return self.representable and self.allowed <= AGREEMENT

    @property
    def wrong(self) -> bool:
        """Whether it is what none may be."""
        return self.representable and (not self.finite or self.error > self.allowed)


def path_results(problem: Problem, path: str) -> list[Tensor]:
    """Output and gradients in float32, as a path finds them."""
    inputs = [tensor.clone().requires_grad_() for tensor in problem[:3]]
    out = nonnegative_deconvolution(*inputs, **problem.options, backend=path)
    return [out.detach(), *torch.autograd.grad(out, inputs, problem.gradient)]


def examine(problem: Problem, index: int, paths: Iterable[str]) -> Iterator[Finding]:
    """What each of the paths that can compute a problem makes of it."""
    exact, allowed = exact_results(problem), limits(problem)
    for path in paths:
        if BACKENDS[path].obstacle(*problem[:3], problem.groups, problem.iterations) is not None:
            continue
        for name, ours, wanted, limit in zip(RESULTS, path_results(problem, path), exact, allowed, strict=True):
            scale = wanted.abs().max().item()
            in_range = scale <= LARGEST  # NaN is not
            distance = (ours.double() - wanted).abs().max().item()
            yield Finding(
                index,
                path,
                problem.eps,
                name,
                in_range,
                in_range and limit.largest <= LARGEST,
                bool(ours.isfinite().all()),
                *(value / scale if scale else math.inf * (value > 0) for value in (distance, limit.error)),
            )


def table(findings: list[Finding]) -> list[dict]:
    """Counts by path, eps and result."""
    rows = []
    for path, eps, result in sorted({finding[1:4] for finding in findings}):
        chosen = [finding for finding in findings if finding[1:4] == (path, eps, result)]
        representable = [finding for finding in chosen if finding.representable]
        conditioned = [finding for finding in representable if finding.well_conditioned]
        beyond = [finding for finding in chosen if finding.in_range and not finding.representable]
        rows.append(
            {
                "path": path,
                "eps": eps,
                "result": result,
                "problems": len(chosen),
                "in_range": sum(finding.in_range for finding in chosen),
                "representable": len(representable),
                "not_finite": sum(not finding.finite for finding in representable),
                "wrong": sum(finding.finite and finding.wrong for finding in representable),
                "well_conditioned": len(conditioned),
                "largest_error": f"{max((finding.error for finding in conditioned), default=0):.1e}",
                "beyond": len(beyond),
                "beyond_not_finite": sum(not finding.finite for finding in beyond),
            }
        )
    return rows


def main():
    """Reads the command line, examines the problems, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=22000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", nargs="+", choices=BACKENDS, default=("plain", "cpu"))
    parser.add_argument("--out", type=Path, help="the table's path, without ending")
    args = parser.parse_args()
    findings = []
    for index in tqdm(range(args.problems), unit="problem"):
        findings += examine(random_problem(args.seed, index), index, args.paths)
    rows = table(findings)
    if args.out is None:
        for row in rows:
            print(row)
    else:
        record(args.out, rows, problems=args.problems, seed=args.seed)
    wrong = [finding for finding in findings if finding.wrong]
    for finding in wrong:
        print(f"random_problem({args.seed}, {finding.index}):", finding)
    print(f"{len(wrong)} results of {args.problems} problems are not finite, or further from float64 than they may be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
