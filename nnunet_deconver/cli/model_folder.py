"""A trained model of nnU-Net: the network its folder stands for, and its weights."""

from dataclasses import dataclass
from pathlib import Path

from nnunet_deconver.cli.datasets import read_json
from nnunet_deconver.cli.errors import CommandError


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder says of itself.

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
    trainer: type
    plans: object
    configuration: object
    dataset: dict
    input_channels: int
    num_classes: int
    regions: bool

    def build(self, deep_supervision: bool = False):
        """Constructs the network, as nnU-Net does before it predicts."""
        return self.trainer.build_network_architecture(
            self.plans, self.configuration, self.input_channels, self.num_classes, deep_supervision
        )


def read_model_folder(path: Path) -> ModelFolder:
    """Reads a model folder.

    Raises:
        CommandError: if it is none, or its trainer is not found.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_deconver.cli.summary import find_trainer

    what = "it must be a model folder of nnU-Net"
    plans, dataset = (read_json(path / name, what) for name in ("plans.json", "dataset.json"))
    trainer, name = _trainer_and_configuration(path)
    if name not in plans.get("configurations", {}):
        raise CommandError(f"{path / 'plans.json'}: has no configuration {name}")
    manager = PlansManager(plans)
    configuration, labels = manager.get_configuration(name), manager.get_label_manager(dataset)
    return ModelFolder(
        path,
        find_trainer(trainer),
        manager,
        configuration,
        dataset,
        determine_num_input_channels(manager, configuration, dataset),
        labels.num_segmentation_heads,
        labels.has_regions,
    )


def _trainer_and_configuration(path: Path) -> tuple[str, str]:
    from nnunet_deconver.cli.upgrade_checkpoint import read_checkpoint

    fields = path.name.split("__")
    if len(fields) == 3:
        return fields[0], fields[2]
    checkpoint = read_checkpoint(find_checkpoint(path))
    return checkpoint["trainer_name"], checkpoint["init_args"]["configuration"]


def find_checkpoint(path: Path, fold: str = "fold_*") -> Path:
    """The best there is of a fold's checkpoints: the final one, else the latest, else the best.

    Args:
        path: model folder.
        fold: name of the fold's folder; by default any.

    Raises:
        CommandError: if there is none.
    """
    from nnunet_deconver.evaluation.training import CHECKPOINTS

    for name in CHECKPOINTS:
        found = sorted(path.glob(f"{fold}/{name}"))
        if found:
            return found[0]
    raise CommandError(f"{path / fold}: has no checkpoint ({', '.join(CHECKPOINTS)})")


def load_weights(network, checkpoint: Path):
    """Gives a network a checkpoint's weights.

    Raises:
        CommandError: if the checkpoint cannot be read, or is not this network's.
    """
    from nnunet_deconver.cli.upgrade_checkpoint import read_checkpoint

    try:
        network.load_state_dict(read_checkpoint(checkpoint)["network_weights"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CommandError(f"{checkpoint}: its weights are not those of {type(network).__name__}: {reason}") from error
