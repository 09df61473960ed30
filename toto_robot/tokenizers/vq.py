"""How is a dVAE of ours trained, when Gumbel-softmax collapses at this size (facts/proto.md)?

By vector quantisation with a codebook kept as moving averages (`codebook.py`), on 16-wide projections of the encoder's
trunk.
The trained model folds exactly into the OpenAI layout: with projection z = W x + b the nearest of the codes e is the
argmax of 2 e.z - |e|^2, which is one 1x1 conv of x; and the decoder's first conv of a one-hot code is its projection of
e. So there is one path at inference, `DVAE`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot.tokenizers.codebook import Codebook, VQConfig, nearest, usage
from toto_robot.tokenizers.dvae import (
    DVAE,
    Decoder,
    DVAEConfig,
    ResidualBlock,
    build_encoder,
    init_convs,
    map_pixels,
    unmap_pixels,
)


class VQAutoencoder(nn.Module):
    """Encoder trunk, codebook, decoder.

    Train it in two phases: first `quantise=False`, a plain autoencoder that fills the reservoir (20 % of the steps),
    then `quantise=True`; the first call of the second phase starts the codebook by k-means. Everything it learns is in
    `state_dict()`, and a step is a function of the state, the images and the generator.
    """

    def __init__(
        self, config: DVAEConfig, vq: VQConfig | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.vq = config, vq or VQConfig()
        width = self.vq.code_width
        self.encoder = build_encoder(config, width)
        self.decoder = Decoder(*config.decoder_sizes, width, config.decoder_init)
        init_convs(self, generator)
        open_residual_paths(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.codebook = Codebook(config.vocab, self.vq)

    def forward(self, images: Tensor, *, quantise: bool, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Reconstruct float images (B, 3, h, w) in [0, 1]; return scalars: loss, mse, psnr_db and, quantised, more.

        `loss` is to be minimised; the others are detached: `commitment`, `perplexity` and `codes_used` of the batch. In
        training mode the codebook moves too. `generator` (CPU) draws the k-means start and the revived codes.
        """
        z = self.encoder(map_pixels(images))  # (B, 16, h / 8, w / 8) float32
        report: dict[str, Tensor] = {}
        commitment = z.new_zeros(())
        if quantise:
            z, codes, commitment = self.codebook(z, generator)
            report |= {"commitment": commitment.detach(), **usage(codes, self.config.vocab)}
        elif self.training:
            self.codebook.remember(z.detach())
        pictures = self.decoder(z)[:, :3].float().sigmoid()
        mse = F.mse_loss(unmap_linear(pictures), images)
        psnr_db = -10 * torch.log10(F.mse_loss(unmap_pixels(pictures.detach()), images))
        # The commitment is in units of the present error, or it would outweigh the picture as the picture gets good.
        loss = mse + self.vq.commitment * mse.detach() * commitment
        report |= {"loss": loss, "mse": mse.detach(), "psnr_db": psnr_db}
        return report

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, h, w) in [0, 1] to the nearest codes (B, h / 8, w / 8)."""
        z = self.encoder(map_pixels(images)).permute(0, 2, 3, 1)
        return nearest(z.flatten(0, 2), self.codebook.codes).view(z.shape[:3])

    @torch.no_grad()
    def fold(self) -> DVAE:
        """Return the same tokenizer in the OpenAI layout; ValueError before the codebook has started."""
        if not self.codebook.started:
            raise ValueError("the codebook has not started: train with quantise=True before folding")
        folded = DVAE(self.config).to(self.codebook.codes.device)
        with torch.no_grad():
            folded.load_state_dict({**folded.state_dict(), **self._folded_state()})
        return folded.eval()

    def _folded_state(self) -> dict[str, Tensor]:
        state = {k: v for k, v in self.state_dict().items() if k.startswith(("encoder.", "decoder."))}
        e = self.codebook.codes.double()  # (V, 16); float64 so that folding itself moves no decision
        output, first = "encoder.blocks.output.conv.", "decoder.blocks.input."
        project, offset = state[output + "weight"].double()[:, :, 0, 0], state[output + "bias"].double()
        expand = state[first + "weight"].double()[:, :, 0, 0]  # (init, 16)
        state[output + "weight"] = (2 * e @ project)[:, :, None, None].float()
        state[output + "bias"] = (2 * e @ offset - e.square().sum(dim=1)).float()
        state[first + "weight"] = (expand @ e.T)[:, :, None, None].float()
        return state


@torch.no_grad()
def open_residual_paths(module: nn.Module) -> None:
    """Scale the last conv of every residual path so that the path starts at half strength, whatever the block's gain.

    OpenAI's gain of 1 / blocks^2 starts them nearly closed, for three million steps; we have a thousand. Measured after
    500 steps of 16 robot frames (hidden 32, one seed): cube pixels 13.7 -> 15.5 dB, whole front camera 21.4 -> 21.7 dB.
    """
    for block in module.modules():
        if isinstance(block, ResidualBlock):
            last = block.res_path.conv_4
            assert isinstance(last, nn.Conv2d)
            last.weight.mul_(0.5 / block.gain)


def unmap_linear(mapped: Tensor) -> Tensor:
    """Undo `map_pixels` without clipping, which would stop the gradient."""
    return (mapped - 0.1) / 0.8
