"""Trainers of a few iterations, for nnUNet_extTrainer."""

import os
import signal

from nnunet_deconver.trainers import (
    nnUNetTrainerDeconver,
    nnUNetTrainerDeconver_k5,
    nnUNetTrainerDeconverDTC,
    nnUNetTrainerDeconverDTCNeRDc,
    nnUNetTrainerDeconverNeRDc,
    nnUNetTrainerDTC,
    nnUNetTrainerNeRDc,
    nnUNetTrainerNeRDm,
)


class _Tiny:
    epochs = 2
    iterations_per_epoch = 2
    validation_iterations_per_epoch = 1


class nnUNetTrainerDeconverTiny(_Tiny, nnUNetTrainerDeconver):
    pass


class nnUNetTrainerDeconverTiny_k5(_Tiny, nnUNetTrainerDeconver_k5):
    pass


class nnUNetTrainerDTCTiny(_Tiny, nnUNetTrainerDTC):
    pass


class nnUNetTrainerNeRDmTiny(_Tiny, nnUNetTrainerNeRDm):
    pass


class nnUNetTrainerNeRDcTiny(_Tiny, nnUNetTrainerNeRDc):
    pass


class nnUNetTrainerDeconverDTCTiny(_Tiny, nnUNetTrainerDeconverDTC):
    pass


class nnUNetTrainerDeconverNeRDcTiny(_Tiny, nnUNetTrainerDeconverNeRDc):
    pass


class nnUNetTrainerDeconverDTCNeRDcTiny(_Tiny, nnUNetTrainerDeconverDTCNeRDc):
    pass


class nnUNetTrainerDeconverTinyLong(_Tiny, nnUNetTrainerDeconver):
    """Long enough for a warm-up; dies in the middle of the epoch that TINY_DIES_IN names."""

    epochs = 60
    iterations_per_epoch = 1

    def on_train_start(self):
        super().on_train_start()
        self.save_every = 10
        self.logger.plot_progress_png = lambda folder: None  # takes longer than an epoch here

    def train_step(self, batch):
        outputs = super().train_step(batch)
        if os.environ.get("TINY_DIES_IN") == str(self.current_epoch):
            os.kill(os.getpid(), signal.SIGKILL)
        return outputs


class nnUNetTrainerDeconverTinyDiverging(_Tiny, nnUNetTrainerDeconver):
    learning_rate = 1e20
    iterations_per_epoch = 20
