"""A trained model of nnU-Net: what its folder says, and the network it stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json
from nnunet_deconver.models.checkpoint import find_checkpoint, load_weights, read_checkpoint
from nnunet_deconver.models.trainer import find_trainer

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


@dataclass(frozen=True)
class TrainedModel:
    """What a model folder says of itself; `TrainedModel.read(folder)` reads one.

    Attributes:
        path: TRAINER__PLANS__CONFIGURATION, or any other if there is a checkpoint, which knows these too.
        trainer: class.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        dataset: content of dataset.json.
        input_channels: of the network.
        num_classes: its output channels.
        regions: whether these are regions with a sigmoid each, rather than classes with one softmax.
    """

    path: Path
    trainer: "type[nnUNetTrainer]"
    plans: "PlansManager"
    configuration: "ConfigurationManager"
    dataset: dict
    input_channels: int
    num_classes: int
    regions: bool

    @classmethod
    def read(cls, path: Path) -> "TrainedModel":
        """Reads a model folder.

        Raises:
            InputError: if it is none, or its trainer is not found.
        """
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        what = "it must be a model folder of nnU-Net"
        plans, dataset = (read_json(path / name, what) for name in ("plans.json", "dataset.json"))
        trainer, name = _trainer_and_configuration(path)
        if name not in plans.get("configurations", {}):
            raise InputError(f"{path / 'plans.json'}: has no configuration {name}")
        manager = PlansManager(plans)
        configuration, labels = manager.get_configuration(name), manager.get_label_manager(dataset)
        return cls(
            path,
            find_trainer(trainer),
            manager,
            configuration,
            dataset,
            determine_num_input_channels(manager, configuration, dataset),
            labels.num_segmentation_heads,
            labels.has_regions,
        )

    def build(self, deep_supervision: bool = False) -> nn.Module:
        """Constructs the network, as nnU-Net does before it predicts."""
        return self.trainer.build_network_architecture(
            self.plans, self.configuration, self.input_channels, self.num_classes, deep_supervision
        )

    def load(self, fold: str = "fold_*") -> nn.Module:
        """The trained network, ready to predict.

        Args:
            fold: name of the fold's folder; by default any.

        Raises:
            InputError: if there is no checkpoint, or it is not this network's.
        """
        network = self.build()
        load_weights(network, find_checkpoint(self.path, fold))
        return network.eval()


def _trainer_and_configuration(path: Path) -> tuple[str, str]:
    fields = path.name.split("__")
    if len(fields) == 3:
        return fields[0], fields[2]
    checkpoint = read_checkpoint(find_checkpoint(path))
    return checkpoint["trainer_name"], checkpoint["init_args"]["configuration"]
