import math

import pytest
import torch

from nnunet_deconver.recipes import RECIPES, EpochScheduler, halved_three_times, warmup_cosine


def test_warmup_over_the_first_percent_from_a_tenth_then_cosine():
    factors = [warmup_cosine(epoch, 1000) for epoch in range(1000)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[5] == pytest.approx(0.55)
    assert factors[10] == 1 == max(factors)
    assert factors[10 + 495] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-5
    assert all(a < b for a, b in zip(factors[:10], factors[1:11], strict=True))
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[100] == pytest.approx(0.5 * (1 + math.cos(math.pi * 90 / 990)))


@pytest.mark.parametrize("num_epochs", [1, 5, 20, 49])
def test_short_trainings_start_at_the_full_rate(num_epochs):
    assert warmup_cosine(0, num_epochs) == 1


@pytest.mark.parametrize("num_epochs", [90, 64, 244, 1000])
def test_nerds_rate_is_halved_at_50_70_and_90_percent(num_epochs):
    """Of 90 epochs, as printed, from the 46th, the 64th and the 82nd on; of other lengths at the same shares."""
    factors = [halved_three_times(epoch, num_epochs) for epoch in range(num_epochs)]
    assert factors == sorted(factors, reverse=True)
    if num_epochs == 90:
        assert [factors.index(factor) for factor in (0.5, 0.25, 0.125)] == [45, 63, 81]
    for share, before, after in ((0.5, 1, 0.5), (0.7, 0.5, 0.25), (0.9, 0.25, 0.125)):
        assert factors[math.ceil(share * num_epochs) - 1] == before
        assert factors[math.ceil(share * num_epochs)] == after


def test_the_printed_numbers_of_the_papers_recipes():
    printed = {"deconver": (1e-4, 1e-5), "nerd": (1e-3, 1e-6), "dtc": (1e-4, 1e-5)}
    assert {name: (RECIPES[name].learning_rate, RECIPES[name].decay) for name in printed} == printed


def test_nerds_decay_is_part_of_the_gradient():
    """Adam's, not AdamW's: with a gradient of the decay alone, the first step is as long as the rate."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 2.0)
    optimizer = RECIPES["nerd"].build_optimizer(network)
    (0 * network.weight).sum().backward()
    optimizer.step()
    assert network.weight.item() == pytest.approx(2 - 1e-3, abs=1e-5)


def test_the_rate_is_a_function_of_the_epoch():
    """Told the same epoch, a new scheduler sets the same rate as one that went through all before."""
    first, second = (torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2))
    walked = EpochScheduler(first, 0.3, 200, warmup_cosine)
    for epoch in range(150):
        walked.step(epoch)
    EpochScheduler(second, 0.3, 200, warmup_cosine).step(149)
    assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"] == 0.3 * warmup_cosine(149, 200)
    assert walked.get_last_lr() == [first.param_groups[0]["lr"]]
