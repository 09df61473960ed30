"""How do tokens attend: rotary positions, the frame window, and the start token that always precedes it?

The rule (docs: streaming rule). A token of frame i sees the start token and the tokens of frames i-W+1..i up to itself.
Once the window has left frame 0, the start token slides with it: its key is rotated to the position just before the
window's first frame, so no relative position ever leaves what was trained. The start token's own hidden state depends
on nothing but itself, so its un-rotated key and value are constants and the slide is exact, here and in the caches.

What computes it: scaled_dot_product_attention, which on a GPU is flash attention where the mask is plainly causal. A
window over a whole sample is FlexAttention on CUDA, which skips blocks of keys out of the window; on CPUs it has no
backward pass, so there it is scaled_dot_product_attention under a boolean mask. A stream in bf16 on a CPU takes plain
matrix products a few heads at a time (`_attend_by_head`), 1.7 times as fast there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

_SCORES_AT_ONCE = 1 << 20  # 2 MiB of bf16: a second-level cache and its neighbour


class Rotation(NamedTuple):
    """Cosines and sines of rotary angles, float32, (..., L, K/2)."""

    cos: Tensor
    sin: Tensor


class Window(NamedTuple):
    """What decides positions and who sees whom."""

    tokens_per_frame: int  # P
    context_frames: int  # W
    head_dim: int  # K
    rope_base: float

    def rotation(self, positions: Tensor) -> Rotation:
        """Return the rotary cosines and sines at integer `positions` (...,), each (..., K / 2) float32.

        Angles are float64: at position 10^6 float32 angles are wrong by 0.06 rad, and a stream runs for hours.
        """
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=positions.device) / self.head_dim
        angles = positions.to(torch.float64).unsqueeze(-1) * self.rope_base**-exponent
        return Rotation(angles.cos().float(), angles.sin().float())

    def start_position(self, frame: Tensor) -> Tensor:
        """Return where the start token stands for a frame: just before the first frame of its window."""
        return (frame - self.context_frames + 1).clamp(min=0) * self.tokens_per_frame


class Layout(NamedTuple):
    """Where the tokens of one call stand and which keys they see.

    `start` rotates the copies of the start key; None when the start token is an ordinary token at position 0. `mask` is
    broadcastable to (B, H, L, keys), boolean, True = may attend, or of the keys' dtype (a ring's) and added to scores;
    or it is FlexAttention's; None with `causal` for the plain causal case.
    """

    rotation: Rotation
    start: Rotation | None
    mask: Tensor | BlockMask | None
    causal: bool


class KeyValueCache(Protocol):
    """What the attention of a block needs of a cache."""

    def extend(self, layer: int, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Take a block's new un-rotated keys and values (B, H, L, K); return all rotated ones to attend to."""


def rotate(x: Tensor, at: Rotation) -> Tensor:
    """Rotate queries or keys (B, H, L, K): feature j pairs with j + K/2, as LLaMA does in transformers."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * at.cos - second * at.sin, second * at.cos + first * at.sin], dim=-1)
    return turned.to(x.dtype)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the tables are made once, outside of what is compiled
@functools.lru_cache(maxsize=4)
def sequence_layout(length: int, window: Window, device: torch.device, *, blocks: bool = False) -> Layout:
    """Lay out [start] + visual tokens from frame 0 on, for one whole pass over `length` ids.

    Up to `context_frames` frames this is plain causal attention (no mask); beyond, the start key is copied once for
    every place it slides to, and a mask, in `blocks` for FlexAttention or boolean, lets each frame see its own copy and
    its window.
    """
    with torch.inference_mode(False):  # it may be used in training later
        positions = window.rotation(torch.arange(length, device=device))
        copies = 1 + _frames(length, window) - window.context_frames
        if copies <= 1:
            return Layout(positions, None, None, causal=True)
        sees, keys = _window_rule(copies, window), copies + length - 1
        mask: Tensor | BlockMask
        if blocks:
            mask = create_block_mask(sees, None, None, length, keys, device=device)
        else:
            query, key = torch.arange(length, device=device)[:, None], torch.arange(keys, device=device)
            mask = sees(key, key, query, key)
        start = window.rotation(torch.arange(copies, device=device) * window.tokens_per_frame)
        return Layout(positions, start, mask, causal=False)


def _frames(length: int, window: Window) -> int:
    return -(-(length - 1) // window.tokens_per_frame)


def _window_rule(copies: int, window: Window) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return who sees whom: of (batch, head, query, key), of which the first two do not matter.

    Queries are [start | visual tokens], keys [copies of the start | visual tokens]: copy 0 serves the start itself and
    frames 0..W-1, copy c the frame W-1+c.
    """
    P, W = window.tokens_per_frame, window.context_frames

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at, of = query - 1, key - copies  # indices among the visual tokens; below 0: start, copies
        first = torch.div(at, P, rounding_mode="floor") - W + 1  # frame of the window
        own_copy = key == first.clamp(min=0)
        in_window = (of <= at) & (torch.div(of, P, rounding_mode="floor") >= first)
        return torch.where(key < copies, own_copy, in_window)

    return sees


