"""The trainer of `nnunet-deconver demo`."""

from nnunet_deconver.trainers.deconver import nnUNetTrainerDeconver_lr1e3


class nnUNetTrainerDeconverDemo(nnUNetTrainerDeconver_lr1e3):
    """Deconver for the minutes that a demonstration on a CPU may take."""

    epochs = 20
    iterations_per_epoch = 16
    validation_iterations_per_epoch = 2


__all__ = ["nnUNetTrainerDeconverDemo"]
