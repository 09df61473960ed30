"""What is Toto: its configuration, its block, its one forward pass?

A LLaMA-style decoder over video tokens (arXiv 2501.05453): pre-norm RMSNorm, SwiGLU, rotary positions over the 1-D
raster index, no bias, untied head. A sample is [start] + T frames of P visual ids, and predicts itself shifted by one,
the end id last (facts: start 1 for video and 3 for images, end 2; that visual ids are shifted by 4 is our reading, id 0
stays free). The same forward trains, fills a cache and streams; what it remembers is the explicit `cache` argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot.models import mup
from toto_robot.models.attention import Layout, SelfAttention, Window, sequence_layout
from toto_robot.models.kv_cache import FrameRing, TokenCache
from toto_robot.models.loss import LOSS_CHUNK_TOKENS, TokenLosses, mean_cross_entropy, token_losses
from toto_robot.models.recompute import run_block

Cache = FrameRing | TokenCache


@dataclass(frozen=True, kw_only=True)
class TotoConfig:
    """Sizes and ids of a Toto model."""

    name: str  # preset or a name of your own
    visual_vocab: int  # codes of the tokenizer
    width: int  # D
    layers: int
    heads: int  # H
    ffn_width: int  # hidden width of the SwiGLU
    tokens_per_frame: int  # P, raster order
    frames: int  # frames in a training sample
    context_frames: int  # W: a token sees its own frame and the W - 1 before it
    image_px: int  # side of the square frame given to the tokenizer
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    start_video_id: int = 1
    end_id: int = 2
    start_image_id: int = 3
    first_visual_id: int = 4  # code c is the id c + 4
    mup_base_width: int | None = None  # muP: width whose learning rate and deviations hold (`mup.py`); null: standard
    mup_base_head_dim: int | None = None  # muP: head dimension of that base

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even number (rotary pairs)")
        base = (self.mup_base_width, self.mup_base_head_dim)
        if base != (None, None) and not all(size is not None and size > 0 for size in base):
            raise ValueError(
                "muP needs mup_base_width and mup_base_head_dim, both above 0 (`mup.with_mup` sets them), got "
                f"{base[0]} and {base[1]}"
            )
        if not 1 <= self.context_frames <= self.frames:
            raise ValueError(f"context_frames must lie in 1..frames ({self.frames}), got {self.context_frames}")
        ids = {self.start_video_id, self.end_id, self.start_image_id}
        if len(ids) != 3 or max(ids) >= self.first_visual_id:
            raise ValueError(f"start and end ids must differ and lie below first_visual_id ({self.first_visual_id})")

    @property
    def vocab_size(self) -> int:
        """Number of ids: special and visual."""
        return self.visual_vocab + self.first_visual_id

    @property
    def window(self) -> Window:
        """What attention needs to know of this configuration."""
        return Window(self.tokens_per_frame, self.context_frames, self.width // self.heads, self.rope_base)

    def check_context(self, frames: int) -> None:
        """Raise ValueError unless a stream may look back on `frames` frames."""
        if not 1 <= frames <= self.context_frames:
            raise ValueError(f"context_frames must lie in 1..{self.context_frames} (trained), got {frames}")

    def pack(self, codes: Tensor, kind: str | Sequence[str] = "video") -> tuple[Tensor, Tensor]:
        """Turn codes (B, T, P) into (inputs, targets), each (B, 1 + T * P) int64.

        `kind` is "video" or "image", of all or of each row.
        """
        if codes.ndim != 3 or codes.shape[-1] != self.tokens_per_frame:
            raise ValueError(f"expected codes (B, T, {self.tokens_per_frame}), got {tuple(codes.shape)}")
        starts = {"video": self.start_video_id, "image": self.start_image_id}
        kinds = [kind] * len(codes) if isinstance(kind, str) else list(kind)
        if unknown := set(kinds) - set(starts):
            raise ValueError(f'kind must be "video" or "image", got {sorted(unknown)[0]!r}')
        ids = codes.flatten(1).long() + self.first_visual_id
        inputs = torch.cat([ids.new_tensor([starts[one] for one in kinds]).unsqueeze(1), ids], dim=1)
        return inputs, self.targets(inputs)

    def targets(self, inputs: Tensor) -> Tensor:
        """Return what follows each id of inputs (B, L): the next one, and the end id last."""
        return torch.cat([inputs[:, 1:], inputs.new_full((len(inputs), 1), self.end_id)], dim=1)


class TotoOutput(NamedTuple):
    """Logits (B, L, V) or None, features by layer, each (B, L, D); where targets were given, what they cost."""

    logits: Tensor | None
    features: dict[int, Tensor]
    loss: Tensor | None = None  # mean over all targets, a scalar that can be differentiated
    per_token: TokenLosses | None = None  # (B, L), without gradients


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, and a fixed one where muP asks for it."""

    def __init__(
        self, width: int, eps: float, device: torch.device | str | None = None, multiplier: float = 1.0
    ) -> None:
        super().__init__()
        self.eps = eps
        self.multiplier = multiplier
        self.weight = nn.Parameter(torch.ones(width, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        normal = F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return normal if self.multiplier == 1.0 else normal * self.multiplier


class SwiGLU(nn.Module):
    """Gated feed-forward; rows of `gate_up` are the whole gate, then the whole up projection."""

    def __init__(self, width: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.gate_up = nn.utils.skip_init(nn.Linear, width, 2 * hidden, bias=False, device=device or "cpu")
        self.down = nn.utils.skip_init(nn.Linear, hidden, width, bias=False, device=device or "cpu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: TotoConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps, device)
        self.attention = SelfAttention(config.width, config.heads, device, mup.attention_scale(config))
        self.ffn_norm = RMSNorm(config.width, config.norm_eps, device)
        self.ffn = SwiGLU(config.width, config.ffn_width, device)

    def forward(self, x: Tensor, layout: Layout, layer: int, cache: Cache | None) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        x = x + self.attention(self.attention_norm(x), layout, layer, cache)
        return x + self.ffn(self.ffn_norm(x))


class Toto(nn.Module):
    """The autoregressive video transformer."""

    def __init__(
        self, config: TotoConfig, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = "none"  # what is kept for the backward pass (`recompute.py`); same results
        self.embed = nn.utils.skip_init(nn.Embedding, config.vocab_size, config.width, device=device or "cpu")
        self.blocks = nn.ModuleList(Block(config, device) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps, device, mup.output_multiplier(config))
        self.head = nn.utils.skip_init(nn.Linear, config.width, config.vocab_size, bias=False, device=device or "cpu")
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw N(0, 0.02), the projections onto the residual scaled by 1 / sqrt(2 * layers) (GPT-2); muP: `mup.py`."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            residual = name.endswith(("attention.out.weight", "ffn.down.weight"))
            std = 0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02
            std *= mup.deviation_scale(name, parameter, self.config)
            parameter.normal_(0.0, std, generator=generator)

    def forward(
        self,
        ids: Tensor,
        *,
        layers: Sequence[int] = (),
        logits: bool = True,
        cache: Cache | None = None,
        targets: Tensor | None = None,
        loss_chunk_tokens: int = LOSS_CHUNK_TOKENS,
        per_token: bool = False,
    ) -> TotoOutput:
        """Run ids (B, L) int64; return logits (B, L, V) and the features asked for.

        Without a cache `ids` is a whole sequence from its start id on. With a ring it is one frame of visual ids a
        call; with a token cache a prefix, then single ids. Layer l is the residual stream after block l, 0 the
        embedding. With `logits=False` the pass stops at the deepest layer asked for. With `targets` (B, L) it returns
        their mean cross-entropy, or with `per_token` everyone's, instead of logits, of which at most
        `loss_chunk_tokens` positions are there at once (`loss.py`). Raises ValueError for a layer out of range.
        """
        config = self.config
        if any(not 0 <= layer <= config.layers for layer in layers):
            raise ValueError(f"layers must lie in 0..{config.layers} (0 = embedding), got {tuple(layers)}")
        if cache is not None and torch.is_grad_enabled():
            raise ValueError("a cache is written in place: call the model under torch.no_grad()")
        deepest = config.layers if logits else max(layers, default=0)
        if cache is None:
            layout = sequence_layout(ids.shape[1], config.window, ids.device, blocks=ids.device.type == "cuda")
        else:
            layout = cache.layout(*ids.shape)
        x = self.embed(ids)
        features = {0: x} if 0 in layers else {}
        for layer, block in enumerate(self.blocks[:deepest]):
            x = run_block(self.activation_checkpointing, block, x, layout, layer, cache)
            if layer + 1 in layers:
                features[layer + 1] = x
        if isinstance(cache, FrameRing):
            cache.advance()
        elif cache is not None:
            cache.advance(ids.shape[1])
        if targets is not None:
            rows, weight = self.norm(x).flatten(0, 1), self.head.weight
            if per_token:
                found = token_losses(rows, weight, targets.flatten(), loss_chunk_tokens)
                return TotoOutput(None, features, per_token=TokenLosses(*(each.view_as(targets) for each in found)))
            return TotoOutput(None, features, mean_cross_entropy(rows, weight, targets.flatten(), loss_chunk_tokens))
        return TotoOutput(self.logits(x) if logits else None, features)

    def logits(self, x: Tensor) -> Tensor:
        """Turn the residual stream after the last block (B, L, D) into logits (B, L, V)."""
        return self.head(self.norm(x))

    def pack(self, codes: Tensor, kind: str | Sequence[str] = "video") -> tuple[Tensor, Tensor]:
        """See `TotoConfig.pack`."""
        return self.config.pack(codes, kind)

    @torch.no_grad()
    def ring(
        self, batch: int, *, layers: int | None = None, context_frames: int | None = None, fixed_shapes: bool = False
    ) -> FrameRing:
        """Make the memory of a stream of `batch` rows and put the start token in it.

        `layers`: how many blocks will run (default all). `context_frames`: window, default and at most what `config`
        says. `fixed_shapes` as in `FrameRing`. Call it under the same autocast as the steps.
        """
        config = self.config
        frames = config.context_frames if context_frames is None else context_frames
        config.check_context(frames)
        device = self.embed.weight.device
        window = config.window._replace(context_frames=frames)
        ring = FrameRing(batch, window, device, fixed_shapes=fixed_shapes)
        start = torch.tensor([[config.start_video_id]], device=device)
        self(start, layers=(config.layers if layers is None else layers,), logits=False, cache=ring)
        return ring

    def token_cache(self, max_length: int) -> TokenCache:
        """Make an empty cache for generating sequences of up to `max_length` ids, the start id included."""
        return TokenCache(max_length, self.config.window, self.embed.weight.device)
