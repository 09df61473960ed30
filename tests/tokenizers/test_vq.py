"""Does VQ-EMA training learn, repeat itself exactly, and fold into the OpenAI layout without changing a code?"""

from __future__ import annotations

import pytest
import torch

from toto_robot.tokenizers.codebook import VQConfig, kmeans, nearest
from toto_robot.tokenizers.dvae import DVAEConfig, unmap_pixels
from toto_robot.tokenizers.vq import VQAutoencoder

CONFIG = DVAEConfig(name="test", hidden=16, blocks_per_group=1, vocab=32, decoder_init=16)
VQ = VQConfig(code_width=6, reservoir=512)
STEPS, PLAIN_STEPS = 60, 20


def batch(step: int) -> torch.Tensor:
    """Return pictures (8, 3, 32, 32) of one bright square on a dim ground, a pure function of the step."""
    generator = torch.Generator().manual_seed(1000 + step)
    pictures = torch.full((8, 3, 32, 32), 0.2)
    for picture in pictures:
        x, y = torch.randint(0, 3, (2,), generator=generator).tolist()
        picture[:, 8 * y : 8 * y + 16, 8 * x : 8 * x + 16] = torch.rand(3, 1, 1, generator=generator)
    return pictures.contiguous(memory_format=torch.channels_last)


def train(
    model: VQAutoencoder, optimiser: torch.optim.Optimizer, first: int, last: int
) -> list[dict[str, torch.Tensor]]:
    """Run steps first..last-1, the second phase from `PLAIN_STEPS` on."""
    reports = []
    for step in range(first, last):
        report = model(batch(step), quantise=step >= PLAIN_STEPS, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        report["loss"].backward()
        optimiser.step()
        reports.append(report)
    return reports


def make() -> tuple[VQAutoencoder, torch.optim.Optimizer]:
    model = VQAutoencoder(CONFIG, VQ, generator=torch.Generator().manual_seed(0)).train()
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


@pytest.fixture(scope="module")
def trained() -> tuple[VQAutoencoder, list[dict[str, torch.Tensor]]]:
    model, optimiser = make()
    reports = train(model, optimiser, 0, STEPS)
    return model.eval(), reports


def test_training_reconstructs_through_many_codes(trained: tuple[VQAutoencoder, list[dict[str, torch.Tensor]]]) -> None:
    model, reports = trained
    assert "codes_used" not in reports[PLAIN_STEPS - 1] and reports[-1]["codes_used"] >= 8
    assert reports[-1]["psnr_db"] > reports[0]["psnr_db"] + 4
    with torch.no_grad():
        mean_colour = batch(999).mean(dim=(0, 2, 3), keepdim=True)  # what a collapsed codebook could draw
        assert model(batch(999), quantise=True)["mse"] < 0.5 * (batch(999) - mean_colour).square().mean()


@torch.no_grad()
def test_folded_codes_are_the_nearest_neighbours_and_pictures_are_equal(
    trained: tuple[VQAutoencoder, list[dict[str, torch.Tensor]]],
) -> None:
    model, _ = trained
    folded = model.fold()
    images = (batch(500) * 255).round().to(torch.uint8)
    codes = folded.encode(images.permute(0, 2, 3, 1))
    latents = model.encoder(0.8 * images.float() / 255 + 0.1)  # (B, 6, h, w)
    distances = torch.cdist(latents.permute(0, 2, 3, 1).double().flatten(0, 2), model.codebook.codes.double())
    chosen = distances.gather(1, codes.flatten()[:, None])[:, 0]
    assert (chosen - distances.min(dim=1).values).max() < 1e-5  # a tie may go either way
    assert torch.equal(codes, model.encode(images.float() / 255)) and codes.unique().numel() >= 8
    quantised = model.codebook.codes[codes].permute(0, 3, 1, 2)
    expected = unmap_pixels(model.decoder(quantised)[:, :3].sigmoid()) * 255
    assert (folded.decode(codes).permute(0, 3, 1, 2).float() - expected).abs().max() <= 0.51


def test_a_resumed_training_is_bit_equal(trained: tuple[VQAutoencoder, list[dict[str, torch.Tensor]]]) -> None:
    """State is the state dict: interrupt it before, at and after the k-means start."""
    for stop in (PLAIN_STEPS - 3, PLAIN_STEPS, STEPS - 5):
        first, optimiser = make()
        train(first, optimiser, 0, stop)
        second, fresh = make()
        second.load_state_dict(first.state_dict())
        fresh.load_state_dict(optimiser.state_dict())
        train(second, fresh, stop, STEPS)
        ours, theirs = second.state_dict(), trained[0].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@torch.no_grad()
def test_evaluation_moves_nothing(trained: tuple[VQAutoencoder, list[dict[str, torch.Tensor]]]) -> None:
    model, _ = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(batch(0), quantise=True)
    model(batch(0), quantise=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_dead_code_comes_back_to_life() -> None:
    model, optimiser = make()
    train(model, optimiser, 0, PLAIN_STEPS + 1)
    with torch.no_grad():
        model.codebook.codes[3] = 1e3  # far from everything, and long unused
        model.codebook.total[3] = 0
        model.codebook.use[3] = 0
    train(model, optimiser, PLAIN_STEPS + 1, PLAIN_STEPS + 2)
    assert model.codebook.codes[3].abs().max() < 100 and model.codebook.use[3] > 0


def test_a_codebook_must_start_before_folding() -> None:
    model, _ = make()
    with pytest.raises(ValueError, match="quantise=True"):
        model.fold()


def test_kmeans_finds_separated_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (centres[:, None] + 0.1 * torch.randn(4, 50, 2, generator=generator)).flatten(0, 1)
    found = kmeans(points, 8, 10, generator)
    assert torch.cdist(centres, found).min(dim=1).values.max() < 0.2
    assert nearest(centres, centres).tolist() == [0, 1, 2, 3]
    assert kmeans(points[:3], 8, 2, generator).shape == (8, 2)  # fewer points than clusters


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"commitment": -1.0}, {"code_width": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        VQConfig(**wrong)  # type: ignore[arg-type]
