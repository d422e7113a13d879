"""V-Net's Dice against its formula, written out in float64."""

import pytest
import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1

from nnunet_deconver.trainers.losses import SquaredDiceLoss


def by_hand(p, g, smooth, batch_dice, mask):
    """-2 sum(p g) / (sum(p^2) + sum(g^2)), class by class and, unless the batch counts as one image, case by case."""
    groups = [range(len(p))] if batch_dice else [[case] for case in range(len(p))]
    values = []
    for group in groups:
        for c in range(p.shape[1]):
            product = square = reference = 0.0
            for case in group:
                for position in range(p[case, c].numel()):
                    if not mask[case, 0].flatten()[position]:
                        continue
                    a, b = p[case, c].flatten()[position].item(), g[case, c].flatten()[position].item()
                    product, square, reference = product + a * b, square + a * a, reference + b * b
            values.append((2 * product + smooth) / (square + reference + smooth))
    return -sum(values) / len(values)


@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "ignore label"])
@pytest.mark.parametrize("batch_dice", [False, True], ids=["case by case", "batch"])
@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_it_is_its_formula(regions, batch_dice, masked):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    nonlinearity = torch.sigmoid if regions else softmax_helper_dim1
    if regions:
        target = torch.randint(0, 2, (2, 3, 4, 5)).double()
        g, p = target, nonlinearity(logits)
    else:
        target = torch.randint(0, 3, (2, 1, 4, 5)).double()
        g, p = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1)[:, 1:], nonlinearity(logits)[:, 1:]
    mask = torch.rand(2, 1, 4, 5) > 0.4 if masked else torch.ones(2, 1, 4, 5, dtype=torch.bool)
    loss = SquaredDiceLoss(nonlinearity, batch_dice=batch_dice, do_bg=regions, smooth=1e-5, ddp=False)
    found = loss(logits, target, loss_mask=mask if masked else None)
    assert found.item() == pytest.approx(by_hand(p.detach(), g, 1e-5, batch_dice, mask), rel=1e-5)
    found.backward()
    assert logits.grad.isfinite().all() and logits.grad.any()


def test_it_takes_over_the_settings_of_nnunets():
    theirs = MemoryEfficientSoftDiceLoss(torch.sigmoid, batch_dice=True, do_bg=False, smooth=0.5, ddp=False)
    ours = SquaredDiceLoss.in_place_of(theirs)
    names = ("apply_nonlin", "batch_dice", "do_bg", "smooth", "ddp")
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]


def test_it_weighs_uncertain_voxels_otherwise_than_nnunets():
    """At a probability of 1/2 everywhere, all of it foreground: 0.8 where nnU-Net's is 2/3."""
    logits, target = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    arguments = {"batch_dice": False, "do_bg": True, "smooth": 0.0, "ddp": False}
    assert SquaredDiceLoss(torch.sigmoid, **arguments)(logits, target).item() == pytest.approx(-0.8)
    assert MemoryEfficientSoftDiceLoss(torch.sigmoid, **arguments)(logits, target).item() == pytest.approx(-2 / 3)
