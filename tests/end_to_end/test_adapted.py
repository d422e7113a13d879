"""Networks of others with nnU-Net's own trainer and commands: planned, trained for two iterations, predicted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_deconver.networks.architecture import ADAPTED

pytestmark = pytest.mark.slow
SITE = Path(__file__).parents[1] / "own_network"
# A subclass of nnU-Net's own trainer which changes the numbers of epochs and iterations alone.
TRAINER = "nnUNetTrainerTiny"


def test_a_network_of_monai_from_the_plan_to_the_prediction(warm, tiny, tmp_path):
    chosen = ["--backbone", "segresnet", "--upsampling", "dtc", "--head", "nerdc"]
    planned = warm.run("nnunet-deconver", "plan", "-d", 901, "--gpu-memory", 1, *chosen)
    name = "nnUNetSegResNetDTCNeRDc1GBPlans"
    assert planned.splitlines()[-1].endswith(f"-p {name} -tr nnUNetTrainerSegResNet")
    plans = json.loads(warm.plans(901, name).read_text())
    # The network halves three times, and any patch is rounded up to that.
    assert all(extent % 8 == 0 for extent in plans["configurations"]["3d_fullres"]["patch_size"])
    plans["configurations"]["3d_fullres"] |= {"patch_size": [16] * 3, "batch_size": 2}
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["network_kwargs"]["init_filters"] = 8
    warm.plans(901, "monaiPlans").write_text(json.dumps(plans | {"plans_name": "monaiPlans"}))

    _, model = warm.train(901, TRAINER, plans="monaiPlans", **tiny)
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert "network.conv_final.2.conv.seg_layers.0.classifier.weight" in checkpoint["network_weights"]
    prediction = warm.predict(901, TRAINER, tmp_path, plans="monaiPlans", **tiny)
    assert prediction.shape == (20, 20, 20) and set(np.unique(prediction)) <= {0, 1, 2}


def test_a_class_in_a_file_of_a_person(warm, tiny, tmp_path):
    variables = {**tiny, "PYTHONPATH": str(SITE)}
    plans = json.loads(warm.plans(901, "tinyPlans").read_text())
    arch_kwargs = {
        "network": "own_network.OwnNetwork",
        "channel_arguments": {"input_channels": "in_chans", "num_classes": "n_classes"},
        "strides": [[1, 1, 1], [1, 1, 1], [2, 2, 2]],
    }
    architecture = {"network_class_name": ADAPTED, "arch_kwargs": arch_kwargs, "_kw_requires_import": []}
    plans["configurations"] = {"3d_fullres": plans["configurations"]["3d_fullres"] | {"architecture": architecture}}
    warm.plans(901, "ownPlans").write_text(json.dumps(plans | {"plans_name": "ownPlans"}))

    _, model = warm.train(901, TRAINER, plans="ownPlans", **variables)
    prediction = warm.predict(901, TRAINER, tmp_path / "out", plans="ownPlans", **variables)
    assert prediction.shape == (20, 20, 20) and set(np.unique(prediction)) <= {0, 1, 2}

    # This package's own commands import it when they are told to.
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    command = "upgrade-checkpoint", checkpoint, "--upsampling", "dtc", "--head", "nerdc", "-o", tmp_path / "upgraded"
    refused = warm.run("nnunet-deconver", *command, returncode=2, **variables)
    assert "arch_kwargs.network 'own_network.OwnNetwork' is not of" in refused and "add --trust" in refused
    warm.run("nnunet-deconver", *command, "--trust", **variables)
    weights = torch.load(tmp_path / "upgraded" / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert "network.up.base.weight" in weights["network_weights"]
