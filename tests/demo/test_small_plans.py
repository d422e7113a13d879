import json
import math

import numpy as np
import pytest
import torch

from nnunet_deconver.demo.small_plans import SMALL_PLANS, choose_plans, shrink_plans


def plan(patch, strides, batch=2, network="PlainConvUNet"):
    stages, axes = len(strides), len(patch)
    blocks = {
        "PlainConvUNet": {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)},
        "ResidualEncoderUNet": {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6][:stages]}
        | {"n_conv_per_stage_decoder": [1] * (stages - 1)},
    }[network]
    arch_kwargs = {
        "n_stages": stages,
        "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[1 if stride == 1 and i else 3 for stride in axis] for i, axis in enumerate(strides)],
        "strides": strides,
        **blocks,
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_x",
        "patch_size": patch,
        "batch_size": batch,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {"plans_name": "nnUNetPlans", "configurations": {"x": configuration, "other": {}}}


PLANS = {
    "2D": plan([512, 448], [[1, 1]] + 6 * [[2, 2]], batch=12),
    "3D": plan([128, 112, 160], [[1, 1, 1]] + 4 * [[2, 2, 2]] + [[1, 2, 2]]),
    "3D, residual": plan([128, 128, 128], [[1, 1, 1]] + 5 * [[2, 2, 2]], network="ResidualEncoderUNet"),
    "anisotropic": plan([20, 320, 256], [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]),
    "large strides": plan([48, 48, 144], [[1, 1, 1], [2, 2, 2], [2, 2, 4], [2, 2, 6]]),
    "odd": plan([40, 56, 40], [[1, 1, 1]] + 3 * [[2, 2, 2]]),
    "flat": plan([1, 96, 96], [[1, 1, 1]] + 4 * [[1, 2, 2]]),
    "small": plan([24, 16], [[1, 1], [2, 2]], batch=1),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("network", ["as planned", "Deconver"])
def test_small_plans_build_and_run(name, network):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from nnunet_deconver.networks.architecture import deconver_architecture

    before = json.dumps(PLANS[name])
    small = shrink_plans(PLANS[name], "x")
    assert json.dumps(PLANS[name]) == before
    small_plan, large_plan = small["configurations"]["x"], PLANS[name]["configurations"]["x"]
    strides = np.prod(small_plan["architecture"]["arch_kwargs"]["strides"], axis=0)
    assert all(size % stride == 0 and size > 0 for size, stride in zip(small_plan["patch_size"], strides, strict=True))
    architecture = small_plan["architecture"]
    if network == "Deconver":
        architecture = deconver_architecture(architecture)
    names = (architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"])
    with torch.device("meta"):
        patch = torch.empty(2, 1, *small_plan["patch_size"])
        outputs = get_network_from_plans(*names, 1, 3, allow_init=False, deep_supervision=True)(patch)
    assert outputs[0].shape == (2, 3, *small_plan["patch_size"])
    assert all(a <= b for a, b in zip(small_plan["patch_size"], large_plan["patch_size"], strict=True))


@pytest.mark.parametrize("name", PLANS)
def test_small_plans_are_small(name):
    small = shrink_plans(PLANS[name], "x")
    small_plan, large_plan = small["configurations"]["x"], PLANS[name]["configurations"]["x"]
    network = small_plan["architecture"]["arch_kwargs"]
    assert small["plans_name"] == SMALL_PLANS
    assert "__" not in SMALL_PLANS
    assert small_plan["data_identifier"] == large_plan["data_identifier"]
    assert network["n_stages"] <= 4
    assert network["features_per_stage"] == [16, 32, 64, 128][: network["n_stages"]]
    assert math.prod(small_plan["patch_size"]) * small_plan["batch_size"] <= 2 * 48 * 32**2
    # The stages kept are the first ones, of the highest resolution.
    assert network["strides"] == large_plan["architecture"]["arch_kwargs"]["strides"][: network["n_stages"]]


def test_plans_are_cut_down_without_a_gpu_only(tmp_path, capsys):
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(PLANS["3D"]))
    assert choose_plans(tmp_path, "x", "cuda") == "nnUNetPlans"
    assert "GPU" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 1
    assert choose_plans(tmp_path, "x", "cpu") == SMALL_PLANS
    said = capsys.readouterr().out
    assert "32x32x32" in said
    assert "128x112x160" in said
    assert json.loads((tmp_path / f"{SMALL_PLANS}.json").read_text()) == shrink_plans(PLANS["3D"], "x")
