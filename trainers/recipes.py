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


_TRAINERS = with_epoch_variants(*(recipe_trainer(each) for name, each in RECIPES.items() if name != "nnunet"))
globals().update(_TRAINERS)
__all__ = [*_TRAINERS]
