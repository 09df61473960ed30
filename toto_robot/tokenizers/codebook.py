"""How does a codebook follow the latents that it quantises, without collapsing at small budgets?

It starts by k-means on a reservoir of recent latents, moves as moving averages of the latents that each code got
(VQ-EMA, arXiv 1711.00937 appendix A), and moves codes that nothing falls on to where latents are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 16_384  # latents compared with the codebook at a time: 64 MB of distances at 1024 codes


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


class Codebook(nn.Module):
    """V codes of width D, the averages behind them, and recent latents; everything is in `state_dict()`.

    First call `remember` on the latents of a plain autoencoder; the first call in training mode starts the codes.
    """

    codes: Tensor
    use: Tensor
    total: Tensor
    reservoir: Tensor
    seen: Tensor
    started: Tensor

    def __init__(self, vocab: int, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        width = config.code_width
        self.register_buffer("codes", torch.zeros(vocab, width))  # (V, D)
        self.register_buffer("use", torch.zeros(vocab))  # moving average of latents a code got
        self.register_buffer("total", torch.zeros(vocab, width))  # moving average of their sum
        self.register_buffer("reservoir", torch.zeros(config.reservoir, width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # latents that went through the reservoir
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))  # the codebook holds something

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise latents (B, D, h, w) float32: the nearest codes in their place, straight through; the codes' numbers
        (B * h * w,); and the commitment, the squared distance in units of the codebook's variance.

        In training mode the codebook moves too; `generator` (CPU) draws the k-means start and the revived codes.
        """
        rows = z.permute(0, 2, 3, 1)  # (B, h, w, D)
        latents = rows.flatten(0, 2)
        if self.training and not self.started:
            self._start(latents.detach(), generator)
        numbers = nearest(latents.detach(), self.codes)
        chosen = F.embedding(numbers, self.codes)
        # In units of the codebook's own variance, or the weight would mean something else at every scale of z.
        commitment = F.mse_loss(latents, chosen) / self.codes.var(dim=0).mean().clamp(min=1e-8)
        quantised = z + (chosen.view_as(rows).permute(0, 3, 1, 2) - z).detach()
        if self.training:
            self._move(latents.detach(), numbers, generator)
        return quantised, numbers, commitment

    @torch.no_grad()
    def remember(self, z: Tensor) -> None:
        """Write latents (B, D, h, w) round the reservoir."""
        self._remember(z.permute(0, 2, 3, 1).flatten(0, 2))

    def _remember(self, latents: Tensor) -> None:
        slots = (self.seen + torch.arange(len(latents), device=latents.device)) % len(self.reservoir)
        self.reservoir[slots[-len(self.reservoir) :]] = latents[-len(self.reservoir) :]
        self.seen += len(latents)

    @torch.no_grad()
    def _start(self, latents: Tensor, generator: torch.Generator | None) -> None:
        """Run k-means over the reservoir, this batch included."""
        self._remember(latents)
        points = self.reservoir[: min(int(self.seen), len(self.reservoir))]
        self.codes.copy_(kmeans(points, len(self.codes), self.config.kmeans_rounds, generator))
        mean_use = len(latents) / len(self.codes)
        self.use.fill_(mean_use)
        self.total.copy_(self.codes * mean_use)
        self.started.fill_(True)

    @torch.no_grad()
    def _move(self, latents: Tensor, numbers: Tensor, generator: torch.Generator | None) -> None:
        """Update the moving averages, and move dead codes onto latents of this batch."""
        keep = self.config.decay
        count, total = cluster_sums(latents, numbers, len(self.codes))
        self.use.mul_(keep).add_(count, alpha=1 - keep)
        self.total.mul_(keep).add_(total, alpha=1 - keep)
        mean_use = len(latents) / len(self.codes)
        dead = (self.use < self.config.dead_below * mean_use).nonzero()[:, 0]
        if len(dead) > 0:
            chosen = torch.randint(len(latents), (len(dead),), generator=generator).to(latents.device)
            self.use[dead] = mean_use
            self.total[dead] = latents[chosen] * mean_use
        self.codes.copy_(self.total / self.use[:, None])


def nearest(latents: Tensor, codes: Tensor) -> Tensor:
    """Return the number (N,) of the nearest code of (V, D) to each latent of (N, D)."""
    square = codes.square().sum(dim=1)  # |z - e|^2 = |z|^2 - (2 z.e - |e|^2)
    return torch.cat([(2 * part @ codes.T - square).argmax(dim=1) for part in latents.split(_ROWS)])


def cluster_sums(latents: Tensor, numbers: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Return how many latents each code got (V,) and their sum (V, D)."""
    count = torch.bincount(numbers, minlength=vocab).to(latents.dtype)
    return count, latents.new_zeros(vocab, latents.shape[1]).index_add_(0, numbers, latents)


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


def usage(numbers: Tensor, vocab: int) -> dict[str, Tensor]:
    """Return `perplexity` and `codes_used` of the codes of a batch, as float scalars."""
    share = torch.bincount(numbers.flatten(), minlength=vocab).float() / numbers.numel()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"perplexity": entropy.exp(), "codes_used": (share > 0).sum().float()}
