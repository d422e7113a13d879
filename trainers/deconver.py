"""Trainers of Deconver."""

from nnunet_deconver.networks.architecture import deconver_architecture
from nnunet_deconver.trainers.base import AdamWRecipe, ArchitectureTrainer, with_epoch_variants


class DeconverTrainer(ArchitectureTrainer):
    """The network of every trainer in this file."""

    kernel_size: int | None = None

    @classmethod
    def architecture(cls, architecture: dict) -> dict:
        """Deconver with the plan's topology; a plan that names Deconver is used as it is."""
        return super().architecture(deconver_architecture(architecture, kernel_size=cls.kernel_size))


class nnUNetTrainerDeconver(AdamWRecipe, DeconverTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Deconver with the paper's recipe (AdamW 1e-4), for trainings of full length."""


class nnUNetTrainerDeconver_k5(nnUNetTrainerDeconver):
    """Deconver with kernels of 5 where the plan's are larger than 1."""

    kernel_size = 5


class nnUNetTrainerDeconver_lr1e3(nnUNetTrainerDeconver):
    """Deconver with the learning rate 1e-3, for short trainings."""

    learning_rate = 1e-3


class nnUNetTrainerDeconver_SGD(DeconverTrainer):
    """Deconver with nnU-Net's own recipe (SGD 1e-2, polynomial decay), for comparison."""


class nnUNetTrainerDeconverDTC(nnUNetTrainerDeconver):
    """Deconver with deformable transposed convolutions, receptive field 2."""

    upsampling = {"name": "dtc"}


class nnUNetTrainerDeconverNeRDc(nnUNetTrainerDeconver):
    """Deconver with heads whose classifier depends on the position in the patch."""

    segmentation_head = {"name": "nerdc"}


class nnUNetTrainerDeconverNorm(nnUNetTrainerDeconver):
    """Deconver with an instance norm before each head, which finds less where nothing is."""

    segmentation_head = {"name": "norm"}


class nnUNetTrainerDeconverNorm_lr1e3(nnUNetTrainerDeconverNorm):
    """The same with the learning rate 1e-3, for short trainings."""

    learning_rate = 1e-3


class nnUNetTrainerDeconverDTCNeRDc(nnUNetTrainerDeconverDTC, nnUNetTrainerDeconverNeRDc):
    """Deconver with deformable transposed convolutions and NeRDc heads."""


_TRAINERS = with_epoch_variants(
    nnUNetTrainerDeconver,
    nnUNetTrainerDeconver_k5,
    nnUNetTrainerDeconver_lr1e3,
    nnUNetTrainerDeconver_SGD,
    nnUNetTrainerDeconverDTC,
    nnUNetTrainerDeconverNeRDc,
    nnUNetTrainerDeconverDTCNeRDc,
    nnUNetTrainerDeconverNorm,
    nnUNetTrainerDeconverNorm_lr1e3,
)
globals().update(_TRAINERS)
__all__ = [*_TRAINERS]
