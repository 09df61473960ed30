"""Are the schedule and the decay groups the ones that the recipe says?"""

import math

import pytest
import torch
from torch import nn

from toto_robot.pretrain.optim import (
    adamw,
    averaged,
    choose_device,
    choose_precision,
    learning_rate,
    set_learning_rate,
    update_average,
)

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


def test_a_cosine_may_end_before_the_steps_do():
    rates = [learning_rate(step, **{**SCHEDULE, "steps": 220, "cosine_share": 0.5}) for step in range(220)]
    assert rates[:110] == [learning_rate(step, **SCHEDULE) for step in range(110)]
    assert rates[109:] == pytest.approx([1e-4] * 111)


def test_wsd_holds_the_peak_then_falls_as_one_minus_a_root():
    wsd = {**SCHEDULE, "wsd_decay": 0.2}  # the last 22 of 110 steps
    rates = [learning_rate(step, **wsd) for step in range(110)]
    assert rates[:10] == [learning_rate(step, **SCHEDULE) for step in range(10)]  # the warm-up is the cosine's
    assert set(rates[9:88]) == {1e-3}
    assert rates[88] < 1e-3
    for step, progress in ((88, 1 / 22), (98, 0.5), (109, 1.0)):
        assert rates[step] == pytest.approx(1e-3 * (0.1 + 0.9 * (1 - math.sqrt(progress))))
    assert rates[88:] == sorted(set(rates[88:]), reverse=True)


def test_scales_multiply_the_rate_divide_the_decay_and_follow_the_schedule():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    scales = {"0.weight": 0.25, "0.bias": 1.0, "1.weight": 1.0, "1.bias": 1.0}
    optimizer = adamw(model.named_parameters(), lr=0.1, weight_decay=0.5, scales=scales)
    set_learning_rate(optimizer, 0.01)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert (of[id(model[0].weight)]["lr"], of[id(model[0].weight)]["weight_decay"]) == (0.0025, 2.0)
    assert (of[id(model[1].weight)]["lr"], of[id(model[1].weight)]["weight_decay"]) == (0.01, 0.5)
    assert (of[id(model[0].bias)]["lr"], of[id(model[0].bias)]["weight_decay"]) == (0.01, 0.0)
    before = [layer.weight.detach().clone() for layer in model]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without a gradient only the decay acts, and it is the same for both
    for layer, weight in zip(model, before, strict=True):
        torch.testing.assert_close(layer.weight, weight * (1 - 0.01 * 0.5))


def test_average_of_the_weights_takes_their_place_and_gives_it_back():
    model = nn.Linear(2, 2)
    optimizer = adamw(model.named_parameters(), lr=0.1, weight_decay=0.0)
    values = []
    for _ in range(4):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        update_average(optimizer, 0.75)
        values.append(model.weight.detach().clone())
    expected = values[0]
    for value in values[1:]:
        expected = 0.75 * expected + 0.25 * value
    with averaged(optimizer):
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, values[-1])
    with pytest.raises(KeyboardInterrupt), averaged(optimizer):
        raise KeyboardInterrupt
    assert torch.equal(model.weight, values[-1])
    with averaged(optimizer, enabled=False):
        assert torch.equal(model.weight, values[-1])


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
