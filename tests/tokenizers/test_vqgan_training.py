"""Does VQGAN training learn, weigh its terms as taming does, and fold without changing a code?"""

from __future__ import annotations

import pytest
import torch

from tests.tokenizers.test_vq import batch
from toto_robot.tokenizers.discriminator import Discriminator, hinge_loss
from toto_robot.tokenizers.perceptual import Perceptual
from toto_robot.tokenizers.vqgan import VQGANConfig, frames_to_input
from toto_robot.tokenizers.vqgan_training import VQGANAutoencoder, VQGANLoss

CONFIG = VQGANConfig(
    name="test", vocab=32, width=32, multipliers=(1, 1, 1), blocks=1, attention_levels=(2,), latent_width=8,
    code_width=6,
)  # fmt: skip
STEPS, PLAIN_STEPS = 40, 15


def pixels(step: int) -> torch.Tensor:
    """Return pictures (8, 3, 32, 32) in [-1, 1], a pure function of the step."""
    return batch(step) * 2 - 1


def make(discriminator: bool = False) -> VQGANAutoencoder:
    generator = torch.Generator().manual_seed(0)
    judge = Discriminator(8, 2, generator=generator) if discriminator else None
    return VQGANAutoencoder(CONFIG, discriminator=judge, generator=generator).train()


def judged(model: VQGANAutoencoder, step: int, quantise: bool, **options: object) -> dict[str, torch.Tensor]:
    pictures, commitment, report = model(pixels(step), quantise=quantise, generator=torch.Generator().manual_seed(step))
    given = {"weights": VQGANLoss(), "perceptual": None, "adversarial": False, **options}
    return {**report, **model.judge(pixels(step), pictures, commitment, **given)}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained() -> tuple[VQGANAutoencoder, list[dict[str, torch.Tensor]]]:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    reports = []
    for step in range(STEPS):
        reports.append(judged(model, step, quantise=step >= PLAIN_STEPS))
        optimizer.zero_grad()
        reports[-1]["loss"].backward()
        optimizer.step()
    return model.eval(), reports


def test_it_reconstructs_through_its_codes(
    trained: tuple[VQGANAutoencoder, list[dict[str, torch.Tensor]]],
) -> None:
    _, reports = trained
    assert "codes_used" not in reports[PLAIN_STEPS - 1] and reports[-1]["codes_used"] >= 8
    truth = batch(STEPS - 1)
    constant = truth.mean(dim=(0, 2, 3), keepdim=True)  # what a collapsed codebook could draw
    assert reports[-1]["psnr_db"] > -10 * torch.log10((truth - constant).square().mean()) + 1
    assert reports[-1]["loss"] < 0.5 * reports[0]["loss"]


@torch.no_grad()
def test_folded_codes_are_the_nearest_rows_and_draw_the_same_pictures(
    trained: tuple[VQGANAutoencoder, list[dict[str, torch.Tensor]]],
) -> None:
    model, _ = trained
    folded = model.fold()
    frames = (batch(500) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    codes = folded.encode(frames)
    pictures, _, report = model(frames_to_input(frames, CONFIG.stride), quantise=True)
    assert report["codes_used"] == codes.unique().numel() >= 8
    expected = (pictures.clamp(-1, 1) + 1) * 127.5
    assert (folded.decode(codes).permute(0, 3, 1, 2).float() - expected).abs().max() <= 0.51


def test_the_adversarial_term_is_as_strong_as_the_reconstruction_and_leaves_it_apart() -> None:
    model = make(discriminator=True)
    assert model.discriminator is not None
    last = model.vqgan.decoder.conv_out.weight
    pictures, commitment, _ = model(pixels(0), quantise=False)
    without = model.judge(pixels(0), pictures, commitment, weights=VQGANLoss(), perceptual=None, adversarial=False)
    with_both = model.judge(pixels(0), pictures, commitment, weights=VQGANLoss(), perceptual=None, adversarial=True)
    (alone,) = torch.autograd.grad(without["loss"], last, retain_graph=True)
    (both,) = torch.autograd.grad(with_both["loss"], last, retain_graph=True)
    assert ((both - alone).norm() / alone.norm()).item() == pytest.approx(0.8, rel=0.02)
    with_both["loss"].backward()
    ours = [parameter.grad.clone() for parameter in model.discriminator.parameters()]
    model.discriminator.zero_grad()
    hinge_loss(model.discriminator(pixels(0)), model.discriminator(pictures.detach())).backward()
    for gradient, parameter in zip(ours, model.discriminator.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_perceptual_term_is_added_with_its_weight() -> None:
    perceptual = Perceptual()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in perceptual.state_dict().values():
            tensor.normal_(0, 0.05, generator=generator).abs_()
    model = make()
    plain = judged(model, 0, quantise=False)
    seen = judged(model, 0, quantise=False, perceptual=perceptual, weights=VQGANLoss(perceptual=3.0))
    assert seen["perceptual"] > 0
    assert seen["loss"].item() == pytest.approx((plain["l1"] + 3 * seen["perceptual"]).item(), rel=1e-5)


def test_a_codebook_must_start_before_folding() -> None:
    with pytest.raises(ValueError, match="quantise=True"):
        make().fold()


def test_the_reservoir_grows_with_the_codes() -> None:
    assert make().codebook.reservoir.shape == (16_384, 6)
    large = VQGANAutoencoder(VQGANConfig(**{**CONFIG.__dict__, "vocab": 16_384}))
    assert large.codebook.reservoir.shape == (65_536, 6)
