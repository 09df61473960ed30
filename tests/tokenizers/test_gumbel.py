"""Is Gumbel training the published one: its likelihood, its divergence, its schedules, its gradient?"""

from __future__ import annotations

import math

import pytest
import torch

from toto_robot.tokenizers.dvae import DVAEConfig
from toto_robot.tokenizers.gumbel import (
    GumbelAutoencoder,
    GumbelSchedule,
    divergence_from_uniform,
    logit_laplace_nll,
)

CONFIG = DVAEConfig(name="test", hidden=8, blocks_per_group=1, vocab=16, decoder_init=8)


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.3, -1.5), (-0.7, 0.4)])
def test_logit_laplace_is_a_density_with_its_median_where_it_should_be(mean: float, log_scale: float) -> None:
    x = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)[1:-1]
    density = logit_laplace_nll(x, torch.tensor(mean), torch.tensor(log_scale)).neg().exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-3)
    below = x < torch.sigmoid(torch.tensor(mean))
    assert torch.trapezoid(density[below], x[below]).item() == pytest.approx(0.5, abs=1e-3)


def test_logit_laplace_is_the_formula_of_the_paper() -> None:
    x, mean, b = 0.3, 0.5, 0.2
    paper = 1 / (2 * b * x * (1 - x)) * math.exp(-abs(math.log(x / (1 - x)) - mean) / b)
    ours = logit_laplace_nll(torch.tensor(x), torch.tensor(mean), torch.tensor(math.log(b)))
    assert ours.item() == pytest.approx(-math.log(paper), rel=1e-5)


def test_divergence_is_that_of_torch_and_spans_from_zero_to_the_whole_vocabulary() -> None:
    logits = torch.randn(3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    q = torch.distributions.Categorical(logits=logits.movedim(1, -1))
    uniform = torch.distributions.Categorical(logits=torch.zeros(3, 2, 2, 16))
    torch.testing.assert_close(divergence_from_uniform(logits), torch.distributions.kl_divergence(q, uniform))
    certain = 100 * torch.eye(16)[:1, :, None]
    assert divergence_from_uniform(torch.zeros(1, 16, 1)).item() == pytest.approx(0, abs=1e-6)
    assert divergence_from_uniform(certain).item() == pytest.approx(math.log(16))


def test_schedules_are_the_published_ones_and_shrink_in_proportion() -> None:
    for steps in (3_000_000, 10_000_000):
        published = GumbelSchedule(steps=steps)
        assert published.temperature_at(0) == 1 and published.kl_weight_at(0) == 0
        assert published.temperature_at(75_000) == pytest.approx((1 + 1 / 16) / 2)
        assert published.temperature_at(150_000) == published.temperature_at(2_900_000) == 1 / 16
        assert published.kl_weight_at(2_500) == pytest.approx(3.3) and published.kl_weight_at(5_000) == 6.6
    short = GumbelSchedule(steps=3_000)  # a thousandth
    for step in (0, 40, 75, 150, 2_000):
        assert short.temperature_at(step) == pytest.approx(published.temperature_at(1_000 * step))
        assert short.kl_weight_at(step) == pytest.approx(published.kl_weight_at(1_000 * step))


def test_the_loss_is_the_bound_over_all_values_of_an_image() -> None:
    model = GumbelAutoencoder(CONFIG, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    report = model(images, temperature=None, kl_weight=6.6)
    mapped = 0.8 * images + 0.1
    logits = model.dvae.encoder(mapped)
    one_hot = torch.nn.functional.one_hot(logits.argmax(1), 16).movedim(-1, 1).float()
    mean, log_scale = model.dvae.decoder(one_hot).chunk(2, dim=1)
    nll = logit_laplace_nll(mapped, mean, log_scale).sum()
    bound = nll + 6.6 * divergence_from_uniform(logits).sum()  # A.2: divided by all values, so by beta / 192 a code
    assert report["loss"].item() == pytest.approx(bound.item() / images.numel(), rel=1e-4)


def test_a_relaxed_sample_has_a_gradient_to_the_encoder_and_hardens_with_the_temperature() -> None:
    model = GumbelAutoencoder(CONFIG, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    seen = []
    model.dvae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for temperature in (1.0, 1 / 16):
        torch.manual_seed(0)
        model.zero_grad()
        model(images, temperature=temperature, kl_weight=0.0)["loss"].backward()
        first = model.dvae.encoder.blocks[0].weight.grad
        assert first is not None and first.abs().max() > 0
    warm, cold = seen
    torch.testing.assert_close(warm.sum(1), torch.ones(2, 2, 2))
    assert torch.equal(warm.argmax(1), cold.argmax(1))  # the same noise
    assert warm.amax(1).mean() < 0.5 < 0.8 < cold.amax(1).mean()
