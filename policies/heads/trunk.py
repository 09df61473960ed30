"""How do tokens of each camera and proprioception become one vector? Pooling per camera, then blocks of an MLP."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.heads.base import InputSizes
from policies.observation import Inputs
from toto_robot.models.pooling import AttentionPooling

POOLINGS = ("both", "values", "coordinates", "mean")
ACTIVATIONS = ("gelu", "selu")


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Sizes of the trunk: pooling, and an MLP."""

    pooling: str = "both"  # of attention its values (what is there), coordinates (where it looks) or both; or mean
    queries: int = 4  # learned queries of the attention pooling, each camera
    attention_heads: int = 4  # heads of the attention pooling
    query_init: float = 1.0  # standard deviation of the first queries
    position_init: float = 0.5  # standard deviation of the first positions; tokens are normed to 1
    camera_width: int = 256  # features that each camera contributes
    proprio_width: int = 256  # features that the proprioception contributes
    hidden: tuple[int, ...] = (512, 512)  # widths of the MLP
    activation: str = "gelu"  # gelu after a layer norm, or selu alone (PixMC's MLP)

    def __post_init__(self) -> None:
        for name in ("queries", "attention_heads", "camera_width", "proprio_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected trunk.{name} of at least 1, got {getattr(self, name)}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"expected trunk.pooling {', '.join(POOLINGS)}, got {self.pooling!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"expected trunk.activation {' or '.join(ACTIVATIONS)}, got {self.activation!r}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"expected at least one width in trunk.hidden, such as [256,256], got {self.hidden}")


class Trunk(nn.Module):
    """Pooling with learned positions per camera, a proprioception MLP, and an MLP over both.

    Beside the pooled values each attention map gives its mean place in the picture (spatial softmax, Finn et al. 2016):
    two numbers that say where something is generalise from few demonstrations where hundreds of values overfit.
    Frames of the history are pooled by the same weights and stand side by side. Without cameras it is a trunk of
    proprioception alone.
    """

    grid: Tensor

    def __init__(self, config: TrunkConfig, sizes: InputSizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        attends = config.pooling != "mean"
        self.pools = nn.ModuleDict({name: _pool(config, sizes) for name in sizes.cameras if attends})
        places = token_grid(sizes.tokens_per_frame) if _looks(config) else torch.zeros(0, 2)
        self.register_buffer("grid", places, persistent=False)
        self.projections = nn.ModuleDict(
            {
                name: block(_pooled_width(config, sizes.token_width), config.camera_width, config.activation)
                for name in sizes.cameras
            }
        )
        self.proprio = block(sizes.proprio_dim, config.proprio_width, config.activation)
        widths = [sizes.history * (len(sizes.cameras) * config.camera_width + config.proprio_width), *config.hidden]
        self.mlp = nn.Sequential(*(block(a, b, config.activation) for a, b in itertools.pairwise(widths)))
        self.width = widths[-1]

    def forward(self, inputs: Inputs, feature_dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Return (B, width).

        `feature_dropout` zeroes that part of the camera and proprioception features, drawn from `generator`: the masks
        are an argument, so that a resumed training draws the same ones.
        """
        features = self.features(inputs)
        if feature_dropout > 0:
            kept = torch.rand(features.shape, generator=generator) >= feature_dropout
            features = features * kept.to(features) / (1 - feature_dropout)
        out: Tensor = self.mlp(features)
        return out

    def features(self, inputs: Inputs) -> Tensor:
        """Return what the MLP is given: the features of every camera and of the proprioception, (B, F)."""
        frames = flatten_history(inputs, self.sizes.history)  # (B * Ho, ...)
        features = torch.cat([*self.camera_features(frames), self.proprio(frames.proprio)], dim=-1)
        return features.view(-1, self.sizes.history * features.shape[-1])

    def camera_features(self, frames: Inputs) -> list[Tensor]:
        """Return the features of every camera, (B, camera_width) each, of single frames (without a history's axis)."""
        return [project(self._pooled(name, frames.tokens[name])) for name, project in self.projections.items()]

    def _pooled(self, camera: str, tokens: Tensor) -> Tensor:
        if self.config.pooling == "mean":
            return F.rms_norm(tokens, tokens.shape[-1:]).mean(dim=1)
        values, attention = pool_tokens(self.pools[camera], tokens)  # type: ignore[arg-type]
        if self.config.pooling == "values":
            return values
        coordinates = (attention @ self.grid).flatten(1)  # (B, queries * H * 2)
        return coordinates if self.config.pooling == "coordinates" else torch.cat([values, coordinates], dim=1)


def block(width_in: int, width_out: int, activation: str = "gelu") -> nn.Sequential:
    """Linear, norm, GELU: the norm keeps one learning rate good for encoders of any feature scale. Or linear, SELU."""
    if activation == "selu":
        return nn.Sequential(nn.Linear(width_in, width_out), nn.SELU())
    return nn.Sequential(nn.Linear(width_in, width_out), nn.LayerNorm(width_out), nn.GELU())


def flatten_history(inputs: Inputs, history: int) -> Inputs:
    """Join the batch and history axes: (B, Ho, Dp) and (B, Ho, P, D) to (B * Ho, Dp) and (B * Ho, P, D)."""
    if history == 1:
        return inputs
    return Inputs(inputs.proprio.flatten(0, 1), {name: tokens.flatten(0, 1) for name, tokens in inputs.tokens.items()})


def token_grid(tokens_per_frame: int) -> Tensor:
    """Return the place of each token of a square frame, (P, 2): row and column from -1 to 1."""
    side = math.isqrt(tokens_per_frame)
    assert side * side == tokens_per_frame, f"{tokens_per_frame} tokens are no square frame"
    line = torch.linspace(-1, 1, side)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(tokens_per_frame, 2)


def pool_tokens(pool: AttentionPooling, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return `pool(tokens)` (B, queries * D) and its attention (B, queries * H, P), faster than the pool itself.

    The queries do not depend on the input and the tokens are not trained, so everything linear moves off the tokens,
    onto the few queries or behind the softmax: q (W x) = (W^T q) x, sum a (W x) = W (sum a x), and the same for the
    norm's scale and the positions.
    What is left on the tokens costs P D queries heads, not P D^2. Memory is what limits it: nothing but the pooled
    tokens is as wide as D, and heads stand first because the values' matrices differ by head.
    """
    H, D, Q = pool.heads, pool.width, pool.queries
    key, value = pool.key_value.weight.view(2, H, D // H, D)
    query = pool.query.view(Q, H, D // H)
    looks = torch.einsum("qhk,hkd->hqd", query, key).flatten(0, 1) / math.sqrt(D // H)  # (H * queries, D)
    eps = pool.norm.eps if pool.norm.eps is not None else torch.finfo(tokens.dtype).eps
    shrink = (torch.linalg.vector_norm(tokens, dim=-1).square() / D + eps).rsqrt()[:, None]  # (B, 1, P): RMSNorm
    scores = shrink * ((looks * pool.norm.weight) @ tokens.transpose(1, 2))
    if pool.position is not None:
        scores = scores + looks @ pool.position.T
    attention = scores.softmax(dim=-1)  # (B, H * queries, P)
    values = _head_first(((attention * shrink) @ tokens), H) @ (value * pool.norm.weight).mT  # (H, B * queries, K)
    if pool.position is not None:
        values = values + _head_first(attention, H) @ (pool.position @ value.mT)
    values = values.unflatten(1, (-1, Q)).permute(1, 2, 0, 3).flatten(1)
    return values, attention.unflatten(1, (H, Q)).transpose(1, 2).flatten(1, 2)


def _head_first(pooled: Tensor, heads: int) -> Tensor:
    """(B, H * queries, N) to (H, B * queries, N)."""
    return pooled.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)


def _looks(config: TrunkConfig) -> bool:
    return config.pooling in ("both", "coordinates")


def _pooled_width(config: TrunkConfig, token_width: int) -> int:
    coordinates = 2 * config.queries * config.attention_heads
    values = config.queries * token_width
    return {"mean": token_width, "values": values, "coordinates": coordinates, "both": values + coordinates}[
        config.pooling
    ]


def _pool(config: TrunkConfig, sizes: InputSizes) -> AttentionPooling:
    pool = AttentionPooling(sizes.token_width, config.queries, config.attention_heads, sizes.tokens_per_frame)
    # The module's own N(0, 0.02) attends evenly everywhere, and stays there for hundreds of steps: a saddle.
    nn.init.normal_(pool.query, std=config.query_init)
    assert pool.position is not None
    nn.init.normal_(pool.position, std=config.position_init)
    return pool
