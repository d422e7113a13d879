"""Recipes: the optimizer, its rate and its decay, and how the rate changes from epoch to epoch.

A further one is one entry in `RECIPES`: a trainer `nnUNetTrainer_<label>`, which trains a plan's own network with it,
follows from that, and so do `plan --recipe` and `list`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

WARMUP_FRACTION = 0.01
WARMUP_START = 0.1


def sgd(parameters: Iterable[nn.Parameter], learning_rate: float, decay: float) -> Optimizer:
    """nnU-Net's own optimizer, which keeps one number per parameter."""
    return torch.optim.SGD(parameters, learning_rate, weight_decay=decay, momentum=0.99, nesterov=True)


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float, decay: float) -> Optimizer:
    """AdamW, which keeps two numbers per parameter."""
    return torch.optim.AdamW(parameters, learning_rate, weight_decay=decay)


def adam(parameters: Iterable[nn.Parameter], learning_rate: float, decay: float) -> Optimizer:
    """Adam, whose weight decay is part of the gradient (L2), which keeps two numbers per parameter."""
    return torch.optim.Adam(parameters, learning_rate, weight_decay=decay)


def polynomial(epoch: int, num_epochs: int) -> float:
    """Factor on the learning rate: nnU-Net's polynomial decay.

    Args:
        epoch: from 0 to num_epochs - 1.
        num_epochs: length of the training.
    """
    return (1 - epoch / num_epochs) ** 0.9


def warmup_cosine(epoch: int, num_epochs: int) -> float:
    """Factor on the learning rate: linear warm-up from a tenth, then half a cosine to zero.

    The recipe of arXiv 2504.00302, section 4.1: warm-up over the first 1 % of the training, rounded to whole
    epochs, so a training of fewer than 50 epochs has none. The paper says of it that "the learning rate was scaled by
    10". A rate ten times the initial one would be another training; the authors' code raises it linearly, by the
    factor of 10, to the initial rate, and so is it here.

    Args:
        epoch: from 0 to num_epochs - 1.
        num_epochs: length of the training.
    """
    warmup = round(WARMUP_FRACTION * num_epochs)
    if epoch < warmup:
        return WARMUP_START + (1 - WARMUP_START) * epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (num_epochs - warmup)))


def cosine(epoch: int, num_epochs: int) -> float:
    """Factor on the learning rate: half a cosine to zero.

    Args:
        epoch: from 0 to num_epochs - 1.
        num_epochs: length of the training.
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / num_epochs))


def halved_three_times(epoch: int, num_epochs: int) -> float:
    """Factor on the learning rate: halved at 50 %, 70 % and 90 % of the training.

    The recipe of arXiv 2103.04020, section 3.2.

    Args:
        epoch: from 0 to num_epochs - 1.
        num_epochs: length of the training.
    """
    return 0.5 ** sum(100 * epoch >= percent * num_epochs for percent in (50, 70, 90))


def constant(epoch: int, num_epochs: int) -> float:
    """Factor on the learning rate: 1 in every epoch.

    Args:
        epoch: from 0 to num_epochs - 1.
        num_epochs: length of the training.
    """
    return 1.0


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        label: what it is called in names of trainers.
        description: one sentence.
        source: where it is published.
        learning_rate: the highest.
        decay: of the weights.
        optimizer: from parameters, learning rate and decay to the optimizer.
        schedule: from epoch and number of epochs to the factor on the learning rate. A function of these alone, so
            that a continued training goes on exactly.
    """

    label: str
    description: str
    source: str
    learning_rate: float
    decay: float
    optimizer: Callable[[Iterable[nn.Parameter], float, float], Optimizer]
    schedule: Callable[[int, int], float]

    def build_optimizer(self, network: nn.Module) -> Optimizer:
        """The optimizer of a network."""
        return self.optimizer(network.parameters(), self.learning_rate, self.decay)


_DECONVER = Recipe(
    "AdamW",
    "AdamW 1e-4, weight decay 1e-5, warm-up over the first 1 %, cosine.",
    "arXiv 2504.00302",
    1e-4,
    1e-5,
    adamw,
    warmup_cosine,
)
RECIPES = {
    "nnunet": Recipe(
        "SGD", "SGD 1e-2, weight decay 3e-5, polynomial decay: nnU-Net's own.", "nnU-Net", 1e-2, 3e-5, sgd, polynomial
    ),
    "deconver": _DECONVER,
    "deconver_short": replace(
        _DECONVER,
        label="AdamW1e3",
        description="AdamW 1e-3, otherwise the same, for short trainings.",
        source="nnunet-deconver",
        learning_rate=1e-3,
    ),
    "nerd": Recipe(
        "Adam",
        "Adam 1e-3, weight decay 1e-6, halved at 50, 70 and 90 %.",
        "arXiv 2103.04020",
        1e-3,
        1e-6,
        adam,
        halved_three_times,
    ),
    "dtc": Recipe(
        "AdamWConstant",
        "AdamW 1e-4, weight decay 1e-5, the rate constant: DTC's in 2D, which prints no schedule, and UNETR's.",
        "arXiv 2601.17939",
        1e-4,
        1e-5,
        adamw,
        constant,
    ),
    "segresnet": Recipe(
        "AdamCosine",
        "Adam 1e-4, weight decay 1e-5, cosine: SegResNet's in MONAI's tutorial for BraTS.",
        "MONAI",
        1e-4,
        1e-5,
        adam,
        cosine,
    ),
    "swinunetr": Recipe(
        "AdamWCosine",
        "AdamW 1e-4, weight decay 1e-5, cosine: Swin UNETR's in MONAI's tutorial for BraTS.",
        "MONAI",
        1e-4,
        1e-5,
        adamw,
        cosine,
    ),
    "mednext": Recipe(
        "AdamWPoly1e3",
        "AdamW 1e-3, weight decay 3e-5, polynomial decay: MedNeXt's.",
        "arXiv 2303.09975",
        1e-3,
        3e-5,
        adamw,
        polynomial,
    ),
}


class EpochScheduler(LRScheduler):
    """Sets the rate of the epoch it is told, as nnU-Net's trainer calls it: `step(current_epoch)`.

    Args:
        optimizer: whose parameter groups get the rate.
        learning_rate: the highest rate.
        num_epochs: length of the training.
        schedule: see `Recipe`.
    """

    def __init__(
        self, optimizer: Optimizer, learning_rate: float, num_epochs: int, schedule: Callable[[int, int], float]
    ) -> None:
        self.learning_rate = learning_rate
        self.num_epochs = num_epochs
        self.schedule = schedule
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Sets the rate of `epoch`; without one, that of the next."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rate = self.learning_rate * self.schedule(self.last_epoch, self.num_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate for _ in self.optimizer.param_groups]
