"""What a training takes, so that a scheduler can be asked for it."""

import math
from dataclasses import dataclass

import numpy as np

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json
from nnunet_deconver.integration.plans import read_plans
from nnunet_deconver.models.cost import count, of_plans
from nnunet_deconver.plans.cost import NetworkCost
from nnunet_deconver.studies.tasks import TRAIN, Task, Workspace

GIB = 2**30
# PyTorch with its CUDA libraries, in the main memory of a process.
PROCESS = 3 * GIB
# A loader of nnU-Net, beside what it holds of images.
LOADER = GIB // 2
# PyTorch's context and its libraries' workspaces on a GPU, beside what a training step is counted to take.
GPU_CONTEXT = 1.5 * GIB


@dataclass(frozen=True)
class Resources:
    """What a training is given.

    Attributes:
        memory: main memory, in bytes.
        gpu_memory: in bytes; 0 on a CPU.
    """

    memory: float
    gpu_memory: float


def network_cost(workspace: Workspace, dataset: str, model: str) -> NetworkCost:
    """What the network of a model costs on a dataset, see `models.cost.count`.

    Raises:
        InputError: if it cannot be built or counted.
    """
    chosen = workspace.study.model(model)
    folder = workspace.preprocessed / dataset
    trainer = workspace.trainer(Task(TRAIN, dataset, model, "iterations"))
    configuration = workspace.configuration(dataset, chosen)
    files = folder / f"{chosen.plans}.json", folder / "dataset.json"
    # What these plans name was trained with, or will be.
    task, (subject,) = of_plans(*files, [trainer], configuration, trust=True)
    return count(subject, task)


def training_resources(workspace: Workspace, dataset: str, model: str, loaders: int) -> Resources:
    """What a training of a model takes.

    The memory of a GPU is counted, see `plans.memory`. Main memory is what PyTorch and nnU-Net's loaders take, each
    of which holds about three copies of a batch in float32, and what nnU-Net's validation of the largest case does:
    its logits, in half and in single precision, and as they were before resampling. On a CPU, the training step is
    there too.

    Args:
        workspace: of the study.
        dataset: name.
        model: name.
        loaders: processes of nnU-Net that load and augment.

    Raises:
        InputError: if its network cannot be built or counted.
    """
    cost = network_cost(workspace, dataset, model)
    step = cost.memory.peak * workspace.study.num_gpus
    if workspace.study.device == "cuda":
        step = cost.memory.peak + GPU_CONTEXT
    chosen = workspace.study.model(model)
    description = read_json(workspace.preprocessed / dataset / "dataset.json")
    channels, classes = len(description["channel_names"]), len(description["labels"])
    batch = 4 * (channels + 1) * cost.batch_size * math.prod(cost.patch_size)
    case = _largest_case(workspace, dataset, chosen.plans, workspace.configuration(dataset, chosen))
    memory = PROCESS + loaders * (LOADER + 3 * batch) + 10 * classes * case
    if workspace.study.device == "cuda":
        return Resources(memory, step)
    return Resources(memory + step, 0)


def _largest_case(workspace: Workspace, dataset: str, plans: str, configuration: str) -> float:
    """Voxels of the largest training case, as the configuration resamples it or as it is, whichever are more."""
    fingerprint = read_json(workspace.preprocessed / dataset / "dataset_fingerprint.json")
    content = read_plans(workspace.preprocessed / dataset / f"{plans}.json")
    wanted = np.array(content["configurations"][configuration].get("spacing", [1.0]), float)
    largest = 0.0
    for shape, spacing in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True):
        voxels = float(np.prod(shape))
        axes = min(len(wanted), len(spacing))
        # A configuration in 2D leaves the first axis as it is.
        factor = np.prod(np.array(spacing[-axes:], float) / wanted[-axes:])
        largest = max(largest, voxels, voxels * float(factor))
    return largest


def gpu_of(gpus: tuple, needed: float) -> str | None:
    """What to ask a scheduler for: the smallest GPU in which a training fits; None where the kinds are not listed.

    Raises:
        InputError: if it fits in none.
    """
    if not gpus:
        return None
    fitting = [each for each in sorted(gpus, key=lambda each: each["memory_gb"]) if each["memory_gb"] * 1e9 >= needed]
    if not fitting:
        most = max(each["memory_gb"] for each in gpus)
        raise InputError(
            f"a training takes about {needed / 1e9:.0f} GB on a GPU, and the largest of cluster.gpus has {most:g}; "
            "plan a smaller patch or batch, or add a GPU"
        )
    return str(fitting[0]["gres"])
