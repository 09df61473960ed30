"""Are the schedule and the decay groups the ones that the recipe says?"""

import math

import pytest
import torch
from torch import nn

from toto_robot.pretrain.optim import adamw, choose_device, choose_precision, learning_rate

SCHEDULE = {"peak": 1e-3, "warmup_steps": 10, "steps": 110, "final_ratio": 0.1}


def test_learning_rate_values():
    assert learning_rate(0, **SCHEDULE) == pytest.approx(1e-4)  # a tenth of the peak, not zero
    assert learning_rate(4, **SCHEDULE) == pytest.approx(5e-4)
    assert learning_rate(9, **SCHEDULE) == pytest.approx(1e-3)
    # half of the cosine: the mean of peak and floor
    assert learning_rate(59, **SCHEDULE) == pytest.approx(1e-3 * 0.55)
    assert learning_rate(34, **SCHEDULE) == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert learning_rate(109, **SCHEDULE) == pytest.approx(1e-4)


def test_learning_rate_equals_torchs_own_schedulers():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=1e-4)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[9])
    for step in range(110):
        assert learning_rate(step, **SCHEDULE) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), step
        optimizer.step()
        schedule.step()


def test_learning_rate_without_warmup_starts_below_the_peak_and_never_rises():
    rates = [learning_rate(s, peak=1.0, warmup_steps=0, steps=20, final_ratio=0.0) for s in range(20)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 1.0
    assert rates[-1] == pytest.approx(0.0)


def test_weight_decay_groups():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(4, 2, 3))
    model[1].weight.requires_grad_(False)
    optimizer = adamw(model.named_parameters(), lr=1e-3, weight_decay=0.1)
    decayed, undecayed = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert undecayed["weight_decay"] == 0.0
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert {id(p) for p in undecayed["params"]} == {
        id(model[1].bias), id(model[2].weight), id(model[2].bias), id(model[3].bias)
    }  # fmt: skip
    assert decayed["betas"] == (0.9, 0.95)


def test_decay_shrinks_matrices_only():
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.bias.fill_(1.0)
    before = model.weight.detach().clone()
    optimizer = adamw(model.named_parameters(), lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, before * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias, torch.ones(3))


def test_device_and_precision_are_checked():
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("fp32", cpu) == torch.float32
    assert choose_precision("auto", cpu) in (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match=r"precision must be .* got 'half'"):
        choose_precision("half", cpu)
    with pytest.raises(ValueError, match="expected device"):
        choose_device("tpu please")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            choose_device("cuda")
