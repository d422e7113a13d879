"""Where a CPU spends its time in Deconver: each part of a block, stage by stage, and how much of the machine it uses.

    python benchmarks/stage_parts.py --out benchmarks/results/stage_parts_cpu

Parts are run by themselves, in turn, on the features of the stages of `speed.py`'s network (2 x 40 x 56 x 40), as
often as a network has them (once in the encoder, once in the decoder but for the lowest stage). Arithmetic is that of
their convolutions, three times as much with the backward pass; bytes are those of what comes in and goes out, once each
way. Both are given as shares of what the machine attains in a dense convolution and in a copy, measured in the same
run: what is far below both is limited by neither.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from recording import record
from speed import differentiate, forward, machine, seconds
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_deconver.layers import DeconverBlock
from nnunet_deconver.ops import fast_layout

STAGES = [(32 * 2**i, size) for i, size in enumerate([(40, 56, 40), (20, 28, 20), (10, 14, 10), (5, 7, 5)])]
BATCH = 2


def parts_of(block: DeconverBlock) -> dict[str, tuple[Callable[[Tensor], Tensor], float]]:
    """Each part, and its multiply-adds for a voxel."""
    mixer, ndc = block.mixer, block.mixer.ndc
    taps = ndc.filter.numel()
    weights = ndc.source.weight.numel() + mixer.projection_out.weight.numel()
    return {
        "norms": (lambda x: block.norm_mlp(block.norm_mixer(x)), 0),
        "projection in, ReLU": (mixer.rectified, mixer.projection_in.weight.numel()),
        "NDC, projections": (lambda x: ndc.project(x, mixer.projection_out), weights + 3 * taps),
        "MLP": (block.mlp, sum(layer.weight.numel() for layer in block.mlp if not isinstance(layer, nn.GELU))),
        "block": (block, 0),
    }


def rows_of(stage: int, kernel: int, rounds: int, attainable: dict[str, float]) -> list[dict]:
    """A row for each part of a stage."""
    channels, size = STAGES[stage]
    torch.manual_seed(0)
    block = DeconverBlock(channels, (kernel,) * 3)
    x = fast_layout(torch.rand(BATCH, channels, *size)).requires_grad_()
    gradient = fast_layout(torch.randn(BATCH, channels, *size))
    parts = parts_of(block)
    times = {name: [] for name in parts}
    for round_ in range(rounds + 1):
        for name, (part, _) in parts.items():
            measured = seconds(partial(forward, part, x)), seconds(partial(differentiate, part, x, gradient))
            if round_:  # the first warms up
                times[name].append(measured)
    blocks = 1 if stage == len(STAGES) - 1 else 2
    arithmetic = 2e-9 * BATCH * np.prod(size)
    rows = []
    for name, (_, weights) in parts.items():
        predicting, training = blocks * np.median(times[name], axis=0)
        moved = 1e-9 * blocks * 4 * x.numel()
        rows.append(
            {
                "kernel": kernel,
                "stage": stage,
                "part": name,
                "forward_ms": round(1e3 * predicting, 1),
                "forward_backward_ms": round(1e3 * training, 1),
                "arithmetic_share": round(blocks * arithmetic * weights / predicting / attainable["convolution"], 2),
                "arithmetic_share_backward": round(
                    3 * blocks * arithmetic * weights / training / attainable["convolution"], 2
                ),
                "bandwidth_share": round(2 * moved / predicting / attainable["copy"], 2),
                "bandwidth_share_backward": round(5 * moved / training / attainable["copy"], 2),
            }
        )
    return rows


def main():
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    measured = machine()
    attainable = {"convolution": measured["convolution_GFLOP_per_s"], "copy": measured["copy_GB_per_s"]}
    cases = [(stage, kernel) for kernel in (3, 5) for stage in range(len(STAGES))]
    rows = [row for case in tqdm(cases, unit="stage") for row in rows_of(*case, args.rounds, attainable)]
    record(
        args.out,
        rows,
        threads=torch.get_num_threads(),
        machine={name: round(value, 1) for name, value in measured.items()},
    )


if __name__ == "__main__":
    main()
