"""Is the noise schedule the published one, and does DDIM find back what was noised?"""

import numpy as np
import pytest
import torch

from policies.heads.ddim import DDIM, squared_cosine


def test_the_schedule_follows_the_squared_cosine():
    """Before the largest beta caps it, alpha bar is the published curve itself."""
    kept = squared_cosine(100).numpy()
    t = np.arange(1, 100) / 100
    level = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(kept[:99], level / np.cos(0.008 / 1.008 * np.pi / 2) ** 2, rtol=1e-4, atol=1e-6)
    assert 0 < kept[99] <= 0.0011 * kept[98]


@pytest.mark.parametrize("steps", [1, 7, 10, 100])
def test_a_perfect_denoiser_gives_the_clean_sample_back(steps):
    ddim = DDIM(100, steps)
    clean = torch.rand(4, 3, 2) * 2 - 1

    def predict(noisy, step):
        kept = ddim.kept[step].view(-1, 1, 1)
        return (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()

    torch.testing.assert_close(ddim.sample(torch.randn(4, 3, 2), predict), clean, rtol=1e-3, atol=1e-3)


def test_noise_and_signal_share_the_variance():
    ddim = DDIM(100, 10)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 20_000, 5, generator=generator)
    for step in (0, 50, 99):
        noisy = ddim.add_noise(clean, noise, torch.full((20_000,), step))
        assert abs(float(noisy.std()) - 1) < 0.02
        assert abs(float((noisy * clean).mean()) - float(ddim.kept[step].sqrt())) < 0.02


@pytest.mark.parametrize("steps", [5, 10, 33])
def test_sampling_equals_diffusers(steps):
    schedulers = pytest.importorskip("diffusers")
    theirs = schedulers.DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    theirs.set_timesteps(steps)
    ddim = DDIM(100, steps)
    torch.testing.assert_close(ddim.kept, theirs.alphas_cumprod, rtol=1e-5, atol=1e-8)

    def predict(noisy, step):
        return torch.sin(3 * noisy) + step.view(-1, 1, 1) / 50 - 0.5

    noise = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    sample = noise
    for step in theirs.timesteps:
        sample = theirs.step(predict(sample, step.expand(4)), step, sample).prev_sample
    torch.testing.assert_close(ddim.sample(noise, predict), sample, rtol=1e-4, atol=1e-4)
