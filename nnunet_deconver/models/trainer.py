"""The classes that trained a model, or will."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from nnunet_deconver.integration.trainers import search_trainer

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def find_trainer(name: str) -> "type[nnUNetTrainer]":
    """A trainer of this package, registered or not, or any other that nnU-Net finds.

    Raises:
        InputError: if there is none.
    """
    from nnunet_deconver import trainers

    return getattr(trainers, name) if name in trainers.__all__ else search_trainer(name)


def trainer_optimizer(trainer: "type[nnUNetTrainer]", network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a trainer gives a network, without training.

    A trainer needs preprocessed data and makes folders when it is constructed; its optimizer needs neither.

    Raises:
        ValueError: if it does need more.
    """
    instance = trainer.__new__(trainer)
    instance.network = network
    instance.initial_lr, instance.weight_decay, instance.num_epochs = 1e-2, 3e-5, 1000
    try:
        return instance.configure_optimizers()[0]
    except AttributeError as error:
        raise ValueError(f"its optimizer cannot be made without training ({error})") from error
