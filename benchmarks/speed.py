"""Time of nonnegative deconvolution, of Deconver's blocks, and of whole networks.

    python benchmarks/speed.py --out benchmarks/results/speed_cpu

On a GPU as nnU-Net trains there (float16 autocast, networks compiled, patches of the papers), on a CPU in float32 on
patches that a CPU can bear. Every time is compared with another that is measured in turn with it, in the same run: what
is computed fast with the plain formulation (PyTorch's grouped convolutions on the whole image, everything kept), and
networks with nnU-Net's PlainConvUNet on the same stages. A row whose result or gradients are not as near to float64 as
the plain formulation's reports no speed, and one whose ratios spread further than they lie from 1 reports none either.

What the machine can do is measured too: the bandwidth of copying a large tensor, and the arithmetic of a dense
convolution. Of both the layer's rows say how much they attain, counting the arithmetic of its convolutions, and the
bytes without which it cannot be done: the image read and the source written once, and in a training step the source's
gradient read, the image read again, and the image's gradient written.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from recording import ratio, record
from torch import nn
from tqdm import tqdm

from nnunet_deconver.layers import DeconverBlock, NonnegativeDeconvolution, deconver_block
from nnunet_deconver.networks.architecture import DECONVER, build_network, plain_architecture

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
# (channels, spatial size) of each stage, batch 2.
STAGES = {
    "brats23": [(32 * 2**i, (128 >> i,) * 3) for i in range(5)]
    if CUDA
    else [(32 * 2**i, (32 >> i,) * 3) for i in range(4)],
    "isles22": [(64 * 2**i, (64 >> i,) * 3) for i in range(4)]
    if CUDA
    else [(64 * 2**i, (24 >> i,) * 3) for i in range(3)],
    "hippocampus": [(32 * 2**i, size) for i, size in enumerate([(40, 56, 40), (20, 28, 20), (10, 14, 10), (5, 7, 5)])],
}


@contextlib.contextmanager
def plain_formulation(module: nn.Module):
    """The equations in a module as PyTorch's grouped convolutions, on whole images, with everything kept."""
    layers = [layer for layer in module.modules() if isinstance(layer, NonnegativeDeconvolution)]
    for layer in layers:
        layer.backend = "plain"
    try:
        with everything_kept():
            yield
    finally:
        for layer in layers:
            layer.backend = None


@contextlib.contextmanager
def everything_kept():
    """Blocks on whole images that make nothing again in the backward pass."""
    replaced = {name: getattr(deconver_block, name) for name in ("in_chunks", "in_groups", "checkpointed")}
    deconver_block.in_chunks = lambda function, x, *_, **__: function(x)
    deconver_block.in_groups = lambda function, x: function(x, 1)
    deconver_block.checkpointed = lambda function, *tensors: function(*tensors)
    try:
        yield
    finally:
        for name, function in replaced.items():
            setattr(deconver_block, name, function)


def autocast():
    """nnU-Net's: float16 on a GPU, none on a CPU."""
    return torch.autocast("cuda", torch.float16, enabled=CUDA)


def forward(module: nn.Module, x: torch.Tensor):
    with torch.no_grad(), autocast():
        module(x)


def differentiate(module: nn.Module, x: torch.Tensor, gradient: torch.Tensor):
    with autocast():
        out = module(x)
    out.backward(gradient.to(out.dtype))


def step(module: nn.Module, x: torch.Tensor):
    with autocast():
        out = module(x)
        loss = sum(o.float().square().mean() for o in (out if isinstance(out, (list, tuple)) else [out]))
    loss.backward()


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(fast: Callable[[], None], slow: Callable[[], None], rounds: int, *, plain: nn.Module | None = None) -> dict:
    """Median of the times of two calls, made in turn and in either order, and of their ratio with its quartiles.

    Args:
        fast: what is measured.
        slow: what it is compared with.
        rounds: calls of each, after one to warm up.
        plain: a module that `slow` is to run in the plain formulation.
    """

    def of_slow() -> float:
        with plain_formulation(plain) if plain is not None else contextlib.nullcontext():
            return seconds(slow)

    times = []
    for round_ in range(rounds + 1):
        if round_ % 2:
            times.append((seconds(fast), of_slow()))
        else:
            times.append((of_slow(), seconds(fast))[::-1])
    of_fast, reference = np.array(times[1:]).T
    times_faster, quartiles = ratio(reference, of_fast)
    return {
        "ms": round(1e3 * float(np.median(of_fast)), 2),
        "reference_ms": round(1e3 * float(np.median(reference)), 2),
        "times_faster": times_faster,
        "quartiles": quartiles,
    }


