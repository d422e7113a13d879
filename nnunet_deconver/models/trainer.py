"""The classes that trained a model, or will."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.integration.trainers import search_trainer

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


def find_trainer(name: str) -> "type[nnUNetTrainer]":
    """A trainer of this package, registered or not, or any other that nnU-Net finds; with options in its name, or none.

    Raises:
        InputError: if there is none.
    """
    from nnunet_deconver import trainers
    from nnunet_deconver.trainers.options import with_options

    if not name.isidentifier():
        raise ArgumentError("trainer", name, "must be the name of a class; see `nnunet-deconver list trainers`")
    if name in trainers.__all__:
        return getattr(trainers, name)
    return with_options(name) or search_trainer(name)


def build_trained(
    trainer: "type[nnUNetTrainer]",
    plans: "PlansManager",
    configuration: "ConfigurationManager",
    input_channels: int,
    num_classes: int,
    deep_supervision: bool,
) -> nn.Module:
    """The network that a trainer builds of a configuration.

    Raises:
        InputError: if it cannot be built, whatever nnU-Net or the network raised.
    """
    try:
        return trainer.build_network_architecture(plans, configuration, input_channels, num_classes, deep_supervision)
    except InputError:
        raise
    except Exception as error:  # plans are written by hand, too: a network's arguments can be anything
        reason = " ".join(str(error).split())[:300]
        name = configuration.configuration["architecture"].get("network_class_name")
        raise InputError(
            f"{trainer.__name__} cannot build {name} of the plans: {type(error).__name__}: {reason}"
        ) from error


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
