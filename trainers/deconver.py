"""Trainers of Deconver."""

from nnunet_deconver.networks.architecture import deconver_architecture
from nnunet_deconver.recipes import RECIPES
from nnunet_deconver.trainers.base import ArchitectureTrainer, with_epoch_variants


class DeconverTrainer(ArchitectureTrainer):
    """The network of every trainer in this file."""

    kernel_size: int | None = None

    @classmethod
    def architecture(cls, architecture: dict) -> dict:
        """Deconver with the plan's topology; a plan that names Deconver is used as it is."""
        return super().architecture(deconver_architecture(architecture, kernel_size=cls.kernel_size))


class nnUNetTrainerDeconver(DeconverTrainer):
    """Deconver with the paper's recipe (AdamW 1e-4), for trainings of full length."""

    recipe = RECIPES["deconver"]


class nnUNetTrainerDeconver_k5(nnUNetTrainerDeconver):
    """Deconver with kernels of 5 where the plan's are larger than 1."""

    kernel_size = 5


class nnUNetTrainerDeconver_lr1e3(nnUNetTrainerDeconver):
    """Deconver with the learning rate 1e-3, for short trainings."""

    recipe = RECIPES["deconver_short"]


class nnUNetTrainerDeconver_paper(nnUNetTrainerDeconver):
    """Deconver as in the paper, but for the augmentation: squared Dice and cross-entropy, one head."""

    squared_dice = True
    deep_supervision = False


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

    recipe = RECIPES["deconver_short"]


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
# Beside the usual lengths those that the paper's presets need.
_TRAINERS |= with_epoch_variants(nnUNetTrainerDeconver_paper, lengths=(33, 160, 600))
globals().update(_TRAINERS)
__all__ = [*_TRAINERS]
