"""What does the model remember between calls: a ring of frames for streaming, a growing cache for generation?

Both hold keys after rotation, at absolute positions: softmax does not care about slot order, so a ring overwrites its
oldest frame and nothing is ever shifted. Both keep the start token's un-rotated key and its value, which are constants,
and rotate that key to just before the window (see `attention.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toto_robot.models.attention import Layout, Rotation, Window, rotate, sequence_keys, sequence_layout


class FrameRing:
    """The last `context_frames` frames of every row, for one frame a call; rows restart independently.

    Key slots of a row: [start token | W frames of P tokens]. All rows write the same frame slot, one after the other; a
    row's own count of frames since its restart gives its positions and which slots it may look at. `Toto.ring` makes
    one. With `fixed_shapes` every call does the same operations on the same memory, as a CUDA graph needs: the slot is
    a tensor, and slots not yet used are looked at, behind the mask. Without, the first W - 1 calls are cheaper.
    """

    def __init__(self, batch: int, window: Window, device: torch.device, *, fixed_shapes: bool = False) -> None:
        self.batch, self.window, self.device = batch, window, device
        self.step = -1  # -1: waiting for the start token; counts on only without fixed shapes
        with torch.inference_mode(False):  # a ring made inside inference mode may be used outside it
            self.frames_since_reset = torch.zeros(batch, dtype=torch.long, device=device)
            self._slot = torch.zeros((), dtype=torch.long, device=device) if fixed_shapes else None
            self._inside = torch.arange(window.tokens_per_frame, device=device)  # a token's place in its frame
            slots = torch.arange(window.context_frames, device=device)
            self._slots = slots.repeat_interleave(window.tokens_per_frame)  # a key's frame slot, (W * P,)
            causal = self._inside <= self._inside[:, None]
            self._causal = causal.repeat(1, window.context_frames)  # within every slot, (P, W * P)
        self._start_key: list[Tensor] = []  # (H, 1, K) a layer, not rotated
        self._keys: list[Tensor] = []  # (B, H, 1 + W * P, K) a layer
        self._values: list[Tensor] = []

    def reset(self, rows: Tensor) -> None:
        """Forget the past of `rows`, a boolean (B,): their next frame is their frame 0."""
        self.frames_since_reset.masked_fill_(rows.to(self.device), 0)

    def layout(self, batch: int, length: int) -> Layout:
        """Lay out the next call: first the start token alone, then one frame a call."""
        if self.step < 0:
            assert length == 1, "the first call of a ring is the start token"
            return sequence_layout(1, self.window, self.device)
        expected = (self.batch, self.window.tokens_per_frame)
        if (batch, length) != expected:
            raise ValueError(f"the stream takes one frame a call, ids {expected}; got {(batch, length)}")
        frame = self.frames_since_reset[:, None]  # (B, 1)
        at = self._rotation(1 + frame * length + self._inside)
        start = self._rotation(self.window.start_position(frame))
        return Layout(at, start, self._mask(), causal=False)

    def extend(self, layer: int, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Put a frame's keys and values in its slot; return the start slot and all frame slots used so far."""
        if self.step < 0:
            self._remember_start(k, v)
            return rotate(k, layout.rotation), v
        assert layout.start is not None
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, :1] = rotate(self._start_key[layer], layout.start)
        self._write(keys, rotate(k, layout.rotation))
        self._write(values, v)
        used = 1 + self._frames_used() * self.window.tokens_per_frame
        return keys[:, :, :used], values[:, :, :used]

    def advance(self) -> None:
        """Count the call that has just gone through all layers."""
        if self.step < 0:
            self.step = 0
            return
        self.frames_since_reset += 1
        if self._slot is None:
            self.step += 1
        else:
            self._slot.add_(1).remainder_(self.window.context_frames)

    def _frames_used(self) -> int:
        window = self.window.context_frames
        return min(self.step + 1, window) if self._slot is None else window

    def _current_slot(self) -> int | Tensor:
        return self.step % self.window.context_frames if self._slot is None else self._slot

    def _write(self, cache: Tensor, new: Tensor) -> None:
        P = self.window.tokens_per_frame
        if self._slot is None:
            first = 1 + self.step % self.window.context_frames * P
            cache[:, :, first : first + P] = new
        else:
            cache.index_copy_(2, 1 + self._slot * P + self._inside, new)

    def _rotation(self, positions: Tensor) -> Rotation:
        cos, sin = self.window.rotation(positions)
        return Rotation(cos[:, None], sin[:, None])  # (B, 1, L, K/2): the same for all heads

    def _mask(self) -> Tensor | None:
        if not self._keys:
            return None  # no block runs, the embedding was asked for
        used = self._frames_used() * self.window.tokens_per_frame
        age = (self._current_slot() - self._slots[:used]) % self.window.context_frames  # in frames, by key
        past = (age > 0) & (age <= self.frames_since_reset[:, None])  # (B, used)
        own = (age == 0) & self._causal[:, :used]  # (P, used)
        hidden = F.pad(~(past[:, None] | own), (1, 0), value=False)[:, None]  # (B, 1, P, 1 + used); the start is seen
        # Added to scores: attention would turn a boolean mask into this one in every layer.
        return torch.zeros(hidden.shape, dtype=self._keys[0].dtype, device=self.device).masked_fill_(
            hidden, float("-inf")
        )

    def _remember_start(self, k: Tensor, v: Tensor) -> None:
        _, H, _, K = k.shape
        shape = (self.batch, H, 1 + self.window.context_frames * self.window.tokens_per_frame, K)
        with torch.inference_mode(False):
            keys, values = k.new_zeros(shape), v.new_zeros(shape)  # zeros: a masked slot must not hold a NaN
            self._start_key.append(k.clone()[:1])
        values[:, :, :1] = v
        self._keys.append(keys)
        self._values.append(values)


