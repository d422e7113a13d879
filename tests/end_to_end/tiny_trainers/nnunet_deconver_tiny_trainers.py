"""Trainers of a few iterations, for nnUNet_extTrainer."""

import io
import os
import signal
import time
from pathlib import Path
from unittest import mock

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_deconver.trainers as trainers
from nnunet_deconver.trainers import nnUNetTrainerDeconver


class _Tiny:
    epochs = 2
    iterations_per_epoch = 2
    validation_iterations_per_epoch = 1

    def on_train_start(self):
        super().on_train_start()
        self.logger.plot_progress_png = lambda folder: None  # takes longer than an epoch here


# nnUNetTrainerDeconverTiny, nnUNetTrainerDeconver_k5Tiny, nnUNetTrainerDTC_rf4Tiny, ...
for _name in trainers.__all__:
    _trainer = getattr(trainers, _name)
    if not getattr(_trainer, "is_epoch_variant", False):
        globals()[f"{_name}Tiny"] = type(f"{_name}Tiny", (_Tiny, _trainer), {"__module__": __name__})


class nnUNetTrainerTiny(nnUNetTrainer):
    """nnU-Net's own."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1


class _Mortal:
    """Dies in the middle of the epoch that TINY_DIES_IN names."""

    def train_step(self, batch):
        outputs = super().train_step(batch)
        if os.environ.get("TINY_DIES_IN") == str(self.current_epoch):
            os.kill(os.getpid(), signal.SIGKILL)
        return outputs


class nnUNetTrainerMortal(_Mortal, nnUNetTrainer):
    """nnU-Net's own, which dies, and writes a checkpoint after each epoch."""

    def on_train_start(self):
        super().on_train_start()
        self.save_every = 1


class _Studied:
    """Goes on after each epoch; each takes at least half a second, so that there is time to kill it."""

    def on_train_start(self):
        super().on_train_start()
        self.save_every = 1
        self.logger.plot_progress_png = lambda folder: None

    def on_epoch_start(self):
        super().on_epoch_start()
        time.sleep(0.5)


class nnUNetTrainerTinyStudied(_Studied, nnUNetTrainer):
    """nnU-Net's own."""


class nnUNetTrainerDeconverTinyStudied(_Studied, nnUNetTrainerDeconver):
    """Deconver's."""


class nnUNetTrainerDeconverTinyLong(_Mortal, _Tiny, nnUNetTrainerDeconver):
    """Long enough for a warm-up; dies."""

    epochs = 60
    iterations_per_epoch = 1

    def on_train_start(self):
        super().on_train_start()
        self.save_every = 10


def _save_half_and_die(checkpoint, file):
    content = io.BytesIO()
    _save(checkpoint, content)
    half = content.getvalue()[: content.tell() // 2]
    if isinstance(file, str):
        Path(file).write_bytes(half)
    else:
        file.write(half)
        file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


_save = torch.save


class nnUNetTrainerDeconverTinyKilled(nnUNetTrainerDeconverTinyLong):
    """Dies in the middle of the file that TINY_DIES_WRITING names, after so many epochs: "checkpoint_latest.pth 10".

    In the epoch that TINY_DIVERGES_IN names, its weights become huge.
    """

    epochs = 20

    def on_train_start(self):
        super().on_train_start()
        self.save_every = 5

    def train_step(self, batch):
        if os.environ.get("TINY_DIVERGES_IN") == str(self.current_epoch):
            self.optimizer.param_groups[0]["lr"] = 1e30
        return super().train_step(batch)

    def save_checkpoint(self, filename):
        dies = os.environ.get("TINY_DIES_WRITING") == f"{Path(filename).name} {self.current_epoch + 1}"
        with mock.patch("torch.save", _save_half_and_die if dies else _save):
            super().save_checkpoint(filename)


class nnUNetTrainerDeconverTinyDiverging(_Tiny, nnUNetTrainerDeconver):
    learning_rate = 1e20
    iterations_per_epoch = 20
