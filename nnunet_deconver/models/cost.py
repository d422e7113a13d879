"""What training a network takes, of a preset, or of a trainer on plans: parameters, FLOPs, memory."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.integration.plans import read_dataset_json, read_plans
from nnunet_deconver.models.planned import channels_and_labels, plan_of
from nnunet_deconver.models.trained_model import TrainedModel
from nnunet_deconver.models.trainer import build_trained, find_trainer, trainer_optimizer
from nnunet_deconver.networks.architecture import build_network, plain_architecture
from nnunet_deconver.plans.cost import NetworkCost, PredictionCost, network_cost, prediction_cost
from nnunet_deconver.plans.presets import load_preset
from nnunet_deconver.recipes import RECIPES

# What nnU-Net's own network on the same stages is called beside the others.
DEFAULT_NETWORK = "nnU-Net's PlainConvUNet"


@dataclass(frozen=True)
class Subject:
    """A network to be summarised.

    Attributes:
        name: what it is called in tables.
        build: constructs it, given input channels, output channels, and whether with deep supervision.
        build_optimizer: constructs the optimizer of a network.
    """

    name: str
    build: Callable[[int, int, bool], nn.Module]
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Task:
    """What the networks are for, see `plans.memory.training_memory`; `architecture` says on which stages."""

    input_channels: int
    num_classes: int
    regions: bool
    patch_size: Sequence[int]
    batch_size: int
    architecture: dict


def of_preset(
    name: str, patch_size: Sequence[int] | None = None, batch_size: int | None = None
) -> tuple[Task, list[Subject]]:
    """The network of a preset, with the channels it was published with.

    Args:
        name: of the preset, or path of a file like theirs.
        patch_size: in place of the preset's.
        batch_size: likewise.

    Raises:
        InputError: if there is no such preset, or it leaves open what counting takes.
    """
    try:
        preset = load_preset(name)
    except ValueError as error:
        raise ArgumentError("preset", name, str(error)) from error
    if preset.architecture is None:
        raise ArgumentError(
            "preset",
            name,
            f"its stages depend on the dataset; run: nnunet-deconver plan -d D --preset {name}, then: nnunet-deconver "
            f"summary -d D -p {preset.planner().plans_name}",
        )
    patch_size, batch_size = patch_size or preset.patch_size, batch_size or preset.batch_size
    sizes = {"patch": patch_size, "batch": batch_size}
    open_ = [what for what, size in sizes.items() if size is None]
    if patch_size is None or batch_size is None:
        options = " and ".join(f"--{what}-size" for what in open_)
        raise ArgumentError(
            "preset", name, f"{' and '.join(open_)} {'are' if open_[1:] else 'is'} not published; add {options}"
        )
    optimizer = preset.recipe.build_optimizer
    subject = Subject(preset.name, partial(_from_architecture, preset.architecture), optimizer)
    task = Task(preset.input_channels, preset.num_classes, preset.regions, patch_size, batch_size, preset.architecture)
    return task, [subject]


def of_plans(
    plans_file: Path,
    dataset_json: Path,
    trainers: Iterable[str],
    configuration: str | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    trust: bool = False,
) -> tuple[Task, list[Subject]]:
    """The networks that trainers build from a configuration of a plans file.

    Args:
        plans_file: of nnU-Net.
        dataset_json: the dataset's description.
        trainers: their names.
        configuration: its name; None for 3d_fullres, or 2d where there is none.
        patch_size: in place of the plan's.
        batch_size: likewise.
        trust: whether to import whatever the plans name, see `networks.trust`.

    Raises:
        InputError: if a file, the configuration or a trainer does not exist, or the plans would have to be trusted.
    """
    content = read_plans(plans_file)
    description = read_dataset_json(dataset_json, "it lies beside the plans, where planning or training put it")
    configurations = content["configurations"]
    name = configuration or ("3d_fullres" if "3d_fullres" in configurations else "2d")
    if name not in configurations:
        raise ArgumentError("configuration", name, f"{plans_file} has only {', '.join(configurations)}")
    manager, planned = plan_of(content, name, str(plans_file), trust=trust)
    channels, labels = channels_and_labels(manager, planned, description, str(dataset_json))
    task = Task(
        channels,
        labels.num_segmentation_heads,
        labels.has_regions,
        patch_size or list(planned.patch_size),
        batch_size or planned.batch_size,
        planned.configuration["architecture"],
    )
    found = {trainer: find_trainer(trainer) for trainer in trainers}
    subjects = [
        Subject(name, partial(_from_trainer, trainer, manager, planned), partial(trainer_optimizer, trainer))
        for name, trainer in found.items()
    ]
    return task, subjects


def _from_architecture(architecture: dict, channels: int, num_classes: int, deep_supervision: bool) -> nn.Module:
    return build_network(architecture, channels, num_classes, deep_supervision=deep_supervision)


def _from_trainer(
    trainer: type[nnUNetTrainer],
    manager: PlansManager,
    configuration: ConfigurationManager,
    channels: int,
    num_classes: int,
    deep_supervision: bool,
) -> nn.Module:
    return build_trained(trainer, manager, configuration, channels, num_classes, deep_supervision)


def default_network(task: Task) -> list[Subject]:
    """nnU-Net's default network on the stages of a task; none, where a network is not made of stages."""
    try:
        architecture = plain_architecture(task.architecture)
    except ValueError:
        return []
    return [Subject(DEFAULT_NETWORK, partial(_from_architecture, architecture), RECIPES["nnunet"].build_optimizer)]


def count(subject: Subject, task: Task) -> NetworkCost:
    """What a network costs.

    Raises:
        InputError: if the network cannot be built, or does not take the patch.
    """
    try:
        return network_cost(
            partial(subject.build, task.input_channels, task.num_classes),
            input_channels=task.input_channels,
            num_classes=task.num_classes,
            regions=task.regions,
            patch_size=task.patch_size,
            batch_size=task.batch_size,
            build_optimizer=subject.build_optimizer,
        )
    except Exception as error:  # plans are written by hand, too: a network can raise anything
        patch = " x ".join(map(str, task.patch_size))
        raise InputError(f"{subject.name} cannot be counted on patches of {patch}: {error}") from error


def count_beside_default(
    task: Task, subjects: Sequence[Subject], progress: Callable[[list], Iterable] = iter
) -> dict[str, NetworkCost]:
    """What networks cost, by name, and nnU-Net's default network on the same stages, unless one of them is that.

    Args:
        task: what they are for.
        subjects: the networks.
        progress: goes through what is counted, such as tqdm.

    Raises:
        InputError: if a network cannot be built, or does not take the patch.
    """
    costs = {subject.name: count(subject, task) for subject in progress([*subjects, *default_network(task)])}
    default = costs.get(DEFAULT_NETWORK)
    if default and any(
        (costs[subject.name].parameters, costs[subject.name].flops) == (default.parameters, default.flops)
        for subject in subjects
    ):
        del costs[DEFAULT_NETWORK]
    return costs


def of_trained_model(folder: Path, trust: bool = False) -> tuple[PredictionCost, int]:
    """What predicting a patch with a trained model costs, and the patch's voxels.

    Args:
        folder: of the model.
        trust: see `TrainedModel.read`.

    Raises:
        InputError: if its network cannot be built here.
        Exception: if it cannot be run; of a trainer that is not ours, any.
    """
    model = TrainedModel.read(folder, trust)
    patch_size = model.configuration.patch_size
    return prediction_cost(model.build, model.input_channels, patch_size), math.prod(patch_size)
