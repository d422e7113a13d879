"""Trainings with options in the trainer's name, by nnU-Net's commands."""

import json
import shutil

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow
MORTAL = "nnUNetTrainerMortal_3epochs_3iterations_seed1"
DECONVER = "nnUNetTrainerDeconverDTCNeRDc_2epochs_2iterations_seed7"


@pytest.fixture(scope="module")
def train(warm, tiny):
    """A function that trains a network with dropout and returns what does not depend on the time of day."""
    plans = json.loads(warm.plans(901, "tinyPlans").read_text())
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments |= {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.5}}
    warm.plans(901, "dropoutPlans").write_text(json.dumps(plans | {"plans_name": "dropoutPlans"}))

    def train(trainer, *options, **variables):
        _, model = warm.train(901, trainer, *options, plans="dropoutPlans", **tiny | variables)
        if variables.get("returncode") == -9:
            return None
        found = {}
        for name in ("final", "best"):
            path = model / "fold_0" / f"checkpoint_{name}.pth"
            checkpoint = torch.load(path, map_location="cpu", weights_only=False)
            logged = {key: values for key, values in checkpoint["logging"].items() if "timestamps" not in key}
            found[name] = {"weights": checkpoint["network_weights"], "logged": logged}
            found[name]["optimizer"] = checkpoint["optimizer_state"]["state"]
        summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
        found["validation"] = [case["metrics"] for case in summary["metric_per_case"]]
        shutil.rmtree(model)
        return found

    return train


@pytest.fixture(scope="module")
def undisturbed(train):
    """A training of 3 epochs with seed 1 and one worker."""
    return train(MORTAL, nnUNet_n_proc_DA="1")


def check_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("workers", ["0", "3"])
def test_equal_seeds_give_equal_trainings_with_any_number_of_workers(train, undisturbed, workers):
    check_same(train(MORTAL, nnUNet_n_proc_DA=workers), undisturbed)


def test_another_seed_gives_another_training(train, undisturbed):
    one, other = undisturbed["final"], train(MORTAL.replace("seed1", "seed2"))["final"]
    kernels = [name for name, weight in one["weights"].items() if weight.ndim > 1]
    assert kernels and not any(torch.equal(one["weights"][name], other["weights"][name]) for name in kernels)
    losses = one["logged"]["val_losses"], other["logged"]["val_losses"]
    assert losses[0] != losses[1] and len(losses[0]) == len(losses[1]) == 3


def test_a_training_that_was_killed_ends_as_the_undisturbed_one(train, undisturbed):
    """Killed in its second epoch, and again in its third, each time with another number of workers."""
    train(MORTAL, TINY_DIES_IN="1", returncode=-9)
    train(MORTAL, "--c", TINY_DIES_IN="2", returncode=-9, nnUNet_n_proc_DA="2")
    check_same(train(MORTAL, "--c", nnUNet_n_proc_DA="0"), undisturbed)


def test_a_trainer_of_this_package_is_seeded_too(train):
    check_same(train(DECONVER, nnUNet_n_proc_DA="2"), train(DECONVER, nnUNet_n_proc_DA="0"))


def test_nnunets_commands_take_options(nnunet, tiny, tmp_path):
    """Each in a process of its own; nnU-Net's own trainer, which predicts by the name in its checkpoint."""
    name = "nnUNetTrainer_1epoch_6iterations_seed3"
    _, model = nnunet.train(901, name, **tiny)
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert (checkpoint["trainer_name"], checkpoint["current_epoch"]) == (name, 1)
    labels = nnunet.predict(901, name, tmp_path / "predicted", **tiny)
    assert labels.shape == (20, 20, 20)
    assert set(np.unique(labels)) <= {0, 1, 2}
