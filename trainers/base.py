"""What the trainers of this package share, and how their variants are made."""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_deconver.layers.common import ChecksDevice
from nnunet_deconver.networks.architecture import build_network
from nnunet_deconver.networks.backbones import with_components
from nnunet_deconver.recipes import EpochScheduler, Recipe
from nnunet_deconver.trainers.checkpoints import CheckpointTrainer
from nnunet_deconver.trainers.losses import SquaredDiceLoss

EPOCHS = (1, 5, 10, 20, 50, 100, 250, 300, 500, 750, 2000, 4000, 8000)


class ArchitectureTrainer(CheckpointTrainer):
    """nnU-Net's trainer with a network of this package.

    Class attributes set upsampling and head of the network (see `layers.components`; None leaves them to the
    plans), the recipe (see `recipes`; None is nnU-Net's own, as it is installed), the loss and the heads that it sees,
    and what nnU-Net sets in its constructor (None keeps the recipe's value, or nnU-Net's).
    """

    upsampling: dict | None = None
    segmentation_head: dict | None = None
    recipe: Recipe | None = None
    # V-Net's Dice, whose denominator has squares, in place of nnU-Net's.
    squared_dice: bool = False
    # Off, the loss sees the head of the highest resolution alone; the others stay in the network, untrained.
    deep_supervision: bool = True

    epochs: int | None = None
    iterations_per_epoch: int | None = None
    validation_iterations_per_epoch: int | None = None
    learning_rate: float | None = None
    decay: float | None = None

    # nnU-Net reads the parameters' names off the signature and looks them up in its own: they have to be these.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        # Before nnU-Net makes the first folder: a plan that does not fit must leave nothing behind.
        self.check_plans(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        chosen = {
            "num_epochs": self.epochs,
            "num_iterations_per_epoch": self.iterations_per_epoch,
            "num_val_iterations_per_epoch": self.validation_iterations_per_epoch,
            "initial_lr": self.recipe.learning_rate
            if self.recipe and self.learning_rate is None
            else self.learning_rate,
            "weight_decay": self.recipe.decay if self.recipe and self.decay is None else self.decay,
            "enable_deep_supervision": self.deep_supervision,
        }
        for name, value in chosen.items():
            if value is not None:
                setattr(self, name, value)

    @classmethod
    def architecture(cls, architecture: dict) -> dict:
        """The architecture entry this trainer builds, given the one of the plans."""
        return with_components(architecture, upsampling=cls.upsampling, segmentation_head=cls.segmentation_head)

    @classmethod
    def planned_architecture(cls, configuration: ConfigurationManager) -> dict:
        """The architecture entry this trainer builds of a configuration."""
        return cls.architecture(configuration.configuration["architecture"])

    @classmethod
    def check_plans(cls, plans: dict, configuration: str) -> None:
        """Builds the network of a configuration without memory and sends one patch through it.

        Raises:
            ValueError: if the plans do not fit the network.
        """
        plans_manager = PlansManager(plans)
        configuration_manager = plans_manager.get_configuration(configuration)
        patch_size = configuration_manager.patch_size
        with torch.device("meta"):
            network = cls.build_network_architecture(plans_manager, configuration_manager, 1, 2, False)
            network(torch.empty(1, 1, *patch_size))

    # nnU-Net's is static, and called on the class.
    @classmethod
    def build_network_architecture(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Builds the network; nnU-Net calls this on the class, for training and for inference."""
        network = build_network(
            cls.planned_architecture(configuration_manager),
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )
        if not cls.deep_supervision:
            # Distributed training waits for the gradient of each parameter that asks for one.
            cast(Any, network).decoder.seg_layers[:-1].requires_grad_(False)
        return network

    def initialize(self) -> None:
        """Initialises as nnU-Net does.

        Raises:
            ValueError: if a layer of the network cannot be trained on the device.
        """
        super().initialize()
        for module in self.network.modules():
            if isinstance(module, ChecksDevice):
                module.check_device(self.device)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        # nnU-Net takes the strides of the plan, which are those of another network where the trainer chooses it.
        strides = self.planned_architecture(self.configuration_manager)["arch_kwargs"]["strides"]
        if not self.enable_deep_supervision or strides == self.configuration_manager.pool_op_kernel_sizes:
            return super()._get_deep_supervision_scales()
        return [list(scale) for scale in 1 / np.cumprod(np.vstack(strides), axis=0)][:-1]

    # Its class depends on labels and heads.
    def _build_loss(self) -> Any:
        # nnU-Net's loss, of which the Dice is exchanged: what else it does, for regions, an ignore label, several
        # heads, stays.
        loss: Any = super()._build_loss()
        if self.squared_dice:
            compound = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
            dice = SquaredDiceLoss.in_place_of(getattr(compound.dc, "_orig_mod", compound.dc))
            compound.dc = torch.compile(dice) if self._do_i_compile() else dice
        return loss

    # nnU-Net's types know its own optimizer and schedule alone.
    def configure_optimizers(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Returns optimizer and scheduler, as nnU-Net asks for them."""
        if self.recipe is None:
            return super().configure_optimizers()
        optimizer = self.recipe.optimizer(self.network.parameters(), self.initial_lr, self.weight_decay)
        return optimizer, EpochScheduler(optimizer, self.initial_lr, self.num_epochs, self.recipe.schedule)


def with_epoch_variants(
    *trainers: type[ArchitectureTrainer], lengths: Iterable[int] = ()
) -> dict[str, type[ArchitectureTrainer]]:
    """The trainers and all their epoch variants by name, to be put into the namespace of their module.

    Args:
        trainers: the trainers.
        lengths: see `epoch_variants`.
    """
    named = {trainer.__name__: trainer for trainer in trainers}
    for trainer in trainers:
        named |= epoch_variants(trainer, lengths)
    return named


def epoch_variants(
    trainer: type[ArchitectureTrainer], lengths: Iterable[int] = ()
) -> dict[str, type[ArchitectureTrainer]]:
    """The trainer in nnU-Net's usual lengths: `<name>_1epoch`, `<name>_5epochs`, ...

    Args:
        trainer: the trainer that the variants derive from.
        lengths: in epochs, beside the usual.

    Returns:
        Classes by name, of the trainer's module (checkpoints name classes).
    """
    variants = {}
    for epochs in sorted({*EPOCHS, *lengths}):
        name = f"{trainer.__name__}_{epochs}epoch{'s' if epochs > 1 else ''}"
        variants[name] = type(
            name,
            (trainer,),
            {
                "__module__": trainer.__module__,
                "__doc__": f"{trainer.__name__} for {epochs} epoch{'s' if epochs > 1 else ''}.",
                "epochs": epochs,
                "is_epoch_variant": True,
            },
        )
    return variants
