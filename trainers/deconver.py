"""Trainers of Deconver."""

from nnunet_deconver.networks.plans import deconver_architecture
from nnunet_deconver.trainers.base import AdamWRecipe, ArchitectureTrainer, epoch_variants


class DeconverTrainer(ArchitectureTrainer):
    """The network of every trainer in this file."""

    kernel_size: int | None = None

    @classmethod
    def architecture(cls, architecture: dict) -> dict:
        """Deconver with the plan's topology; a plan that names Deconver is used as it is."""
        return deconver_architecture(architecture, kernel_size=cls.kernel_size)


class nnUNetTrainerDeconver(AdamWRecipe, DeconverTrainer):
    """Deconver with the paper's recipe (AdamW 1e-4), for trainings of full length."""


class nnUNetTrainerDeconver_k5(nnUNetTrainerDeconver):
    """Deconver with kernels of 5 where the plan's are larger than 1."""

    kernel_size = 5


class nnUNetTrainerDeconver_lr1e3(nnUNetTrainerDeconver):
    """Deconver with the learning rate 1e-3, for short trainings."""

    learning_rate = 1e-3


class nnUNetTrainerDeconver_SGD(DeconverTrainer):
    """Deconver with nnU-Net's own recipe (SGD 1e-2, polynomial decay), for comparison."""


_FAMILY = (
    nnUNetTrainerDeconver,
    nnUNetTrainerDeconver_k5,
    nnUNetTrainerDeconver_lr1e3,
    nnUNetTrainerDeconver_SGD,
)
for _trainer in _FAMILY:
    globals().update(epoch_variants(_trainer))

__all__ = [name for name in globals() if name.startswith("nnUNetTrainerDeconver")]
