"""Losses that nnU-Net does not have."""

from typing import TYPE_CHECKING

import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.ddp_allgather import AllGatherGrad

if TYPE_CHECKING:
    from typing_extensions import Self


class SquaredDiceLoss(MemoryEfficientSoftDiceLoss):
    """The soft Dice of V-Net (arXiv 1606.04797, section 3), less its sign: `-2 sum(p g) / (sum(p^2) + sum(g^2))`.

    nnU-Net's has `sum(p) + sum(g)` below the line. Arguments, sums over the batch and the smoothing term are nnU-Net's.
    """

    @classmethod
    def in_place_of(cls, dice: MemoryEfficientSoftDiceLoss) -> "Self":
        """The loss with the settings of nnU-Net's."""
        return cls(
            apply_nonlin=dice.apply_nonlin,
            batch_dice=dice.batch_dice,
            do_bg=dice.do_bg,
            smooth=dice.smooth,
            ddp=dice.ddp,
        )

    def forward(self, x: torch.Tensor, y: torch.Tensor, loss_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of logits (B, C, *S).

        Args:
            x: logits.
            y: labels (B, 1, *S) or (B, *S), or regions (B, C, *S).
            loss_mask: (B, 1, *S), where the loss counts; None for everywhere.
        """
        p = x if self.apply_nonlin is None else self.apply_nonlin(x)
        with torch.no_grad():
            if y.ndim != p.ndim:
                y = y[:, None]
            g = y.float() if y.shape == p.shape else torch.zeros_like(p, dtype=torch.float32).scatter_(1, y.long(), 1)
        if not self.do_bg:
            p, g = p[:, 1:], g[:, 1:]
        p = p.float()
        mask = 1 if loss_mask is None else loss_mask
        axes = tuple(range(2, p.ndim))
        sums = torch.stack([(term * mask).sum(axes) for term in (p * g, p.square(), g)])  # g is 0 or 1: its own square
        if self.batch_dice:
            if self.ddp:
                sums = AllGatherGrad.apply(sums).sum(0)
            sums = sums.sum(1)
        overlap, predicted, reference = sums
        return -((2 * overlap + self.smooth) / (predicted + reference + self.smooth).clamp_min(1e-8)).mean()
