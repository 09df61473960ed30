"""How does a model trained on clips of W frames run over a video that does not end?

Four policies, W = `context_frames`; each takes one frame a call, and rows restart independently at any call.

| policy | frame f sees | is exactly | frames run a frame |
|---|---|---|---|
| `ring` | frames f-W+1..f, whose keys were made when they were new | the full forward under the window rule | 1 |
| `reset` | its clip up to itself: W frames each, cut from the restart on | the causal model on that clip | 1 |
| `staggered` | the longer of two such clips, half a window apart | the causal model on that clip | 2 |
| `recompute` | the last W frames, all made anew | the causal model on those frames | W |

"The causal model" is plain causal attention over [start] + tokens of a clip from position 0 on: what published weights
were trained with, and what `export_llama` writes. The window rule is that of `attention.py`. Up to frame W after a
restart all four are the same function. Beyond, a ring's keys still carry what their frames saw, up to
(layers - 1) * (W - 1) + W frames back, so weights trained on clips drift there (`benchmarks/stream_drift.py`); `reset`
forgets everything every W frames; `staggered` always has W/2 frames or more of history, once it had that many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from toto_robot.models.kv_cache import FrameRing
from toto_robot.models.toto import Toto


class ModelStream(Protocol):
    """One running video a row, in tokens."""

    def step(self, ids: Tensor, restart: Tensor | None = None) -> dict[int, Tensor]:
        """Take the ids (B, P) of every row's next frame; return its features (B, P, D) by layer.

        `restart` (B,) boolean: these rows begin a new video with this frame.
        """
        ...


def open_stream(
    policy: str, model: Toto, batch: int, *, layers: Sequence[int], context_frames: int | None = None,
    fixed_shapes: bool = False,
) -> ModelStream:  # fmt: skip
    """Return a stream of `batch` rows of one of `POLICIES`; call it and its steps under the same autocast.

    `context_frames`: W, by default and at most what the model was trained with. `fixed_shapes`: every step does the
    same on the same memory, for a CUDA graph. Raises ValueError for another policy, layer or W.
    """
    check_policy(policy)
    frames = model.config.context_frames if context_frames is None else context_frames
    if policy == "recompute":
        if fixed_shapes:
            raise ValueError("streaming recompute has no fixed shapes: choose ring, reset or staggered for CUDA graphs")
        return RecomputeStream(model, batch, layers, frames)
    rows = 2 * batch if policy == "staggered" else batch
    ring = model.ring(rows, layers=max(layers), context_frames=frames, fixed_shapes=fixed_shapes)
    return _ON_A_RING[policy](model, layers, ring)


def check_policy(policy: str) -> None:
    """Raise ValueError unless `policy` is one of `POLICIES`."""
    if policy not in POLICIES:
        raise ValueError(f"streaming must be one of {', '.join(POLICIES)}, got {policy!r}")


class RingStream:
    """`ring`: the window moves on with every frame."""

    def __init__(self, model: Toto, layers: Sequence[int], ring: FrameRing) -> None:
        self._model, self._layers, self._ring = model, layers, ring

    @torch.no_grad()
    def step(self, ids: Tensor, restart: Tensor | None = None) -> dict[int, Tensor]:
        """See `ModelStream.step`."""
        if restart is not None:
            self._ring.reset(restart)
        return self._model(ids, layers=self._layers, logits=False, cache=self._ring).features


class ResetStream:
    """`reset`: a ring whose rows restart by themselves when they hold W frames, so that it never moves on."""

    def __init__(self, model: Toto, layers: Sequence[int], ring: FrameRing) -> None:
        self._model, self._layers, self._ring = model, layers, ring

    @torch.no_grad()
    def step(self, ids: Tensor, restart: Tensor | None = None) -> dict[int, Tensor]:
        """See `ModelStream.step`."""
        full = self._ring.frames_since_reset >= self._ring.window.context_frames
        self._ring.reset(full if restart is None else full | restart.to(full.device))
        return self._model(ids, layers=self._layers, logits=False, cache=self._ring).features


class StaggeredStream:
    """`staggered`: every video in two lanes that restart every W frames, the second W/2 frames (rounded down) later.

    Until then the second lane is a copy of the first. The lane with the longer history answers.
    """

    def __init__(self, model: Toto, layers: Sequence[int], ring: FrameRing) -> None:
        self._model, self._layers, self._ring, self._window = model, layers, ring, ring.window.context_frames
        with torch.inference_mode(False):
            self._frames = torch.zeros(ring.batch // 2, dtype=torch.long, device=ring.device)  # since the row's restart

    @torch.no_grad()
    def step(self, ids: Tensor, restart: Tensor | None = None) -> dict[int, Tensor]:
        """See `ModelStream.step`."""
        if restart is not None:
            self._frames.masked_fill_(restart.to(self._frames.device), 0)
        later = self._frames - self._window // 2
        second = (self._frames == 0) | ((later >= 0) & (later % self._window == 0))
        self._ring.reset(torch.cat([self._frames % self._window == 0, second]))
        self._frames += 1
        age = self._ring.frames_since_reset.unflatten(0, (2, -1))
        older = (age[1] > age[0])[:, None, None]
        found = self._model(ids.repeat(2, 1), layers=self._layers, logits=False, cache=self._ring).features
        lanes = {layer: x.unflatten(0, (2, -1)) for layer, x in found.items()}  # (2, B, P, D)
        return {layer: torch.where(older, x[1], x[0]) for layer, x in lanes.items()}


class RecomputeStream:
    """`recompute`: no memory but the ids of the last W frames, which all pass through the model again."""

    def __init__(self, model: Toto, batch: int, layers: Sequence[int], context_frames: int) -> None:
        config, device = model.config, model.embed.weight.device
        config.check_context(context_frames)
        self._model, self._layers, self._window = model, layers, context_frames
        self._start = torch.full((batch, 1), config.start_video_id, device=device)
        # From slot 0 on, oldest first; what stands behind a row's newest frame is not seen, attention being causal.
        self._ids = self._start.repeat(1, context_frames * config.tokens_per_frame).unflatten(1, (context_frames, -1))
        self._frames = torch.zeros(batch, dtype=torch.long, device=device)  # a row holds

    @torch.no_grad()
    def step(self, ids: Tensor, restart: Tensor | None = None) -> dict[int, Tensor]:
        """See `ModelStream.step`."""
        if restart is not None:
            self._frames = torch.where(restart.to(self._frames.device), 0, self._frames)
        full = (self._frames == self._window)[:, None, None]
        self._ids = torch.where(full, self._ids.roll(-1, dims=1), self._ids)
        rows, newest = torch.arange(len(ids), device=ids.device), self._frames.clamp(max=self._window - 1)
        self._ids[rows, newest] = ids
        self._frames = newest + 1
        clip = self._ids[:, : int(self._frames.max())]  # (B, frames of the longest row, P)
        inputs = torch.cat([self._start, clip.flatten(1)], dim=1)
        found = self._model(inputs, layers=self._layers, logits=False).features
        return {layer: x[:, 1:].unflatten(1, clip.shape[1:])[rows, newest] for layer, x in found.items()}


_ON_A_RING: dict[str, type[RingStream] | type[ResetStream] | type[StaggeredStream]] = {
    "ring": RingStream, "reset": ResetStream, "staggered": StaggeredStream,
}  # fmt: skip
POLICIES = (*_ON_A_RING, "recompute")
