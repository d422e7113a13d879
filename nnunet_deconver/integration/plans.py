"""The JSON files of nnU-Net, checked as they are read: plans and dataset.json.

What is in them may be written by hand, or by somebody else: an error names the file, the field, what it is and what is
allowed, and nothing that they name is imported.
"""

import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import check_schema, read_json

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

_FOLDER = Path(__file__).parent
PLANS_HINT = "make it with nnUNetv2_plan_experiment or nnunet-deconver plan, or name others"


@cache
def _schema(name: str) -> dict:
    return read_json(_FOLDER / f"{name}.schema.json")


def read_plans(path: Path, what: str = PLANS_HINT) -> dict:
    """The content of a plans file.

    Args:
        path: of the file.
        what: what it should be or where it comes from, for the message.

    Raises:
        InputError: if there is no such file, or a field is not what nnU-Net has there.
    """
    return check_plans(read_json(path, what), str(path), what)


def check_plans(plans: dict, where: str, what: str = PLANS_HINT) -> dict:
    """The plans, if every field is what nnU-Net has there.

    Args:
        plans: content of a plans file.
        where: they are from.
        what: see `read_plans`.

    Raises:
        InputError: otherwise.
    """
    return check_schema(plans, _schema("plans"), where, what)


def read_dataset_json(path: Path, what: str = "it must be nnU-Net's dataset.json") -> dict:
    """The content of a dataset.json.

    Args:
        path: of the file.
        what: what it should be or where it comes from, for the message.

    Raises:
        InputError: if there is no such file, or a field is not what nnU-Net has there.
    """
    return check_schema(read_json(path, what), _schema("dataset"), str(path), what)


def plan_of(plans: dict, name: str, where: str) -> "tuple[PlansManager, ConfigurationManager]":
    """nnU-Net's managers of checked plans and of one of their configurations, with what it inherits.

    Args:
        plans: from `read_plans`.
        name: of the configuration.
        where: the plans are from.

    Raises:
        InputError: if there is no such configuration, or it lacks what training takes.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if name not in plans["configurations"]:
        raise InputError(f"{where}: has no configuration {name}; it has {', '.join(plans['configurations'])}")
    # nnU-Net's managers change what they are given.
    manager = PlansManager(copy.deepcopy(plans))
    try:
        configuration = manager.get_configuration(name)
    except (ValueError, RuntimeError, KeyError) as error:  # what it inherits; what old plans lack
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: the configuration {name} cannot be used: {reason}") from error
    missing = [key for key in ("patch_size", "batch_size", "architecture") if key not in configuration.configuration]
    if not missing:
        entry = configuration.configuration["architecture"]
        parts = ("network_class_name", "arch_kwargs", "_kw_requires_import")
        missing = [f"architecture.{part}" for part in parts if part not in entry]
    if missing:
        raise InputError(
            f"{where}: the configuration {name} has no {', '.join(missing)}, nor one that it inherits from"
        )
    return manager, configuration


def channels_and_labels(
    manager: "PlansManager", configuration: "ConfigurationManager", dataset: dict, where: str
) -> "tuple[int, LabelManager]":
    """The network's input channels, and nnU-Net's manager of the labels.

    Args:
        manager: of the plans.
        configuration: of them, see `plan_of`.
        dataset: from `read_dataset_json`.
        where: plans and dataset.json are from.

    Raises:
        InputError: if nnU-Net does not accept what they say.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    try:
        return determine_num_input_channels(manager, configuration, dataset), manager.get_label_manager(dataset)
    except Exception as error:  # nnU-Net asserts, and looks up keys
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: nnU-Net does not accept its labels or channels ({reason})") from error