def is_right(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether result and gradients are no further from float64 than those of the plain formulation, times 1.5.

    On one of three random inputs: where the argument of a rectifier nearly vanishes, rounding decides whether a voxel
    has a gradient, and either formulation may be the unlucky one.
    """
    return any(_is_right_on(module, torch.rand(shape, device=DEVICE)) for _ in range(3))


def _is_right_on(module: nn.Module, x: torch.Tensor) -> bool:
    exact = [t.double() for t in results(module.double(), x.double(), use_autocast=False)]
    module.float()
    with plain_formulation(module):
        allowed = distances(results(module, x), exact)
    return all(d <= 1.5 * a + 1e-5 for d, a in zip(distances(results(module, x), exact), allowed, strict=True))


def results(module: nn.Module, x: torch.Tensor, *, use_autocast: bool = True) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    with autocast() if use_autocast else contextlib.nullcontext():
        out = module(x)
        loss = out.to(x.dtype).square().mean()
    return [out.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]


def distances(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    return [((a.double() - b).norm() / b.norm().clamp(min=1e-30)).item() for a, b in zip(found, exact, strict=True)]


def machine() -> dict[str, float]:
    """Bytes that a copy reads and writes, and operations of a dense convolution, per second."""
    values = torch.rand(2**28 if CUDA else 2**25, device=DEVICE)
    copy = values.clone()
    convolution = nn.Conv3d(64, 64, 3, padding=1, device=DEVICE)
    image = torch.rand(1, 64, *(96 if CUDA else 32,) * 3, device=DEVICE)
    image = image.contiguous(memory_format=torch.channels_last_3d)
    times = {"copy": [], "convolution": []}
    for _ in range(20):
        times["copy"].append(seconds(lambda: copy.copy_(values)))
        times["convolution"].append(seconds(partial(forward, convolution, image)))
    operations = 2 * convolution.weight.numel() * image[0, 0].numel()
    return {
        "copy_GB_per_s": 2e-9 * values.nbytes / float(np.median(times["copy"])),
        "convolution_GFLOP_per_s": 1e-9 * operations / float(np.median(times["convolution"])),
    }


def work(layer: NonnegativeDeconvolution, shape: tuple[int, ...], what: str) -> tuple[float, float]:
    """Operations of the layer's convolutions, and bytes that have to move, see the top of this file."""
    voxels = shape[0] * np.prod(shape[2:])
    operations = 2 * voxels * (layer.source.weight.numel() + 3 * layer.filter.numel())
    image, source = voxels * layer.channels, voxels * layer.source_channels
    if what == "forward":
        return operations, (2 if CUDA else 4) * (image + source)
    return 3 * operations, (2 if CUDA else 4) * (image + source + source + image + image)


def module_rows(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], rounds: int) -> list[dict]:
    """Forward, and forward and backward, of a module beside its plain formulation."""
    torch.manual_seed(0)
    module, x = build().to(DEVICE), torch.rand(shape, device=DEVICE)
    right = is_right(module, (1, *shape[1:-1], min(shape[-1], 24)))
    rows = []
    with torch.no_grad():
        gradient = torch.randn_like(module(x))
    # As in a network: what comes in has a gradient, too.
    trained = partial(differentiate, module, x.clone().requires_grad_(), gradient)
    for what, run in (("forward", partial(forward, module, x)), ("forward + backward", trained)):
        times = compare(run, run, rounds, plain=module)
        if isinstance(module, NonnegativeDeconvolution):
            operations, moved = work(module, shape, what)
            times["GFLOP_per_s"] = round(1e-6 * operations / times["ms"], 1)
            times["GB_per_s"] = round(1e-6 * moved / times["ms"], 2)
        if not right:
            times = dict.fromkeys(times, "")
        rows.append(
            {"what": name, "shape": " x ".join(map(str, shape)), "pass": what, "against": "plain formulation"} | times
        )
    return rows


