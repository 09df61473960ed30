"""What has DAgger learned from so far: demonstrations and, behind them, the rollouts of every round, each read once?

The tokens of a frame are the big part. They lie in one array with room for all rounds, of which the operating system
gives what is written; a round adds its own rows and copies nothing that was there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policies.demonstrations import Demonstrations, load_demonstrations
from policies.relabel import FEATURE_PREFIX
from toto_robot.data.episodes import IMAGE_PREFIX, EpisodeStore


class Aggregate:
    """The data of a run, which grows by a round at a time."""

    def __init__(
        self, before: Demonstrations | None, rollouts: Path, *, cameras: tuple[str, ...], oracle: bool, most_steps: int
    ) -> None:
        """Begin with the demonstrations; `most_steps` is what all rounds together have at the most."""
        self._data, self._path, self._cameras, self._oracle = before, rollouts, cameras, oracle
        self._episodes, self._most = 0, most_steps  # rollouts that are in the data, room for all of them
        self._room: dict[str, Tensor] = {}

    def up_to(self, episodes: int) -> Demonstrations | None:
        """Return the demonstrations and the first rollouts, reading those that were not read yet; None without any."""
        assert episodes >= self._episodes, "rounds come one after the other"
        if episodes > self._episodes:
            store = EpisodeStore.open(self._path)
            start, stop = (int(store.ends[number - 1]) if number else 0 for number in (self._episodes, episodes))
            features = {camera: store.read(FEATURE_PREFIX + camera, start, stop) for camera in self._cameras}
            new = load_demonstrations(store, features, episodes, self._oracle, first=self._episodes)
            self._data, self._episodes = self._joined(new), episodes
        return self._data

    def _joined(self, new: Demonstrations) -> Demonstrations:
        """Put the new episodes behind what there is."""
        old = self._data
        if old is None:
            old = replace(
                new, proprio=new.proprio[:0], actions=new.actions[:0], ends=new.ends[:0],
                tokens={camera: tokens[:0] for camera, tokens in new.tokens.items()},
            )  # fmt: skip
        assert (old.proprio_names, old.action_names) == (new.proprio_names, new.action_names)
        before, end = len(old.proprio), len(old.proprio) + len(new.proprio)
        for camera, tokens in new.tokens.items():
            if camera not in self._room:
                self._room[camera] = torch.empty((before + self._most, *tokens.shape[1:]), dtype=tokens.dtype)
                self._room[camera][:before] = old.tokens[camera]
            self._room[camera][before:end] = tokens
        return replace(
            old,
            proprio=np.concatenate([old.proprio, new.proprio]),
            actions=np.concatenate([old.actions, new.actions]),
            tokens={camera: self._room[camera][:end] for camera in new.tokens},
            ends=np.concatenate([old.ends, before + new.ends]),
        )


def forget_views(run_dir: Path) -> None:
    """Delete what a finished run's rollouts saw, features and pictures; states, labels and outcomes stay.

    The simulator's states render the pictures again.
    """
    path = run_dir / "episodes"
    if path.exists():
        with EpisodeStore.open(path) as store:
            every = [*store.features, *(folder.name for folder in (path / "data").iterdir())]  # a kill leaves files
            store.drop([key for key in every if key.startswith((FEATURE_PREFIX, IMAGE_PREFIX))])
