"""What do demonstrations hold for cloning, and which of them are only measured on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policies.normalize import check_finite
from toto_robot.data.episodes import ORACLE_KEY, EpisodeStore


@dataclass(frozen=True)
class Demonstrations:
    """The first n episodes of a store, as cloning reads them: everything in memory, features as float16."""

    proprio: np.ndarray  # (N, Dp) float32
    actions: np.ndarray  # (N, A) float32, clean labels
    tokens: dict[str, Tensor]  # camera -> (N, P, D) float16; or what `finetune.prepare` makes of the pictures
    ends: np.ndarray  # (E,) first frame after each episode
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    variants: tuple[dict[str, Tensor], ...] = ()  # the same of changed pictures

    def frames_of(self, episodes: range) -> np.ndarray:
        """Return the frame indices of some episodes."""
        starts = np.concatenate([[0], self.ends[:-1]])
        return np.concatenate([np.arange(starts[e], self.ends[e]) for e in episodes])


def load_demonstrations(
    store: EpisodeStore,
    features: Mapping[str, np.ndarray],
    episodes: int,
    oracle: bool = False,
    variants: Sequence[Mapping[str, np.ndarray]] = (),
    first: int = 0,
) -> Demonstrations:
    """Read the episodes from `first` up to `episodes` and their cached features; ValueError for NaN in the data.

    For the oracle the simulator's state follows the proprioception. `variants` are the features of changed pictures.
    """
    start, end = (int(store.ends[number - 1]) if number else 0 for number in (first, episodes))
    names = list(store.env["proprio_names"])
    numbers = [store.read("observation.state", start, end).astype(np.float32)]
    if oracle:
        numbers.append(_oracle(store, start, end))
        names += [f"state_{index}" for index in range(numbers[-1].shape[1])]
    data = Demonstrations(
        proprio=np.concatenate(numbers, axis=1),
        actions=store.read("action", start, end).astype(np.float32),
        tokens=_tensors(features),
        variants=tuple(_tensors(each) for each in variants),
        ends=np.asarray(store.ends[first:episodes]) - start,
        proprio_names=tuple(names),
        action_names=tuple(store.env["action_names"]),
    )
    check_finite(data.proprio, data.proprio_names, "observation.state of the demonstrations")
    check_finite(data.actions, data.action_names, "action of the demonstrations")
    return data


def _tensors(features: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {camera: torch.from_numpy(np.array(array)) for camera, array in features.items()}


def _oracle(store: EpisodeStore, start: int, end: int) -> np.ndarray:
    if ORACLE_KEY not in store.features:
        raise ValueError(f"encoder=state needs {ORACLE_KEY} in {store.path}; collect the demonstrations again")
    return store.read(ORACLE_KEY, start, end).astype(np.float32)


def split_episodes(episodes: int, validation_fraction: float) -> tuple[range, range]:
    """Return (training, validation) episodes: the last ones are held out, at least one for a fraction above 0."""
    held_out = max(1, round(episodes * validation_fraction)) if validation_fraction > 0 else 0
    held_out = min(held_out, episodes - 1)
    return range(episodes - held_out), range(episodes - held_out, episodes)
