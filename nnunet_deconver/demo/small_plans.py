"""Plans that a CPU trains with in minutes."""

import copy
import json
import math
from pathlib import Path

# What a plan is cut down to where there is no GPU; patch and batch by number of axes.
SMALL_PLANS = "nnUNetPlansSmall"
SMALL_PATCH = {2: 128, 3: 32}
SMALL_BATCH = {2: 4, 3: 2}
SMALL_STAGES = 4
SMALL_FEATURES = 16  # of the first stage, doubled from each to the next


def choose_plans(preprocessed: Path, configuration: str, device: str) -> str:
    """The plans to train with: nnU-Net's own on a GPU, else smaller ones, written beside them. Says so.

    Args:
        preprocessed: the dataset's folder there.
        configuration: as in the plans.
        device: "cpu" or "cuda".

    Returns:
        Their name.
    """
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    default = _describe(plans, configuration)
    if device != "cpu":
        print(f"Plan: nnU-Net's own, for the GPU: {default}.")
        return "nnUNetPlans"
    small = shrink_plans(plans, configuration)
    (preprocessed / f"{SMALL_PLANS}.json").write_text(json.dumps(small, indent=2))
    print(f"Plan: {_describe(small, configuration)}, so that a CPU needs minutes; nnU-Net's own: {default}.")
    return SMALL_PLANS


def _describe(plans: dict, configuration: str) -> str:
    plan = plans["configurations"][configuration]
    network = plan["architecture"]["arch_kwargs"]
    patch, features = "x".join(map(str, plan["patch_size"])), network["features_per_stage"]
    return f"patch {patch}, batch {plan['batch_size']}, {network['n_stages']} stages of {features[0]}-{features[-1]}"


def shrink_plans(plans: dict, configuration: str) -> dict:
    """Plans that a CPU trains with in minutes, on the same preprocessed data.

    Args:
        plans: of nnU-Net's planner, for PlainConvUNet or ResidualEncoderUNet.
        configuration: the one to keep.

    Returns:
        Plans with fewer stages and features, and with a small patch that the strides divide and a batch to match.
    """
    plan = copy.deepcopy(plans["configurations"][configuration])
    network = plan["architecture"]["arch_kwargs"]
    stages = network["n_stages"] = min(network["n_stages"], SMALL_STAGES)
    for name, value in network.items():
        if name.endswith("_decoder"):  # lowest resolution first
            network[name] = value[len(value) - (stages - 1) :]
        elif isinstance(value, list):
            network[name] = value[:stages]
    network["features_per_stage"] = [
        min(features, SMALL_FEATURES * 2**stage) for stage, features in enumerate(network["features_per_stage"])
    ]
    axes = len(plan["patch_size"])
    for axis in range(axes):
        divisor = math.prod(stride[axis] for stride in network["strides"])
        size = min(plan["patch_size"][axis], SMALL_PATCH[axes])
        plan["patch_size"][axis] = max(1, size // divisor) * divisor
    plan["batch_size"] = SMALL_BATCH[axes]
    return {**plans, "plans_name": SMALL_PLANS, "configurations": {configuration: plan}}
