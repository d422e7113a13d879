"""What each upsampling and head adds to nnU-Net's plain network: parameters, FLOPs, memory, time of a training step.

    python benchmarks/components_overhead.py --out benchmarks/results/components_overhead_cpu

Parameters, FLOPs and bytes kept for backward are counted without running anything, for nnU-Net's usual 3D network (6
stages, patch 128^3, batch 2, deep supervision, float32). FLOPs are 2 x multiply-adds of convolutions and matrix
products; sampling is not counted. Times are of small patches on this machine, as ratios to the plain network, measured
in turn in one run.
"""

import argparse
import time
from pathlib import Path

import torch
from recording import ratio, record
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from nnunet_deconver.networks import PlainConvUNet

VARIANTS = {
    "plain": {},
    "linear": {"upsampling": {"name": "linear"}},
    "dysample": {"upsampling": {"name": "dysample"}},
    "dtc": {"upsampling": {"name": "dtc"}},
    "dtc on linear": {"upsampling": {"name": "dtc", "base": "linear"}},
    "nerdm": {"segmentation_head": {"name": "nerdm"}},
    "nerdc": {"segmentation_head": {"name": "nerdc"}},
    "dtc + nerdc": {"upsampling": {"name": "dtc"}, "segmentation_head": {"name": "nerdc"}},
}
FEATURES = [32, 64, 128, 256, 320, 320]
CLASSES = 4


def build(variant: str, stages: int) -> nn.Module:
    """nnU-Net's plain network in 3D, with the axes of a variant."""
    return PlainConvUNet(
        1,
        stages,
        FEATURES[:stages],
        nn.Conv3d,
        3,
        [1] + [2] * (stages - 1),
        2,
        CLASSES,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **VARIANTS[variant],
    )


def count(variant: str) -> dict:
    """Parameters, FLOPs per voxel and bytes kept for backward, on tensors without memory."""
    with torch.device("meta"):
        network = build(variant, 6)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 1, 128, 128, 128))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode():
        network = build(variant, 6)
        parameters = {p.untyped_storage()._cdata for p in network.parameters()}
        image = torch.randn(2, 1, 128, 128, 128)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = network(image)
        bytes_kept = sum(size for storage, size in kept.items() if storage not in parameters)
        del outputs
    return {
        "parameters_M": sum(p.numel() for p in network.parameters()) / 1e6,
        "KFLOPs_per_voxel": counter.get_total_flops() / 128**3 / 1e3,
        "kept_for_backward_GiB": bytes_kept / 2**30,
    }


def step_times(rounds: int) -> dict[str, list[float]]:
    """Seconds of training steps, the variants in turn."""
    torch.manual_seed(0)
    networks = {variant: build(variant, 4) for variant in VARIANTS}
    image = torch.randn(2, 1, 32, 32, 32)
    times = {variant: [] for variant in VARIANTS}
    for round_ in tqdm(range(rounds + 1), unit="round"):
        for variant, network in list(networks.items())[:: 1 if round_ % 2 else -1]:
            start = time.perf_counter()
            sum(output.square().mean() for output in network(image)).backward()
            if round_:  # the first warms up
                times[variant].append(time.perf_counter() - start)
    return times


def main():
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = [{"variant": variant, **count(variant)} for variant in tqdm(VARIANTS, unit="network")]
    times = step_times(args.rounds)
    for row in rows:
        row["step_time_ratio"], row["quartiles"] = ratio(times[row["variant"]], times["plain"])
    rows = [{key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in rows]
    times_of = "2 x 32^3, 4 stages, float32; ratio to plain, median and quartiles"
    record(args.out, rows, times=times_of, rounds=args.rounds)


if __name__ == "__main__":
    main()
