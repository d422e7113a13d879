"""What nnU-Net imports from this folder when nnUNet_extTrainer points at it; see `nnunet-deconver trainer-path`."""

# Exactly the names in `__all__`, which are the trainers, and by the second those with options in their names.
from nnunet_deconver.trainers import *  # noqa: F403
from nnunet_deconver.trainers import __getattr__  # noqa: F401
