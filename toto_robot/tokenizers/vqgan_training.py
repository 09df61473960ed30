"""How is a VQGAN of ours trained: what does it reconstruct, how is its codebook learned, and who judges the pictures?

The codebook is that of the dVAE (`codebook.py`), not taming's gradient on a table: nothing in the latter brings a code
back that no latent is near, and of the published 16,384 about 980 are in use (measured by Toto's authors on ImageNet).
The pixel loss is taming's L1 on [-1, 1]; perceptual and adversarial terms are options, with taming's arithmetic.
Unlike taming, decoder and discriminator step at the same time, from the same pictures, by one optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot.tokenizers.codebook import Codebook, VQConfig, usage
from toto_robot.tokenizers.discriminator import Discriminator, adaptive_weight, fooling_loss, hinge_loss
from toto_robot.tokenizers.perceptual import Perceptual
from toto_robot.tokenizers.vqgan import VQGAN, VQGANConfig

_RESERVOIR_PER_CODE = 4  # latents for the k-means start, at least


@dataclass(frozen=True, kw_only=True)
class VQGANLoss:
    """Weights of the terms beside the pixels'; the published ones, but for the start."""

    perceptual: float = 1.0
    adversarial: float = 0.8
    adversarial_from: int = 250_001  # first step of the discriminator


class VQGANAutoencoder(nn.Module):
    """A VQGAN, its codebook while it is learned, and the discriminator, if any: everything that a step changes.

    As a dVAE by VQ, train it as a plain autoencoder first, then quantised.
    """

    def __init__(
        self,
        config: VQGANConfig,
        *,
        discriminator: Discriminator | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        reservoir = max(VQConfig.reservoir, _RESERVOIR_PER_CODE * config.vocab)
        self.vq = VQConfig(code_width=config.code_width, reservoir=reservoir)
        self.vqgan = VQGAN(config, generator=generator)
        self.vqgan.quantize.requires_grad_(False)  # filled from the codebook by `fold`
        self.codebook = Codebook(config.vocab, self.vq)
        self.discriminator = discriminator

    def forward(
        self, pixels: Tensor, *, quantise: bool, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruct pixels in [-1, 1] (B, 3, h, w); return the pictures, the commitment, and detached scalars.

        In training mode the codebook moves too; `generator` (CPU) draws the k-means start and the revived codes.
        """
        z = self.vqgan.latents(pixels)
        commitment, report = z.new_zeros(()), {}
        if quantise:
            z, codes, commitment = self.codebook(z, generator)
            report = {"commitment": commitment.detach(), **usage(codes, self.config.vocab)}
        elif self.training:
            self.codebook.remember(z.detach())
        pictures = self.vqgan.decoder(self.vqgan.post_quant_conv(z)).float()
        mse = F.mse_loss(pictures.detach().clamp(-1, 1), pixels) / 4  # of values in [0, 1]
        return pictures, commitment, {**report, "psnr_db": -10 * torch.log10(mse)}

    def judge(
        self,
        pixels: Tensor,
        pictures: Tensor,
        commitment: Tensor,
        *,
        weights: VQGANLoss,
        perceptual: Perceptual | None,
        adversarial: bool,
    ) -> dict[str, Tensor]:
        """Return `loss`, to be minimised by all parameters at once, and the terms it is made of, detached.

        `adversarial` adds the discriminator's loss and the decoder's share in it; only while gradients are recorded.
        """
        terms = {"l1": F.l1_loss(pictures, pixels)}
        reconstruction = terms["l1"]
        if perceptual is not None:
            terms["perceptual"] = perceptual(pictures, pixels).mean()
            reconstruction = reconstruction + weights.perceptual * terms["perceptual"]
        loss = reconstruction + self.vq.commitment * reconstruction.detach() * commitment
        if adversarial:
            assert self.discriminator is not None
            terms["fooling"] = fooling_loss(self.discriminator, pictures)
            balance = adaptive_weight(reconstruction, terms["fooling"], self.vqgan.decoder.conv_out.weight)
            true, decoded = self.discriminator(pixels), self.discriminator(pictures.detach())
            terms |= {"discriminator": hinge_loss(true, decoded), "adversarial_weight": weights.adversarial * balance}
            loss = loss + terms["adversarial_weight"] * terms["fooling"] + terms["discriminator"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    @torch.no_grad()
    def fold(self) -> VQGAN:
        """Return the tokenizer, with the codebook as its table; ValueError before the codebook has started."""
        if not self.codebook.started:
            raise ValueError("the codebook has not started: train with quantise=True before folding")
        folded = VQGAN(self.config).to(self.codebook.codes.device)
        table = {"quantize.embedding.weight": self.codebook.codes}
        folded.load_state_dict({**self.vqgan.state_dict(), **table})
        return folded.eval()
