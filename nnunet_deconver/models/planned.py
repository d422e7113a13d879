"""A configuration of a plans file and its labels, as nnU-Net's managers have them."""

import copy

from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_deconver.errors import InputError
from nnunet_deconver.networks.trust import check_trusted


def plan_of(plans: dict, name: str, where: str, *, trust: bool) -> tuple[PlansManager, ConfigurationManager]:
    """nnU-Net's managers of checked plans and of one of their configurations, with what it inherits.

    Args:
        plans: from `read_plans`.
        name: of the configuration.
        where: the plans are from.
        trust: whether its network may be any class and have any operators, see `networks.trust`.

    Raises:
        InputError: if there is no such configuration, it lacks what training takes, or would have to be trusted.
    """
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
    if not trust:
        check_trusted(configuration.configuration["architecture"], where)
    return manager, configuration


def channels_and_labels(
    manager: PlansManager, configuration: ConfigurationManager, dataset: dict, where: str
) -> tuple[int, LabelManager]:
    """The network's input channels, and nnU-Net's manager of the labels.

    Args:
        manager: of the plans.
        configuration: of them, see `plan_of`.
        dataset: from `read_dataset_json`.
        where: plans and dataset.json are from.

    Raises:
        InputError: if nnU-Net does not accept what they say.
    """
    try:
        return determine_num_input_channels(manager, configuration, dataset), manager.get_label_manager(dataset)
    except Exception as error:  # nnU-Net asserts, and looks up keys
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}: nnU-Net does not accept its labels or channels ({reason})") from error
