r"""What `nnunet-deconver plan` planned, and what `nnunet-deconver summary` counts of it.

    nnUNetv2_extract_fingerprint -d 4
    nnunet-deconver plan -d 4
    python benchmarks/planning.py Dataset004_Hippocampus nnUNetDeconverPlans nnUNetTrainerDeconver \
      --out benchmarks/results/planning_hippocampus

`nnUNet_preprocessed` is set. Rows are the stages of the network of the configuration `3d_fullres`.
"""

import argparse
import json
import math
import os
from pathlib import Path

from recording import record

from nnunet_deconver.models.cost import count_beside_default, of_plans
from nnunet_deconver.plans.planners import ESTIMATE, recomputed


def planned(plans: dict) -> list[dict]:
    """Patch, batch and memory of each configuration."""
    return [
        {
            "configuration": name,
            "patch": plans["configurations"][name]["patch_size"],
            "batch": plans["configurations"][name]["batch_size"],
            "spacing_mm": plans["configurations"][name]["spacing"],
            "stages": plans["configurations"][name]["architecture"]["arch_kwargs"]["n_stages"],
            "recomputed_stages": recomputed(plans["configurations"][name]["architecture"]),
            "training_GiB": estimate,
            "preprocessed_data": plans["configurations"][name]["data_identifier"],
        }
        for name, estimate in plans[ESTIMATE].items()
    ]


def main():
    """Reads the command line, counts, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("plans")
    parser.add_argument("trainer")
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    args = parser.parse_args()
    folder = Path(os.environ["nnUNet_preprocessed"]) / args.dataset
    path = folder / f"{args.plans}.json"
    task, subjects = of_plans(path, folder / "dataset.json", [args.trainer])
    costs = count_beside_default(task, subjects)
    voxels = math.prod(task.patch_size)

    def kflops(counted) -> dict:
        """With the convolutions inside the updates, and without."""
        return {
            "kFLOPs_per_voxel": round(counted.flops / voxels / 1e3, 1),
            "kFLOPs_per_voxel_without_updates": round((counted.flops - counted.ndc_flops) / voxels / 1e3, 1),
        }

    stages = [
        {
            "stage": stage.name,
            "size": " x ".join(map(str, stage.size)),
            "channels": stage.channels,
            "parameters": stage.parameters,
            **kflops(stage),
            "kept_for_backward_MiB": round(stage.kept / 2**20, 1),
        }
        for stage in costs[args.trainer].stages
    ]
    networks = [
        {
            "network": name,
            "parameters": cost.parameters,
            **kflops(cost),
            "step_GFLOPs": round(cost.training_flops / 1e9, 1),
            "step_GFLOPs_without_recomputation": round(cost.training_flops_without_recomputation / 1e9, 1),
            "weights_GiB": round((cost.memory.parameters + cost.memory.gradients + cost.memory.optimizer) / 2**30, 4),
            "kept_for_backward_GiB": round(cost.memory.kept / 2**30, 4),
            "training_GiB": round(cost.memory.peak / 2**30, 4),
        }
        for name, cost in costs.items()
    ]
    record(args.out, stages, planned=planned(json.loads(path.read_text())), networks=networks)


if __name__ == "__main__":
    main()
