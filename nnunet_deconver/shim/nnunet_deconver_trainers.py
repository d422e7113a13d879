"""What nnU-Net imports from this folder when nnUNet_extTrainer points at it; see `nnunet-deconver trainer-path`."""

# Exactly the names in `__all__`, which are the trainers.
from nnunet_deconver.trainers import *  # noqa: F403
