"""Trainers of nnU-Net's own networks with another upsampling or segmentation head, and nnU-Net's recipe or NeRD's."""

from nnunet_deconver.recipes import RECIPES
from nnunet_deconver.trainers.base import ArchitectureTrainer, with_epoch_variants


class nnUNetTrainerDTC(ArchitectureTrainer):
    """The plan's network with deformable transposed convolutions, receptive field 2."""

    upsampling = {"name": "dtc"}


class nnUNetTrainerDTC_rf1(ArchitectureTrainer):
    """The same with receptive field 1."""

    upsampling = {"name": "dtc", "receptive_field": 1}


class nnUNetTrainerDTC_rf4(ArchitectureTrainer):
    """The same with receptive field 4."""

    upsampling = {"name": "dtc", "receptive_field": 4}


class nnUNetTrainerDTC_rf10(ArchitectureTrainer):
    """The same with receptive field 10."""

    upsampling = {"name": "dtc", "receptive_field": 10}


class nnUNetTrainerDTC_rfinf(ArchitectureTrainer):
    """The same with an infinite receptive field: samples move by up to half the feature map."""

    upsampling = {"name": "dtc", "receptive_field": "inf"}


class nnUNetTrainerNeRDm(ArchitectureTrainer):
    """The plan's network with heads whose normalisation depends on the position in the patch."""

    segmentation_head = {"name": "nerdm"}


class nnUNetTrainerNeRDc(ArchitectureTrainer):
    """The plan's network with heads whose classifier depends on the position in the patch."""

    segmentation_head = {"name": "nerdc"}


class nnUNetTrainerNeRDm_Adam(nnUNetTrainerNeRDm):
    """NeRDm heads with the recipe of their paper (Adam 1e-3, halved at 50, 70 and 90 %)."""

    recipe = RECIPES["nerd"]


class nnUNetTrainerNeRDc_Adam(nnUNetTrainerNeRDc):
    """NeRDc heads with the recipe of their paper (Adam 1e-3, halved at 50, 70 and 90 %)."""

    recipe = RECIPES["nerd"]


_TRAINERS = with_epoch_variants(
    nnUNetTrainerDTC,
    nnUNetTrainerDTC_rf1,
    nnUNetTrainerDTC_rf4,
    nnUNetTrainerDTC_rf10,
    nnUNetTrainerDTC_rfinf,
    nnUNetTrainerNeRDm,
    nnUNetTrainerNeRDc,
    nnUNetTrainerNeRDm_Adam,
    nnUNetTrainerNeRDc_Adam,
)
globals().update(_TRAINERS)
__all__ = [*_TRAINERS]
