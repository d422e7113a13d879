"""Learning rates as functions of the epoch alone, so that a continued training goes on exactly."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

WARMUP_FRACTION = 0.01
WARMUP_START = 0.1


def warmup_cosine(epoch: int, num_epochs: int) -> float:
    """Factor on the learning rate: linear warm-up from a tenth, then half a cosine to zero.

    The recipe of arXiv 2504.00302, section 4.1: warm-up over the first 1 % of the training, rounded to whole
    epochs, so a training of fewer than 50 epochs has none.

    Args:
        epoch: from 0 to num_epochs - 1.
        num_epochs: length of the training.
    """
    warmup = round(WARMUP_FRACTION * num_epochs)
    if epoch < warmup:
        return WARMUP_START + (1 - WARMUP_START) * epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (num_epochs - warmup)))


class WarmupCosineScheduler(LRScheduler):
    """Sets the rate of the epoch it is told, as nnU-Net's trainer calls it: `step(current_epoch)`.

    Args:
        optimizer: whose parameter groups get the rate.
        learning_rate: the rate at the end of the warm-up.
        num_epochs: length of the training.
    """

    def __init__(self, optimizer: Optimizer, learning_rate: float, num_epochs: int) -> None:
        self.learning_rate = learning_rate
        self.num_epochs = num_epochs
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Sets the rate of `epoch`; without one, that of the next."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rate = self.learning_rate * warmup_cosine(self.last_epoch, self.num_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate for _ in self.optimizer.param_groups]
