"""Trainers of a plan's own network, whatever it is, with each recipe but nnU-Net's."""

from nnunet_deconver.recipes import RECIPES, Recipe
from nnunet_deconver.trainers.base import ArchitectureTrainer, with_epoch_variants


def recipe_trainer(recipe: Recipe) -> type[ArchitectureTrainer]:
    """The trainer `nnUNetTrainer_<label>`."""
    return type(
        f"nnUNetTrainer_{recipe.label}",
        (ArchitectureTrainer,),
        {
            "__module__": __name__,
            "__doc__": f"The plan's own network with the recipe {recipe.description}",
            "recipe": recipe,
        },
    )


_BY_RECIPE = {name: recipe_trainer(each) for name, each in RECIPES.items() if name != "nnunet"}


class nnUNetTrainer_Adam_1head(_BY_RECIPE["nerd"]):
    """The plan's own network with NeRD's recipe and one head, as its paper trains."""

    deep_supervision = False


class nnUNetTrainer_AdamWConstant_1head(_BY_RECIPE["dtc"]):
    """The plan's own network with DTC's recipe in 2D and one head, as its paper trains."""

    deep_supervision = False


# Beside the usual lengths those that the presets of the two papers need.
_TRAINERS = with_epoch_variants(*_BY_RECIPE.values())
_TRAINERS |= with_epoch_variants(nnUNetTrainer_Adam_1head, lengths=(64, 244))
_TRAINERS |= with_epoch_variants(nnUNetTrainer_AdamWConstant_1head, lengths=(40,))
globals().update(_TRAINERS)
__all__ = [*_TRAINERS]