@functools.cache
def _flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)  # type: ignore[return-value]  # uncompiled it holds all scores


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None) -> Tensor:
    """Mix values by attention: q (B, H, L, K), k and v (B, H, keys, K) in the layout's order; return (B, H, L, K)."""
    if isinstance(layout.mask, BlockMask):
        flex: Any = flex_attention if torch.compiler.is_compiling() else _flex_attention()
        mixed: Tensor = flex(q, k, v, block_mask=layout.mask, scale=scale)
        return mixed
    mask = layout.mask
    if mask is not None and mask.dtype == q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return _attend_by_head(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=layout.causal, scale=scale)


def _attend_by_head(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attend as `attend` under an additive mask (B, 1, L, keys), as many heads at a time as keep scores in the cache.

    torch's kernel for few queries and many bf16 keys reaches less than half of what its matrix products do on a CPU.
    Scores are rounded to bf16 here: 0.4 % from float32 attention on random inputs, that kernel 0.2 %.
    """
    B, H, L, _ = q.shape
    at_once = max(1, _SCORES_AT_ONCE // (L * k.shape[2]))
    mixed = torch.empty_like(q)
    for row in range(B):
        for h in range(0, H, at_once):
            heads = slice(h, h + at_once)
            scores = torch.baddbmm(mask[row], q[row, heads], k[row, heads].transpose(1, 2), alpha=scale)
            torch.bmm(scores.softmax(dim=-1), v[row, heads], out=mixed[row, heads])
    return mixed


def sequence_keys(k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Rotate the keys of a whole pass and put the start token's sliding copies in front."""
    if layout.start is None:
        return rotate(k, layout.rotation), v
    copies = layout.start.cos.shape[0]
    start_k = rotate(k[:, :, :1].expand(-1, -1, copies, -1), layout.start)
    after = Rotation(layout.rotation.cos[1:], layout.rotation.sin[1:])
    keys = torch.cat([start_k, rotate(k[:, :, 1:], after)], dim=2)
    return keys, torch.cat([v[:, :, :1].expand(-1, -1, copies, -1), v[:, :, 1:]], dim=2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection and no bias; rows of `qkv` are all queries, keys, values.

    `scale` multiplies q.k; None is 1 / sqrt(K).
    """

    def __init__(
        self, width: int, heads: int, device: torch.device | str | None = None, scale: float | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.qkv = nn.utils.skip_init(nn.Linear, width, 3 * width, bias=False, device=device or "cpu")
        self.out = nn.utils.skip_init(nn.Linear, width, width, bias=False, device=device or "cpu")

    def forward(self, x: Tensor, layout: Layout, layer: int, cache: KeyValueCache | None) -> Tensor:
        """Attend over x (B, L, D) and whatever the cache remembers of earlier calls."""
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, H, L, K)
        q = rotate(q, layout.rotation)
        k, v = sequence_keys(k, v, layout) if cache is None else cache.extend(layer, k, v, layout)
        if v.device.type == "cpu" and cache is None:
            v = v.contiguous()  # torch's kernel is 4 % faster for it, forward and backward together
        mixed = attend(q, k, v, layout, self.scale)
        return self.out(mixed.transpose(1, 2).reshape(B, L, D))