class TokenCache:
    """All tokens so far, for generation: one call with the start token and any prefix, then one token a call.

    Visual token j lies in slot 1 + j. When the window leaves a frame, the start key moves to the slot just before the
    window's first token, over a key that nobody will look at again, so a step attends to one slice without a mask.
    """

    def __init__(self, max_length: int, window: Window, device: torch.device) -> None:
        self.max_length, self.window, self.device = max_length, window, device
        self.length = 0
        self._start: list[tuple[Tensor, Tensor]] = []  # un-rotated key and value, (B, H, 1, K) a layer
        self._keys: list[Tensor] = []  # (B, H, max_length, K) a layer
        self._values: list[Tensor] = []

    def layout(self, batch: int, length: int) -> Layout:
        """Lay out the next call: the prefix from the start token on, then single tokens."""
        if self.length + length > self.max_length:
            raise ValueError(f"the cache has room for {self.max_length} tokens; {self.length} + {length} were given")
        if self.length == 0:
            return sequence_layout(length, self.window, self.device)
        if length != 1:
            raise ValueError(f"after the prefix the cache takes one token a call, got {length}")
        position = torch.tensor([self.length], device=self.device)
        start = torch.tensor([self._window_start()], device=self.device)
        return Layout(self.window.rotation(position), self.window.rotation(start), None, causal=False)

    def extend(self, layer: int, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Append keys and values of a block; return the window's."""
        if self.length == 0:
            self._remember_prefix(k, v, layout)
            return sequence_keys(k, v, layout)
        assert layout.start is not None
        keys, values, (start_key, start_value) = self._keys[layer], self._values[layer], self._start[layer]
        keys[:, :, self.length : self.length + 1] = rotate(k, layout.rotation)
        values[:, :, self.length : self.length + 1] = v
        first = self._window_start()
        keys[:, :, first : first + 1] = rotate(start_key, layout.start)
        values[:, :, first : first + 1] = start_value
        return keys[:, :, first : self.length + 1], values[:, :, first : self.length + 1]

    def advance(self, length: int) -> None:
        """Count the tokens of the call that has just gone through all layers."""
        self.length += length

    def _window_start(self) -> int:
        frame = (self.length - 1) // self.window.tokens_per_frame  # of the token about to be written
        return max(0, frame - self.window.context_frames + 1) * self.window.tokens_per_frame

    def _remember_prefix(self, k: Tensor, v: Tensor, layout: Layout) -> None:
        B, H, L, K = k.shape
        with torch.inference_mode(False):
            keys, values = k.new_zeros(B, H, self.max_length, K), v.new_zeros(B, H, self.max_length, K)
            self._start.append((k[:, :, :1].clone(), v[:, :, :1].clone()))
        keys[:, :, :L] = rotate(k, layout.rotation)
        values[:, :, :L] = v
        self._keys.append(keys)
        self._values.append(values)
