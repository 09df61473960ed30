"""How do a frame's tokens and the proprioception become the next K actions? Pooling per camera, then an MLP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policies.observation import Inputs
from toto_robot.models.pooling import AttentionPooling

POOLINGS = ("both", "values", "coordinates")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Sizes of the pooled MLP head."""

    chunk_steps: int = 1  # actions predicted at once, K
    pooling: str = "both"  # what attention gives: values (what is there), coordinates (where it looks), or both
    queries: int = 4  # learned queries of the attention pooling, each camera
    attention_heads: int = 4  # heads of the attention pooling
    query_init: float = 1.0  # standard deviation of the first queries
    position_init: float = 0.5  # standard deviation of the first positions; tokens are normed to 1
    camera_width: int = 64  # features that each camera contributes
    proprio_width: int = 64  # features that the proprioception contributes
    hidden: tuple[int, ...] = (256, 256)  # widths of the trunk

    def __post_init__(self) -> None:
        for name in ("chunk_steps", "queries", "attention_heads", "camera_width", "proprio_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected head.{name} of at least 1, got {getattr(self, name)}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"expected head.pooling {', '.join(POOLINGS)}, got {self.pooling!r}")
        if not self.hidden:
            raise ValueError("expected at least one width in head.hidden, such as [256, 256]")


class PooledMLP(nn.Module):
    """Attention pooling with learned positions per camera, a proprioception MLP, a trunk, a chunk of K actions.

    Beside the pooled values each attention map gives its mean place in the picture (spatial softmax, Finn et al. 2016):
    two numbers that say where something is generalise from few demonstrations where hundreds of values overfit.
    The output is in normalised action units. Without cameras it is a policy of proprioception alone.
    """

    grid: Tensor

    def __init__(
        self,
        config: HeadConfig,
        *,
        cameras: Sequence[str],
        tokens_per_frame: int,
        token_width: int,
        proprio_dim: int,
        action_dim: int,
    ) -> None:
        super().__init__()
        self.config, self.proprio_dim, self.action_dim = config, proprio_dim, action_dim
        self.pools = nn.ModuleDict({name: _pool(config, tokens_per_frame, token_width) for name in cameras})
        self.register_buffer("grid", token_grid(tokens_per_frame), persistent=False)
        pooled = {"values": config.queries * token_width, "coordinates": 2 * config.queries * config.attention_heads}
        width = sum(count for kind, count in pooled.items() if config.pooling in (kind, "both"))
        self.projections = nn.ModuleDict({name: _block(width, config.camera_width) for name in cameras})
        self.proprio = _block(proprio_dim, config.proprio_width)
        widths = [len(self.pools) * config.camera_width + config.proprio_width, *config.hidden]
        self.trunk = nn.Sequential(*(_block(a, b) for a, b in itertools.pairwise(widths)))
        self.out = nn.Linear(widths[-1], config.chunk_steps * action_dim)

    def forward(self, inputs: Inputs, feature_dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Return normalised actions (B, K, A).

        `feature_dropout` zeroes that part of the camera and proprioception features, drawn from `generator`: the masks
        are an argument, so that a resumed training draws the same ones.
        """
        parts = [self.projections[name](self._pooled(name, inputs.tokens[name])) for name in self.pools]
        features = torch.cat([*parts, self.proprio(inputs.proprio)], dim=-1)
        if feature_dropout > 0:
            kept = torch.rand(features.shape, generator=generator) >= feature_dropout
            features = features * kept.to(features) / (1 - feature_dropout)
        chunk: Tensor = self.out(self.trunk(features))
        return chunk.view(-1, self.config.chunk_steps, self.action_dim)

    def _pooled(self, camera: str, tokens: Tensor) -> Tensor:
        values, attention = pool_tokens(self.pools[camera], tokens)  # type: ignore[arg-type]
        if self.config.pooling == "values":
            return values
        coordinates = (attention.transpose(1, 2) @ self.grid).flatten(1)  # (B, queries * H * 2)
        return coordinates if self.config.pooling == "coordinates" else torch.cat([values, coordinates], dim=1)


def token_grid(tokens_per_frame: int) -> Tensor:
    """Return the place of each token of a square frame, (P, 2): row and column from -1 to 1."""
    side = math.isqrt(tokens_per_frame)
    assert side * side == tokens_per_frame, f"{tokens_per_frame} tokens are no square frame"
    line = torch.linspace(-1, 1, side)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(tokens_per_frame, 2)


def pool_tokens(pool: AttentionPooling, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return `pool(tokens)` (B, queries * D) and its attention (B, P, queries * H), faster than the pool itself.

    The queries do not depend on the input and the tokens are not trained, so everything linear moves off the tokens,
    onto the few queries or behind the softmax: q (W x) = (W^T q) x, sum a (W x) = W (sum a x), and the same for the
    norm's scale and the positions.
    What is left on the tokens costs P D queries heads, not P D^2.
    """
    H, D = pool.heads, pool.width
    key, value = pool.key_value.weight.view(2, H, D // H, D)
    query = pool.query.view(pool.queries, H, D // H)
    looks = torch.einsum("qhk,hkd->qhd", query, key).flatten(0, 1) / math.sqrt(D // H)  # (queries * H, D)
    eps = pool.norm.eps if pool.norm.eps is not None else torch.finfo(tokens.dtype).eps
    shrink = (torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).square() / D + eps).rsqrt()  # (B, P, 1): RMSNorm
    scores = shrink * (tokens @ (looks * pool.norm.weight).T)
    if pool.position is not None:
        scores = scores + pool.position @ looks.T
    attention = scores.softmax(dim=1)  # (B, P, queries * H)
    seen = ((attention * shrink).transpose(1, 2) @ tokens) * pool.norm.weight
    if pool.position is not None:
        seen = seen + attention.transpose(1, 2) @ pool.position
    values = torch.einsum("bqhd,hkd->bqhk", seen.unflatten(1, (pool.queries, H)), value).flatten(1)
    return values, attention


def _pool(config: HeadConfig, tokens_per_frame: int, token_width: int) -> AttentionPooling:
    pool = AttentionPooling(token_width, config.queries, config.attention_heads, tokens_per_frame)
    # The module's own N(0, 0.02) attends evenly everywhere, and stays there for hundreds of steps: a saddle.
    nn.init.normal_(pool.query, std=config.query_init)
    assert pool.position is not None
    nn.init.normal_(pool.position, std=config.position_init)
    return pool


def _block(width_in: int, width_out: int) -> nn.Sequential:
    """Linear, norm, GELU: the norm keeps one learning rate good for encoders of any feature scale."""
    return nn.Sequential(nn.Linear(width_in, width_out), nn.LayerNorm(width_out), nn.GELU())
