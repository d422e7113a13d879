import math

import pytest
import torch

from nnunet_deconver.recipes import EpochScheduler, warmup_cosine


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


def test_the_rate_is_a_function_of_the_epoch():
    """Told the same epoch, a new scheduler sets the same rate as one that went through all before."""
    first, second = (torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2))
    walked = EpochScheduler(first, 0.3, 200, warmup_cosine)
    for epoch in range(150):
        walked.step(epoch)
    EpochScheduler(second, 0.3, 200, warmup_cosine).step(149)
    assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"] == 0.3 * warmup_cosine(149, 200)
    assert walked.get_last_lr() == [first.param_groups[0]["lr"]]
