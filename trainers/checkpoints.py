"""Checkpoints that a training can be continued from: whole whenever it was killed, and finite."""

from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import remove_unfinished, written_whole

# In the order in which nnU-Net's --c takes them.
_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


def _read(path: Path) -> dict:
    """A checkpoint, from which a training can go on.

    Raises:
        InputError: if it is cut short, or holds weights that are NaN.
    """
    try:
        # As nnU-Net reads what its training wrote.
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        # Buffers are among them, such as the -inf of a mask.
        diverged = any(bool(torch.isnan(each).any()) for each in checkpoint["network_weights"].values())
    except OSError:  # nothing is known about the content
        raise
    except Exception as error:  # of a file that is cut short, any
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is cut short or damaged ({type(error).__name__}: {reason})") from error
    if diverged:
        raise InputError(f"{path}: holds weights that are NaN, as of a training that diverged")
    return checkpoint


def best_ema(trainer: nnUNetTrainer) -> float | None:
    """The best moving average of the Dice so far, as it is logged.

    nnU-Net writes checkpoint_latest, and the best so far with it, before it looks whether the epoch was the best.
    """
    return max(trainer.logger.get_value("ema_fg_dice", step=None), default=None)


class CheckpointTrainer(nnUNetTrainer):
    """nnU-Net's trainer with checkpoints from which a training can always go on.

    A checkpoint takes its name once it is whole, so that a training that is killed keeps the earlier one. Weights that
    are not finite are never written; the training stops instead.
    """

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def on_train_start(self) -> None:
        """Starts as nnU-Net does, without what a killed training left unfinished."""
        super().on_train_start()
        if self.local_rank == 0 and self.output_folder is not None:
            remove_unfinished(Path(self.output_folder))

    def train_step(self, batch: dict) -> dict:
        """One iteration, as nnU-Net's.

        Raises:
            FloatingPointError: if the loss is not finite and the iteration was not skipped.
        """
        outputs = super().train_step(batch)
        # Half precision overflows at times: the gradient scaler then skips the iteration.
        if self.grad_scaler is None and not np.isfinite(outputs["loss"]).all():
            cases = ", ".join(map(str, batch.get("keys", ["unknown"])))
            raise self._diverged(f"the training loss became {float(outputs['loss'])}", f", in a batch of {cases}")
        return outputs

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Ends the epoch's training as nnU-Net does.

        Raises:
            FloatingPointError: if the weights are not finite, or no iteration had a finite loss.
        """
        super().on_train_epoch_end(train_outputs)
        self._check_weights()
        self._check_losses("training", train_outputs)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Ends the epoch's validation as nnU-Net does.

        Raises:
            FloatingPointError: if no iteration had a finite loss, as with weights that are finite, but huge.
        """
        super().on_validation_epoch_end(val_outputs)
        self._check_losses("validation", val_outputs)

    def save_checkpoint(self, filename: str) -> None:
        """Writes a checkpoint; the earlier one of this name stays until it is whole.

        Raises:
            FloatingPointError: if the weights are not finite.
            InputError: if it cannot be written, as on a full disk.
        """
        self._check_weights()
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)  # which writes nothing
        try:
            with written_whole(Path(filename), "wb") as file:
                # nnU-Net hands it to torch.save, which takes open files.
                super().save_checkpoint(file)  # pyright: ignore[reportArgumentType]
        except (OSError, RuntimeError) as error:
            # torch finishes its file even then, and complains about that.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise InputError(f"{filename}: cannot be written ({cause.strerror}). {self._way_on()}") from error

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Loads a checkpoint as nnU-Net does.

        Raises:
            InputError: if it is cut short or NaN; the message names the one before.
        """
        if isinstance(filename_or_checkpoint, str):
            path = Path(filename_or_checkpoint)
            try:
                _read(path)
            except InputError as error:
                # Not taken by itself: it may be hundreds of epochs older, and --val would measure another model.
                raise InputError(f"{error}. Replace it by a whole copy, or remove it. {self._way_on()}") from error
        super().load_checkpoint(filename_or_checkpoint)
        self._best_ema = best_ema(self)

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(each).all()) for each in self.network.parameters()):
            raise self._diverged("the weights became NaN or inf")

    def _check_losses(self, of: str, outputs: list[dict]) -> None:
        if not any(np.isfinite(each["loss"]).all() for each in outputs):
            raise self._diverged(f"the {of} loss was not finite in any iteration")

    def _diverged(self, what: str, where: str = "") -> FloatingPointError:
        return FloatingPointError(
            f"{what} in epoch {self.current_epoch} (learning rate {self.optimizer.param_groups[0]['lr']:.3g}){where}. "
            "Look at the preprocessed cases for NaN or inf, then at the learning rate (lower it: class attribute "
            f"learning_rate of {type(self).__name__}), then at half precision. {self._way_on()}"
        )

    def _way_on(self) -> str:
        """What --c goes on from once checkpoints that are not whole are out of the way."""
        for path in (Path(str(self.output_folder), name) for name in _CHECKPOINTS):
            try:
                epochs = _read(path)["current_epoch"]
            except (InputError, OSError):
                continue
            return f"--c then goes on from {path.name}, which is whole, after {epochs} epochs"
        return "There is no whole checkpoint to go on from: start again, without --c"
