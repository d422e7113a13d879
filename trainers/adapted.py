"""Trainers of networks of other packages that are backbones here, each with the recipe of its source."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_deconver.networks.backbones import BACKBONES, Backbone
from nnunet_deconver.recipes import RECIPES
from nnunet_deconver.trainers.base import ArchitectureTrainer, with_epoch_variants


class AdaptedTrainer(ArchitectureTrainer):
    """The network of every trainer in this file."""

    backbone: Backbone

    @classmethod
    def architecture(cls, architecture: dict) -> dict:
        """The backbone for the rank of the plan's network; a plan that names the backbone is used as it is."""
        return super().architecture(cls.backbone.architecture(architecture))

    @classmethod
    def planned_architecture(cls, configuration: ConfigurationManager) -> dict:
        """See `ArchitectureTrainer`; for the plan's patch."""
        return cls.backbone.for_patch(super().planned_architecture(configuration), configuration.patch_size)


def backbone_trainer(backbone: Backbone) -> type[AdaptedTrainer]:
    """The trainer `nnUNetTrainer<label>`."""
    recipe = RECIPES[backbone.recipe]
    assert backbone.adaptation is not None and backbone.trainer is not None  # of such backbones trainers are made
    return type(
        backbone.trainer,
        (AdaptedTrainer,),
        {
            "__module__": __name__,
            "__doc__": f"{backbone.adaptation.network} with the recipe {recipe.description}",
            "backbone": backbone,
            "recipe": None if backbone.recipe == "nnunet" else recipe,
        },
    )


_BY_NAME = {name: backbone_trainer(each) for name, each in BACKBONES.items() if each.adaptation and each.trainer}


class nnUNetTrainerUNETRDTC(_BY_NAME["unetr"]):
    """UNETR with deformable transposed convolutions, receptive field 2."""

    upsampling = {"name": "dtc"}


class nnUNetTrainerSwinUNETRV2DTC(_BY_NAME["swinunetr-v2"]):
    """Swin UNETR V2 with deformable transposed convolutions, receptive field 2."""

    upsampling = {"name": "dtc"}


_TRAINERS = with_epoch_variants(*_BY_NAME.values(), nnUNetTrainerUNETRDTC, nnUNetTrainerSwinUNETRV2DTC)
globals().update(_TRAINERS)
__all__ = [*_TRAINERS]
