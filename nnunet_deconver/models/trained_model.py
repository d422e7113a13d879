"""A trained model of nnU-Net: what its folder says, and the network it stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from nnunet_deconver.integration.plans import read_dataset_json, read_plans
from nnunet_deconver.models.checkpoint import find_checkpoint, load_weights, read_checkpoint
from nnunet_deconver.models.planned import channels_and_labels, plan_of
from nnunet_deconver.models.trainer import build_trained, find_trainer

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
        trust: whether its checkpoints may be unpickled.
    """

    path: Path
    trainer: "type[nnUNetTrainer]"
    plans: "PlansManager"
    configuration: "ConfigurationManager"
    dataset: dict
    input_channels: int
    num_classes: int
    regions: bool
    trust: bool = False

    @classmethod
    def read(cls, path: Path, trust: bool = False) -> "TrainedModel":
        """Reads a model folder.

        Args:
            path: of the folder.
            trust: whether to import whatever its plans name, and to unpickle its checkpoints, as nnU-Net does; see
                `networks.trust`.

        Raises:
            InputError: if it is none, its trainer is not found, or it would have to be trusted.
        """
        what = "it must be a model folder of nnU-Net"
        plans = read_plans(path / "plans.json", what)
        dataset = read_dataset_json(path / "dataset.json", what)
        trainer, name = _trainer_and_configuration(path, trust)
        manager, configuration = plan_of(plans, name, str(path / "plans.json"), trust=trust)
        channels, labels = channels_and_labels(manager, configuration, dataset, str(path))
        return cls(
            path,
            find_trainer(trainer),
            manager,
            configuration,
            dataset,
            channels,
            labels.num_segmentation_heads,
            labels.has_regions,
            trust,
        )

    def build(self, deep_supervision: bool = False) -> nn.Module:
        """Constructs the network, as nnU-Net does before it predicts.

        Raises:
            InputError: if that fails.
        """
        return build_trained(
            self.trainer, self.plans, self.configuration, self.input_channels, self.num_classes, deep_supervision
        )

    def load(self, fold: str = "fold_*") -> nn.Module:
        """The trained network, ready to predict.

        Args:
            fold: name of the fold's folder; by default any.

        Raises:
            InputError: if there is no checkpoint, or it is not this network's.
        """
        network = self.build()
        load_weights(network, find_checkpoint(self.path, fold), self.trust)
        return network.eval()


def _trainer_and_configuration(path: Path, trust: bool) -> tuple[str, str]:
    fields = path.name.split("__")
    if len(fields) == 3:
        return fields[0], fields[2]
    checkpoint = read_checkpoint(find_checkpoint(path), trust)
    return checkpoint["trainer_name"], checkpoint["init_args"]["configuration"]
