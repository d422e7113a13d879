"""nnU-Net trainers of this package's networks.

Every name in `__all__` is an nnUNetTrainer that `nnUNetv2_train -tr` accepts.
"""

from nnunet_deconver.trainers import adapted, components, deconver, demo, recipes
from nnunet_deconver.trainers.adapted import *  # noqa: F403
from nnunet_deconver.trainers.components import *  # noqa: F403
from nnunet_deconver.trainers.deconver import *  # noqa: F403
from nnunet_deconver.trainers.demo import *  # noqa: F403
from nnunet_deconver.trainers.recipes import *  # noqa: F403

__all__ = [*deconver.__all__, *components.__all__, *recipes.__all__, *adapted.__all__, *demo.__all__]
