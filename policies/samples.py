"""What is one training sample of behaviour cloning: what a frame shows, and the chunk of actions that follows it?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from policies.demonstrations import Demonstrations
from policies.heads.config import HeadConfig
from policies.normalize import Normalizer
from policies.observation import Inputs, proprio_input


class Samples:
    """Demonstrations as tensors, by frame. Neither history nor chunk leaves the episode of its frame."""

    def __init__(self, head: HeadConfig, data: Demonstrations, proprio: Normalizer, actions: Normalizer) -> None:
        self._proprio = proprio_input(data.proprio, proprio)
        self._actions = torch.from_numpy(actions.normalize(data.actions))
        self._shown = (data.tokens, *data.variants)
        lengths = np.diff(data.ends, prepend=0)
        ends = np.repeat(data.ends, lengths)[:, None]  # (N, 1): the end of each frame's episode
        starts = ends - np.repeat(lengths, lengths)[:, None]
        ahead = np.arange(len(ends))[:, None] + np.arange(head.steps)  # (N, K)
        self._ahead = torch.from_numpy(np.minimum(ahead, ends - 1))
        self._inside = torch.from_numpy(ahead < ends)  # actions after an episode's end are not asked for
        behind = np.arange(len(ends))[:, None] + np.arange(1 - head.frames, 1)  # (N, Ho), oldest first
        seen = torch.from_numpy(np.maximum(behind, starts))  # before an episode's first frame stands the first frame
        self._seen = seen if head.frames > 1 else seen[:, 0]

    def rows(self, frames: Tensor, variant: Tensor | None = None) -> tuple[Inputs, Tensor, Tensor]:
        """Return inputs, target chunks (B, K, A) and which of them count (B, K).

        `variant` (B,) says which variant of its pictures each sample shows; None is the plain one. Tokens are as the
        demonstrations have them: cached features, or what an encoder in training is given.
        """
        seen = self._seen[frames]
        tokens = {camera: self._look(camera, seen, variant) for camera in self._shown[0]}
        return Inputs(self._proprio[seen], tokens), self._actions[self._ahead[frames]], self._inside[frames]

    def draw(self, frames: Tensor, count: int, generator: torch.Generator) -> tuple[Inputs, Tensor, Tensor]:
        """Draw `count` of these frames, each in one of its variants."""
        drawn = torch.randint(len(frames), (count,), generator=generator)
        variant = None
        if len(self._shown) > 1:
            variant = torch.randint(len(self._shown), (count,), generator=generator)
        return self.rows(frames[drawn], variant)

    def _look(self, camera: str, seen: Tensor, variant: Tensor | None) -> Tensor:
        tokens = self._shown[0][camera]
        # index_select copies whole rows; plain indexing gathers element by element, ten times slower.
        shown = tokens.index_select(0, seen.flatten()).unflatten(0, seen.shape)
        if variant is not None:
            for number, other in enumerate(self._shown[1:], start=1):
                chosen = variant == number
                shown[chosen] = other[camera][seen[chosen]]
        return shown


def disturb(
    inputs: Inputs,
    generator: torch.Generator,
    *,
    proprio_noise: float,
    proprio_dropout: float,
    token_dropout: float,
) -> Inputs:
    """Make the proprioception a little wrong or absent, and drop tokens: the head must look, not remember."""
    proprio, tokens = inputs.proprio, inputs.tokens
    if proprio_noise > 0:
        proprio = proprio + proprio_noise * torch.randn(proprio.shape, generator=generator)
    if proprio_dropout > 0:
        kept = torch.rand(len(proprio), 1, generator=generator) >= proprio_dropout
        proprio = proprio * kept.view(-1, *[1] * (proprio.ndim - 1))  # of a sample, its whole history
    if token_dropout > 0:
        tokens = _drop_tokens(tokens, token_dropout, generator)
    return Inputs(proprio, tokens)


def _drop_tokens(tokens: Mapping[str, Tensor], part: float, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        camera: array * (torch.rand(*array.shape[:-1], 1, generator=generator) >= part)
        for camera, array in tokens.items()
    }
