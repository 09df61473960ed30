"""Is our discriminator taming-transformers', and do its losses push where they should?"""

from __future__ import annotations

import pytest
import torch

from toto_robot.tokenizers.discriminator import (
    Discriminator,
    adaptive_weight,
    fooling_loss,
    hinge_loss,
    layers_for,
)


@pytest.mark.parametrize(("layers", "image_px"), [(1, 8), (2, 16), (3, 32), (3, 64)])
def test_logits_are_those_of_taming(layers: int, image_px: int) -> None:
    reason = "no reference: pip install --no-deps taming-transformers==0.0.1 (`make setup` does)"
    taming = pytest.importorskip("taming.modules.discriminator.model", reason=reason)
    assert layers_for(image_px) == layers
    theirs = taming.NLayerDiscriminator(ndf=8, n_layers=layers)
    ours = Discriminator(8, layers, generator=torch.Generator().manual_seed(0))
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.rand(3, 3, image_px, image_px, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for mode in (True, False):  # batch statistics, then the running ones
        ours.train(mode)
        theirs.train(mode)
        logits = ours(pixels)
        assert logits.numel() >= 3 and torch.equal(logits, theirs(pixels))


def test_losses_by_hand() -> None:
    true, decoded = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert hinge_loss(true, decoded).item() == pytest.approx(0.5 * (0.25 + 1.0))
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.0, 2.0])).sum()
    weight = adaptive_weight(reconstruction, adversarial, last)
    assert weight.item() == pytest.approx(5 / 2.0001) and not weight.requires_grad
    (reconstruction + adversarial).backward()  # both graphs are still there


def test_fooling_moves_the_pictures_and_not_the_discriminator() -> None:
    judge = Discriminator(4, 1, generator=torch.Generator().manual_seed(0))
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = fooling_loss(judge, pictures)
    loss.backward()
    assert pictures.grad is not None and pictures.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in judge.parameters())
    assert loss.item() == pytest.approx(-judge(pictures).mean().item(), rel=1e-5)


def test_it_learns_to_tell() -> None:
    judge = Discriminator(8, 1, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2, betas=(0.5, 0.9))
    losses = []
    for _ in range(30):
        true, decoded = (scale * torch.randn(8, 3, 16, 16, generator=generator) for scale in (1.0, 0.3))
        loss = hinge_loss(judge(true), judge(decoded))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 and losses[-1] < 0.2


def test_frames_below_a_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 px, got 4"):
        layers_for(4)
