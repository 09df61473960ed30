"""How is a dVAE of ours trained, when Gumbel-softmax collapses at this size (facts/proto.md)?

By vector quantisation with a codebook kept as moving averages (VQ-EMA), on 16-wide projections of the encoder's trunk.
The trained model folds exactly into the OpenAI layout: with projection z = W x + b the nearest of the codes e is the
argmax of 2 e.z - |e|^2, which is one 1x1 conv of x; and the decoder's first conv of a one-hot code is its projection of
e. So there is one path at inference, `DVAE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """How the codebook is learned."""

    code_width: int = 16  # width of the space the codes live in
    decay: float = 0.97  # of the moving averages
    commitment: float = 0.25  # weight of the encoder's distance to its code, in units of the codebook's variance
    dead_below: float = 0.01  # a code used less than this share of the mean use is moved onto a latent of the batch
    reservoir: int = 16_384  # recent latents kept for the k-means start
    kmeans_rounds: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1 or not 0 <= self.dead_below < 1 or self.commitment < 0:
            raise ValueError(f"expected decay in (0, 1), dead_below in [0, 1), commitment >= 0, got {self}")
        if min(self.code_width, self.reservoir, self.kmeans_rounds) < 1:
            raise ValueError(f"code_width, reservoir and kmeans_rounds must be at least 1, got {self}")


class VQAutoencoder(nn.Module):
    """Encoder trunk, codebook, decoder.

    Train it in two phases: first `quantise=False`, a plain autoencoder that fills the reservoir (20 % of the steps),
    then `quantise=True`; the first call of the second phase starts the codebook by k-means. Everything it learns is in
    `state_dict()`, and a step is a function of the state, the images and the generator.
    """

    codebook: Tensor
    use: Tensor
    total: Tensor
    reservoir: Tensor
    seen: Tensor
    started: Tensor

    def __init__(
        self, config: DVAEConfig, vq: VQConfig | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.vq = config, vq or VQConfig()
        width = self.vq.code_width
        self.encoder = build_encoder(config, width)
        self.decoder = Decoder(config.hidden, config.blocks_per_group, width, config.decoder_init)
        init_convs(self, generator)
        open_residual_paths(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("codebook", torch.zeros(config.vocab, width))  # (V, 16)
        self.register_buffer("use", torch.zeros(config.vocab))  # moving average of latents a code got
        self.register_buffer("total", torch.zeros(config.vocab, width))  # moving average of their sum
        self.register_buffer("reservoir", torch.zeros(self.vq.reservoir, width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # latents that went through the reservoir
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))  # the codebook holds something

    def forward(self, images: Tensor, *, quantise: bool, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Reconstruct float images (B, 3, h, w) in [0, 1]; return scalars: loss, mse, psnr_db and, quantised, more.

        `loss` is to be minimised; the others are detached: `commitment`, `perplexity` and `codes_used` of the batch. In
        training mode the codebook moves too. `generator` (CPU) draws the k-means start and the revived codes.
        """
        z = self.encoder(map_pixels(images))  # (B, 16, h / 8, w / 8) float32
        latents = z.permute(0, 2, 3, 1).flatten(0, 2)  # (N, 16)
        report: dict[str, Tensor] = {}
        commitment = z.new_zeros(())
        if quantise:
            codes = self._assign(latents, generator)
            codewords = F.embedding(codes, self.codebook)
            # In units of the codebook's own variance, or the weight would mean something else at every scale of z.
            commitment = F.mse_loss(latents, codewords) / self.codebook.var(dim=0).mean().clamp(min=1e-8)
            z = z + (codewords.view_as(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) - z).detach()  # straight through
            report |= {"commitment": commitment.detach(), **_usage(codes, self.config.vocab)}
            if self.training:
                self._move_codebook(latents.detach(), codes, generator)
        elif self.training:
            self._remember(latents.detach())
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
        return nearest(z.flatten(0, 2), self.codebook).view(z.shape[:3])

    @torch.no_grad()
    def fold(self) -> DVAE:
        """Return the same tokenizer in the OpenAI layout; ValueError before the codebook has started."""
        if not self.started:
            raise ValueError("the codebook has not started: train with quantise=True before folding")
        folded = DVAE(self.config).to(self.codebook.device)
        with torch.no_grad():
            folded.load_state_dict({**folded.state_dict(), **self._folded_state()})
        return folded.eval()

    def _folded_state(self) -> dict[str, Tensor]:
        state = {k: v for k, v in self.state_dict().items() if k.startswith(("encoder.", "decoder."))}
        e = self.codebook.double()  # (V, 16); float64 so that folding itself moves no decision
        output, first = "encoder.blocks.output.conv.", "decoder.blocks.input."
        project, offset = state[output + "weight"].double()[:, :, 0, 0], state[output + "bias"].double()
        expand = state[first + "weight"].double()[:, :, 0, 0]  # (init, 16)
        state[output + "weight"] = (2 * e @ project)[:, :, None, None].float()
        state[output + "bias"] = (2 * e @ offset - e.square().sum(dim=1)).float()
        state[first + "weight"] = (expand @ e.T)[:, :, None, None].float()
        return state

    def _assign(self, latents: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.training and not self.started:
            self._start_codebook(latents.detach(), generator)
        return nearest(latents.detach(), self.codebook)

    @torch.no_grad()
    def _remember(self, latents: Tensor) -> None:
        """Write latents round the reservoir."""
        slots = (self.seen + torch.arange(len(latents), device=latents.device)) % len(self.reservoir)
        self.reservoir[slots[-len(self.reservoir) :]] = latents[-len(self.reservoir) :]
        self.seen += len(latents)

    @torch.no_grad()
    def _start_codebook(self, latents: Tensor, generator: torch.Generator | None) -> None:
        """Run k-means over the reservoir, this batch included."""
        self._remember(latents)
        points = self.reservoir[: min(int(self.seen), len(self.reservoir))]
        self.codebook.copy_(kmeans(points, self.config.vocab, self.vq.kmeans_rounds, generator))
        mean_use = len(latents) / self.config.vocab
        self.use.fill_(mean_use)
        self.total.copy_(self.codebook * mean_use)
        self.started.fill_(True)

    @torch.no_grad()
    def _move_codebook(self, latents: Tensor, codes: Tensor, generator: torch.Generator | None) -> None:
        """Update the moving averages, and move dead codes onto latents of this batch."""
        keep = self.vq.decay
        count, total = cluster_sums(latents, codes, len(self.codebook))
        self.use.mul_(keep).add_(count, alpha=1 - keep)
        self.total.mul_(keep).add_(total, alpha=1 - keep)
        mean_use = len(latents) / len(self.codebook)
        dead = (self.use < self.vq.dead_below * mean_use).nonzero()[:, 0]
        if len(dead) > 0:
            chosen = torch.randint(len(latents), (len(dead),), generator=generator).to(latents.device)
            self.use[dead] = mean_use
            self.total[dead] = latents[chosen] * mean_use
        self.codebook.copy_(self.total / self.use[:, None])


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


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the index (N,) of the nearest code of (V, D) to each latent of (N, D)."""
    return (2 * latents @ codebook.T - codebook.square().sum(dim=1)).argmax(dim=1)


def cluster_sums(latents: Tensor, codes: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Return how many latents each code got (V,) and their sum (V, D)."""
    count = torch.bincount(codes, minlength=vocab).to(latents.dtype)
    return count, latents.new_zeros(vocab, latents.shape[1]).index_add_(0, codes, latents)


def kmeans(points: Tensor, clusters: int, rounds: int, generator: torch.Generator | None) -> Tensor:
    """Return centres (clusters, D) of points (N, D) by Lloyd's rounds; an empty cluster takes a random point."""
    order = torch.randint(len(points), (clusters,), generator=generator)
    if clusters <= len(points):
        order = torch.randperm(len(points), generator=generator)[:clusters]
    centres = points[order.to(points.device)].clone()
    for _ in range(rounds):
        count, total = cluster_sums(points, nearest(points, centres), clusters)
        spare = points[torch.randint(len(points), (clusters,), generator=generator).to(points.device)]
        centres = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), spare)
    return centres


def _usage(codes: Tensor, vocab: int) -> dict[str, Tensor]:
    share = torch.bincount(codes, minlength=vocab).float() / codes.numel()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"perplexity": entropy.exp(), "codes_used": (share > 0).sum().float()}
