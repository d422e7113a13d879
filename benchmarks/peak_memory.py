"""The most memory that a training step takes on a GPU, Deconver beside nnU-Net's PlainConvUNet on the same plan.

    python benchmarks/peak_memory.py --out benchmarks/results/peak_memory
    python benchmarks/peak_memory.py --recomputation --out benchmarks/results/recomputation

Counted by `plans.memory` as planners do it, with float16 autocast: no GPU is needed and nothing is measured. Each
network is counted as it is, with DTC, with NeRDc and with both, with the optimizer that it is usually trained with. Of
Deconver as it is, what the plain formulation would keep is counted too: PyTorch's grouped convolutions, without
anything made again in the backward pass.

With --recomputation: what Deconver as it is takes with `recompute` "always" and "never", and the FLOPs of a step.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

from recording import record
from tqdm import tqdm

from nnunet_deconver.networks.architecture import build_network, deconver_architecture, plain_architecture
from nnunet_deconver.networks.backbones import usual_recipe, with_components
from nnunet_deconver.plans.cost import training_flops
from nnunet_deconver.plans.memory import GIB, TrainingMemory, training_memory
from nnunet_deconver.plans.presets import load_preset

AXES = {
    "": {},
    "DTC": {"upsampling": {"name": "dtc"}},
    "NeRDc": {"segmentation_head": {"name": "nerdc"}},
    "DTC, NeRDc": {"upsampling": {"name": "dtc"}, "segmentation_head": {"name": "nerdc"}},
}


class Plan(NamedTuple):
    """What decides on memory, the architecture entry being Deconver's."""

    architecture: dict
    patch_size: tuple[int, ...]
    batch_size: int
    channels: int
    classes: int
    regions: bool = False


def topology(strides: list[list[int]], widest: int, flat: int = 0) -> dict:
    """Deconver on stages as nnU-Net plans them, from 32 channels on; the first `flat` kernels lie in a plane."""
    rank = len(strides[0])
    arch_kwargs = {
        "n_stages": len(strides),
        "features_per_stage": [min(32 * 2**stage, widest) for stage in range(len(strides))],
        "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
        "kernel_sizes": [[1, 3, 3]] * flat + [[3] * rank] * (len(strides) - flat),
        "strides": strides,
    }
    return deconver_architecture(
        plain_architecture({"network_class_name": "", "arch_kwargs": arch_kwargs, "_kw_requires_import": ["conv_op"]})
    )


def halved(rank: int, stages: int) -> list[list[int]]:
    return [[1] * rank] + [[2] * rank] * (stages - 1)


def of_preset(name: str) -> Plan:
    """A preset whose source prints patch and batch."""
    preset = load_preset(name)
    return Plan(
        preset.architecture,
        tuple(preset.patch_size),
        preset.batch_size,
        preset.input_channels,
        preset.num_classes,
        preset.regions,
    )


ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
PLANS = {
    "nnU-Net's default 3D plan": Plan(topology(halved(3, 6), 320), (128, 128, 128), 2, 1, 3),
    "nnU-Net's default 2D plan": Plan(topology(halved(2, 8), 512), (512, 512), 12, 1, 3),
    "anisotropic": Plan(topology(ANISOTROPIC, 320, flat=2), (24, 256, 256), 2, 1, 3),
    "Hippocampus": Plan(topology(halved(3, 4), 320), (40, 56, 40), 7, 1, 3),
    "DRIVE": Plan(topology(halved(2, 7), 512), (512, 576), 8, 3, 2),
    "isles22": of_preset("isles22"),
    "brats23": of_preset("brats23"),
    "brats23-k5": of_preset("brats23-k5"),
    "glas": of_preset("glas"),
    "isles26": of_preset("isles26"),
}


def step_of(plan: Plan) -> dict:
    """What is counted for a training step on a plan: arguments of `training_memory` and `training_flops`."""
    return {
        "input_channels": plan.channels,
        "num_classes": plan.classes,
        "regions": plan.regions,
        "patch_size": plan.patch_size,
        "batch_size": plan.batch_size,
    }


def count(entry: dict, plan: Plan) -> TrainingMemory:
    """The memory of training a network on a plan."""
    return training_memory(
        partial(build_network, entry, plan.channels, plan.classes, deep_supervision=True),
        **step_of(plan),
        build_optimizer=usual_recipe(entry).build_optimizer,
    )


def recomputation(plan: Plan) -> dict[str, float]:
    """Memory and FLOPs of a step with and without computing again."""
    never = plan.architecture | {"arch_kwargs": plan.architecture["arch_kwargs"] | {"recompute": "never"}}
    entries = {"PlainConvUNet": plain_architecture(plan.architecture), "always": plan.architecture, "never": never}
    flops = {
        name: training_flops(
            partial(build_network, entry, plan.channels, plan.classes, deep_supervision=True),
            **step_of(plan),
        )
        for name, entry in entries.items()
    }
    return {
        "plain_step_TFLOPs": round(flops["PlainConvUNet"] / 1e12, 3),
        "step_TFLOPs": round(flops["always"] / 1e12, 3),
        "step_without_recomputation_TFLOPs": round(flops["never"] / 1e12, 3),
        "peak_GiB": round(count(plan.architecture, plan).peak / GIB, 3),
        "peak_without_recomputation_GiB": round(count(never, plan).peak / GIB, 3),
    }


def kept_by_plain_formulation(plan: Plan) -> int:
    """Bytes that Deconver keeps for the backward pass if nothing is fused or made again."""
    further = {"backend": "plain", "recompute": "never"}
    return count(plan.architecture | {"arch_kwargs": plan.architecture["arch_kwargs"] | further}, plan).kept


def main():
    """Reads the command line, counts, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    parser.add_argument("--recomputation", action="store_true", help="count with and without computing again")
    args = parser.parse_args()
    if args.recomputation:
        record(args.out, [{"plan": name} | recomputation(plan) for name, plan in tqdm(PLANS.items(), unit="plan")])
        return
    rows = []
    for name, plan in tqdm(PLANS.items(), unit="plan"):
        for label, axes in AXES.items():
            deconver, plain = (
                count(with_components(entry, **axes), plan)
                for entry in (plan.architecture, plain_architecture(plan.architecture))
            )
            rows.append(
                {
                    "plan": name,
                    "batch": plan.batch_size,
                    "patch": " x ".join(map(str, plan.patch_size)),
                    "with": label,
                    "plain_kept_GiB": round(plain.kept / GIB, 3),
                    "plain_peak_GiB": round(plain.peak / GIB, 3),
                    "kept_GiB": round(deconver.kept / GIB, 3),
                    "peak_GiB": round(deconver.peak / GIB, 3),
                    "kept_by_plain_formulation_GiB": "" if axes else round(kept_by_plain_formulation(plan) / GIB, 3),
                }
            )
    record(args.out, rows)


if __name__ == "__main__":
    main()
