"""nnU-Net trainers of this package's networks.

Every name in `__all__` is an nnUNetTrainer that `nnUNetv2_train -tr` accepts. So is every trainer with options in its
name, see `options`.
"""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_deconver.errors import InputError
from nnunet_deconver.trainers import adapted, components, deconver, demo, recipes
from nnunet_deconver.trainers.adapted import *  # noqa: F403
from nnunet_deconver.trainers.components import *  # noqa: F403
from nnunet_deconver.trainers.deconver import *  # noqa: F403
from nnunet_deconver.trainers.demo import *  # noqa: F403
from nnunet_deconver.trainers.options import with_options
from nnunet_deconver.trainers.recipes import *  # noqa: F403

__all__ = [*deconver.__all__, *components.__all__, *recipes.__all__, *adapted.__all__, *demo.__all__]


def __getattr__(name: str) -> type[nnUNetTrainer]:
    """Python asks this for a name that the module does not have; nnU-Net asks every module for a trainer."""
    try:
        found = with_options(name)
    except InputError as error:
        raise AttributeError(str(error)) from error
    if found is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return found
