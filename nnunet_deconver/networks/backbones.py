"""The backbones: what any upsampling and any head can be combined with.

A further one is a network that nnU-Net's plans can name, and one entry here; planners, lists and what `plan` takes
follow from that. The network takes nnU-Net's topology arguments, `upsampling` and `segmentation_head`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nnunet_deconver.networks.architecture import DECONVER, NNUNETS, PACKAGE, deconver_architecture
from nnunet_deconver.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Backbone:
    """A backbone.

    Attributes:
        network: dotted name of its class, as plans have it.
        label: what it is called in names of planners and plans.
        source: where it is published.
        architecture: from the architecture entry that nnU-Net's planner makes to that of this backbone, or of another
            from which upsampling and head lead to this one.
        planner: dotted name of nnU-Net's planner that plans its stages.
        max_features_3d: the most channels of a stage; None for the planner's.
        recipe: name of what it is usually trained with.
        trainer: with that recipe; None for `nnUNetTrainer_<label of the recipe>`, or nnU-Net's own.
        is_nnunets: whether it is nnU-Net's network, named after what is changed in it.
    """

    network: str
    label: str
    source: str
    architecture: Callable[[dict], dict] = lambda entry: entry
    planner: str = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner.ExperimentPlanner"
    max_features_3d: int | None = None
    recipe: str = "nnunet"
    trainer: str | None = None
    is_nnunets: bool = False


BACKBONES = {
    "deconver": Backbone(
        DECONVER,
        "Deconver",
        "arXiv 2504.00302",
        deconver_architecture,
        max_features_3d=512,
        recipe="deconver",
        trainer="nnUNetTrainerDeconver",
    ),
    "plain": Backbone(f"{PACKAGE}.PlainConvUNet", "Plain", "nnU-Net", is_nnunets=True),
    "residual": Backbone(
        f"{PACKAGE}.ResidualEncoderUNet",
        "ResEnc",
        "nnU-Net",
        planner="nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners."
        "ResEncUNetPlanner",
    ),
}


def backbone_of(architecture: dict) -> Backbone | None:
    """The backbone that an architecture entry names; None for another network."""
    name = architecture["network_class_name"]
    return next((backbone for backbone in BACKBONES.values() if backbone.network == name), None)


def usual_recipe(architecture: dict) -> Recipe:
    """What the network of an architecture entry is usually trained with."""
    backbone = backbone_of(architecture)
    return RECIPES["nnunet" if backbone is None else backbone.recipe]


def recipe_trainer_name(architecture: dict, recipe: str | None = None) -> str | None:
    """The trainer for the network of an architecture entry as it is planned; None for nnU-Net's own.

    Args:
        architecture: entry.
        recipe: name; None for what the network is usually trained with.
    """
    backbone = backbone_of(architecture)
    usual = "nnunet" if backbone is None else backbone.recipe
    if backbone and backbone.trainer and recipe in (None, usual):
        return backbone.trainer
    chosen = recipe or usual
    return None if chosen == "nnunet" else f"nnUNetTrainer_{RECIPES[chosen].label}"


def with_components(
    architecture: dict, *, upsampling: dict | None = None, segmentation_head: dict | None = None
) -> dict:
    """The architecture entry of the same network with an upsampling and a segmentation head.

    nnU-Net's networks become the ones here, which are the same but for these two.

    Args:
        architecture: entry of PlainConvUNet, ResidualEncoderUNet or one of `BACKBONES`.
        upsampling: entry, see `layers.components`; None leaves what the entry has.
        segmentation_head: likewise.

    Raises:
        ValueError: if the network has no such arguments, or the entry already names another choice.
    """
    chosen = {"upsampling": upsampling, "segmentation_head": segmentation_head}
    chosen = {argument: entry for argument, entry in chosen.items() if entry is not None}
    if not chosen:
        return architecture
    name = architecture["network_class_name"]
    if backbone_of(architecture) is None:
        if name.rpartition(".")[-1] not in NNUNETS:
            raise ValueError(
                f"the plans name the network {name}, which has no {' or '.join(chosen)} to choose; use plans of "
                f"{' or '.join(NNUNETS)} (nnUNetv2_plan_experiment), or plans that name one of "
                f"{', '.join(backbone.network for backbone in BACKBONES.values())}"
            )
        name = f"{PACKAGE}.{name.rpartition('.')[-1]}"
    arch_kwargs = architecture["arch_kwargs"]
    for argument, entry in chosen.items():
        planned = arch_kwargs.get(argument)
        if planned is not None and planned != entry:
            raise ValueError(
                f"the plans have {argument} {planned}, the trainer {entry}; take a trainer that leaves it to the "
                "plans (nnUNetTrainer, nnUNetTrainerDeconver), or plans that leave it to the trainer"
            )
    return architecture | {"network_class_name": name, "arch_kwargs": arch_kwargs | chosen}