def network_rows(rounds: int) -> list[dict]:
    """Deconver beside nnU-Net's networks on the same plan."""
    strides = [[1] * 3] + [[2] * 3] * (5 if CUDA else 3)
    shape = (2, 1, 128, 128, 128) if CUDA else (2, 1, 40, 56, 40)
    features = [32, 64, 128, 256, 320, 320][: len(strides)]
    networks = {name: _entry(features, strides, kernel) for name, kernel in (("Deconver k3", 3), ("Deconver k5", 5))}
    plain = plain_architecture(networks["Deconver k3"])
    networks["ResidualEncoderUNet"] = {
        "network_class_name": "nnunet_deconver.networks.ResidualEncoderUNet",
        "arch_kwargs": {k: v for k, v in plain["arch_kwargs"].items() if k != "n_conv_per_stage"}
        | {
            "n_blocks_per_stage": [1, 3, 4, 6, 6, 6][: len(strides)],
            "n_conv_per_stage_decoder": [1] * (len(strides) - 1),
        },
        "_kw_requires_import": plain["_kw_requires_import"],
    }
    reference = _network(plain)
    x = torch.rand(shape, device=DEVICE)
    rows = []
    for name, entry in tqdm(networks.items(), unit="network"):
        network = _network(entry)
        for what, run in (("forward", forward), ("forward + backward", step)):
            times = compare(partial(run, network, x), partial(run, reference, x), rounds)
            rows.append(
                {"what": name, "shape": " x ".join(map(str, shape)), "pass": what, "against": "PlainConvUNet"} | times
            )
        if "Deconver" in name:
            rows += [
                {"what": name, "shape": " x ".join(map(str, shape)), "pass": what, "against": "plain formulation"}
                | compare(partial(run, network, x), partial(run, network, x), 2, plain=network)
                for what, run in (("forward", forward), ("forward + backward", step))
                if not CUDA  # compiled networks would be compiled anew
            ]
    return rows


def _entry(features: list[int], strides: list[list[int]], kernel: int) -> dict:
    arch_kwargs = {
        "n_stages": len(features),
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[kernel] * 3] * len(features),
        "strides": strides,
    }
    return {"network_class_name": DECONVER, "arch_kwargs": arch_kwargs, "_kw_requires_import": ["conv_op"]}


def _network(entry: dict) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(entry, 1, 3, deep_supervision=True).to(DEVICE)
    return torch.compile(network) if CUDA else network


def main():
    """Reads the command line, measures, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    parser.add_argument("--rounds", type=int, default=20 if CUDA else 7)
    args = parser.parse_args()
    rows = []
    cases = [(name, *stage) for name, stages in STAGES.items() for stage in stages]
    for name, channels, size in tqdm(cases, unit="stage"):
        shape = (2, channels, *size)
        rows += module_rows(f"NDC, {name}", partial(NonnegativeDeconvolution, channels, (3, 3, 3)), shape, args.rounds)
        rows += module_rows(f"block, {name}", partial(DeconverBlock, channels, (3, 3, 3)), shape, args.rounds)
    rows += network_rows(args.rounds)
    rows = [dict.fromkeys(rows[0], "") | row for row in rows]
    autocast_dtype = "float16" if CUDA else "none"
    record(
        args.out,
        rows,
        threads=torch.get_num_threads(),
        autocast=autocast_dtype,
        machine={name: round(value, 1) for name, value in machine().items()},
    )


if __name__ == "__main__":
    main()
