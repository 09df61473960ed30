"""What is a policy as one program of tensors, without a stream or a generator: what `export` writes?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policies.bundle import Parts
from policies.finetune import backbone_features, trainable
from policies.normalize import CLIP, Normalizer
from policies.observation import Inputs
from toto_robot.encoders.mae import MAEEncoder
from toto_robot.encoders.toto import TotoEncoder


@dataclass(frozen=True, kw_only=True)
class Array:
    """An input or output of a program."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    meaning: str

    def random(self, generator: torch.Generator) -> Tensor:
        """Draw one: N(0, 1), or pixels."""
        if self.dtype == torch.uint8:
            return torch.randint(256, self.shape, generator=generator, dtype=torch.uint8)
        return torch.randn(self.shape, generator=generator)


class HeadProgram(nn.Module):
    """Proprioception in the task's units, noise where the head draws, features of each camera -> actions (B, K, A).

    Normalisers are inside, so what goes in and out is what the bundle's `policy.json` names. Actions are those that
    the head predicts; the action box and the execution of chunks (`chunks.py`) are the caller's.
    """

    proprio_offset: Tensor
    proprio_scale: Tensor
    action_offset: Tensor
    action_scale: Tensor

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.head = parts.head.eval()
        self.draws = parts.head.noise_shape != (0,)
        self.clips = parts.proprio.kind != "none"  # as `Normalizer.normalize`
        for name, normalizer in (("proprio", parts.proprio), ("action", parts.actions)):
            self._add(name, normalizer)

    def _add(self, name: str, normalizer: Normalizer) -> None:
        self.register_buffer(f"{name}_offset", torch.from_numpy(normalizer.offset.copy()))
        self.register_buffer(f"{name}_scale", torch.from_numpy(normalizer.scale.copy()))

    def forward(self, *arrays: Tensor) -> Tensor:
        """Take the arrays of `head_arrays` in this order; return actions in the task's units (B, K, A)."""
        proprio, *rest = arrays
        noise = rest.pop(0) if self.draws else proprio.new_zeros(len(proprio), 0)
        normal = (proprio - self.proprio_offset) / self.proprio_scale
        if self.clips:
            normal = normal.clamp(-CLIP, CLIP)
        tokens = dict(zip(self.head.sizes.cameras, rest, strict=True))
        chunk: Tensor = self.head.act(Inputs(normal, tokens), noise)
        return chunk * self.action_scale + self.action_offset


class PolicyProgram(nn.Module):
    """The same from pixels: an encoder that sees one frame at a time, in float32, then the head."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.head, self.see = HeadProgram(parts), _Features(trainable(parts.encoder))

    def forward(self, *arrays: Tensor) -> Tensor:
        """Take the arrays of `policy_arrays` in this order; return actions in the task's units (B, K, A)."""
        count = len(self.head.head.sizes.cameras)
        tokens = [self.see(pixels).half().float() for pixels in arrays[-count:]]  # rounded as the cache rounds
        actions: Tensor = self.head(*arrays[:-count], *tokens)
        return actions


class _Features(nn.Module):
    def __init__(self, encoder: TotoEncoder | MAEEncoder) -> None:
        super().__init__()
        self.encoder, self.model = encoder, encoder.model
        self.tokenizer: Any = encoder.tokenizer if isinstance(encoder, TotoEncoder) else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, h, w, 3) to features (B, P, D)."""
        shown = pixels if self.tokenizer is None else self.tokenizer.encode(pixels).flatten(1)
        return backbone_features(self.encoder, self.model, shown)


def head_arrays(parts: Parts, batch: int) -> list[Array]:
    """Return what `HeadProgram` takes."""
    sizes = parts.head.sizes
    frames = (batch, sizes.history) if sizes.history > 1 else (batch,)
    tokens = [
        Array(
            name=f"tokens_{camera}",
            shape=(*frames, sizes.tokens_per_frame, sizes.token_width),
            dtype=torch.float32,
            meaning=f"features of camera {camera} from the bundle's encoder",
        )
        for camera in sizes.cameras
    ]
    return [*_told(parts, frames), *tokens]


def policy_arrays(parts: Parts, batch: int) -> list[Array]:
    """Return what `PolicyProgram` takes; ValueError says why there is no such program."""
    encoder, sizes, image_px = parts.encoder, parts.head.sizes, int(parts.description["task"]["image_size"])
    if not isinstance(encoder, TotoEncoder | MAEEncoder) or encoder.context_frames != 1 or sizes.history != 1:
        raise ValueError(
            "only a policy that sees one frame at a time is one program (Toto with encoder.context_frames=1, or MAE, "
            "and bc.head.history=1); export the head alone with part=head"
        )
    if encoder.image_px != image_px:
        raise ValueError(
            f"the encoder takes pictures of {encoder.image_px} px, the cameras give {image_px}; export the head alone "
            "with part=head"
        )
    pixels = [
        Array(
            name=f"pixels_{camera}",
            shape=(batch, image_px, image_px, 3),
            dtype=torch.uint8,
            meaning=f"RGB of camera {camera}, origin top-left",
        )
        for camera in sizes.cameras
    ]
    return [*_told(parts, (batch,)), *pixels]


def _told(parts: Parts, frames: tuple[int, ...]) -> list[Array]:
    names = ", ".join(parts.proprio.names)
    arrays = [
        Array(
            name="proprio",
            shape=(*frames, len(parts.proprio.names)),
            dtype=torch.float32,
            meaning=f"{names}, not normalised",
        )
    ]
    if parts.head.noise_shape != (0,):
        shape = (frames[0], *parts.head.noise_shape)
        arrays.append(
            Array(name="noise", shape=shape, dtype=torch.float32, meaning="N(0, 1), drawn anew at every call")
        )
    return arrays
