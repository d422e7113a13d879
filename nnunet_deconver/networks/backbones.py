"""The backbones: what any upsampling and any head can be combined with.

A further one is a network that nnU-Net's plans can name, and one entry here; planners, lists and what `plan` takes
follow from that. The network takes nnU-Net's topology arguments, `upsampling` and `segmentation_head`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from nnunet_deconver.networks.architecture import (
    ADAPTED,
    DECONVER,
    MEDNEXT,
    NNUNETS,
    PACKAGE,
    Adaptation,
    deconver_architecture,
    with_topology_of,
)
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
        adaptation: how `Adapted` builds it; None for a network that knows nnU-Net by itself.
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
    adaptation: Adaptation | None = None

    def is_of(self, architecture: dict) -> bool:
        """Whether an architecture entry names this backbone."""
        if self.adaptation is not None:
            return self.adaptation.is_of(architecture)
        return architecture["network_class_name"] == self.network

    def for_patch(self, architecture: dict, patch_size: Sequence[int]) -> dict:
        """An architecture entry of this backbone for a patch size, on which the arguments of some networks depend."""
        return architecture if self.adaptation is None else self.adaptation.for_patch(architecture, patch_size)


def _monai(
    name: str,
    label: str,
    source: str,
    network_kwargs: dict,
    strides: Sequence[int],
    recipe: str,
    patch: str | None = None,
) -> Backbone:
    """A network of MONAI, which is imported when it is built."""
    adaptation = Adaptation(f"monai.networks.nets.{name}", network_kwargs, strides, patch_argument=patch)
    return Backbone(
        ADAPTED,
        label,
        source,
        adaptation.architecture,
        recipe=recipe,
        trainer=f"nnUNetTrainer{label}",
        adaptation=adaptation,
    )


def _mednext(size: str, kernel_size: int) -> Backbone:
    """MedNeXt as its authors call its sizes; its fifth output has no weight in nnU-Net's loss."""
    encoder, bottleneck, decoder, blocks = _MEDNEXTS[size]
    network_kwargs = {
        "init_filters": 32,
        "encoder_expansion_ratio": encoder,
        "bottleneck_expansion_ratio": bottleneck,
        "decoder_expansion_ratio": decoder,
        "kernel_size": kernel_size,
        "deep_supervision": True,
        "use_residual_connection": True,
        "blocks_down": blocks[:4],
        "blocks_bottleneck": blocks[4],
        "blocks_up": blocks[5:],
    }
    label = f"MedNeXt{size}{'' if kernel_size == 3 else f'k{kernel_size}'}"
    return _monai("MedNeXt", label, "arXiv 2303.09975", network_kwargs, (1, 2, 2, 2, 2, 1), "mednext")


# Expansion of encoder, bottleneck and decoder, blocks of all stages: table 1 of arXiv 2303.09975.
_MEDNEXTS = {
    "S": ([2] * 4, 2, [2] * 4, [2] * 9),
    "B": ([2, 3, 4, 4], 4, [4, 4, 3, 2], [2] * 9),
    "M": ([2, 3, 4, 4], 4, [4, 4, 3, 2], [3, 4, 4, 4, 4, 4, 4, 4, 3]),
    "L": ([3, 4, 8, 8], 8, [8, 8, 4, 3], [3, 4, 8, 8, 8, 8, 8, 4, 3]),
}
# MONAI's BasicUNet with the features of the U-Net of arXiv 1505.04597, of which the last is the upsampled first.
_UNET = [64, 128, 256, 512, 1024, 64]

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
    **{
        f"mednext{suffix}": Backbone(
            MEDNEXT,
            f"MedNeXt{suffix.lstrip('-')}",
            "arXiv 2303.09975",
            partial(with_topology_of, network=MEDNEXT, kernel_size=kernel_size),
            max_features_3d=512,
            recipe="mednext",
        )
        for suffix, kernel_size in (("", 3), ("-k5", 5))
    },
    "segresnet": _monai(
        "SegResNet",
        "SegResNet",
        "arXiv 1810.11654",
        {"init_filters": 32, "upsample_mode": "deconv"},
        (1, 1, 8),
        "segresnet",
    ),
    "unetr": _monai("UNETR", "UNETR", "arXiv 2103.10504", {"feature_size": 16}, (1, 1, 16), "dtc", patch="img_size"),
    "swinunetr": _monai(
        "SwinUNETR", "SwinUNETR", "arXiv 2201.01266", {"feature_size": 48, "use_v2": False}, (1, 1, 32), "swinunetr"
    ),
    "swinunetr-v2": _monai(
        "SwinUNETR",
        "SwinUNETRV2",
        "doi 10.1007/978-3-031-43901-8_40",
        {"feature_size": 48, "use_v2": True},
        (1, 1, 32),
        "swinunetr",
    ),
    **{
        f"mednext-{size.lower()}{'' if kernel_size == 3 else f'-k{kernel_size}'}": _mednext(size, kernel_size)
        for kernel_size in (3, 5)
        for size in _MEDNEXTS
    },
    "attentionunet": _monai(
        "AttentionUnet",
        "AttentionUNet",
        "arXiv 1804.03999",
        {"channels": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2]},
        (1, 1, 16),
        "nnunet",
    ),
    "unet": _monai(
        "BasicUNet", "UNet", "arXiv 1505.04597", {"features": _UNET, "upsample": "deconv"}, (1, 1, 16), "nnunet"
    ),
    "unet-linear": _monai(
        "BasicUNet",
        "UNetLinear",
        "arXiv 1505.04597",
        {"features": _UNET, "upsample": "nontrainable"},
        (1, 1, 16),
        "nnunet",
    ),
}


def backbone_of(architecture: dict) -> Backbone | None:
    """The backbone that an architecture entry names; None for another network."""
    return next((backbone for backbone in BACKBONES.values() if backbone.is_of(architecture)), None)


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
    if backbone_of(architecture) is None and name != ADAPTED:
        if name.rpartition(".")[-1] not in NNUNETS:
            raise ValueError(
                f"the plans name the network {name}, which has no {' or '.join(chosen)} to choose; use plans of "
                f"{' or '.join(NNUNETS)} (nnUNetv2_plan_experiment), or plans that name one of "
                f"{', '.join(dict.fromkeys(backbone.network for backbone in BACKBONES.values()))}"
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
