"""A backbone, an upsampling, a head, a recipe and a metric of another package, from the plan to the evaluation."""

import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
SITE = Path(__file__).parents[1] / "extension"


def test_choices_of_another_package_train(nnunet, tiny, tmp_path):
    variables = {**tiny, "PYTHONPATH": str(SITE)}
    chosen = ["--backbone", "wide", "--upsampling", "nearest", "--head", "twice", "--recipe", "halving"]
    planned = nnunet.run("nnunet-deconver", "plan", "-d", 901, "--gpu-memory", 1, *chosen, **variables)
    name = "nnUNetWideNearestTwice1GBPlans"
    assert planned.splitlines()[-1].endswith(f"-p {name} -tr nnUNetTrainer_Halving")

    _, model = nnunet.train(901, "nnUNetTrainer_HalvingTiny", plans=name, **variables)
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert "decoder.transpconvs.0.1.weight" in checkpoint["network_weights"]
    assert "decoder.seg_layers.0.1.weight" in checkpoint["network_weights"]
    (group,) = checkpoint["optimizer_state"]["param_groups"]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (5e-4, 1e-6, (0.9, 0.999))

    out = tmp_path / "evaluation"
    printed = nnunet.run("nnunet-deconver", "evaluate", "--model", model, "-o", out, "-np", 1, **variables)
    assert "centre_distance [mm]" in printed
    assert json.loads((out / "summary.json").read_text())["definitions"]["centre_distance"] == {
        "unit": "mm",
        "definition": "between centres of mass",
    }
