"""Which frames of demonstrations are features asked about, and what about them: where is the thing, seen from the hand?

Only frames before the thing moves count: from then on the hand holds it, and proprioception knows where it is. Where no
simulator tells where things are, the place at which the hand first closed stands for the thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policies.environment import make_environment
from policies.features import stream_episodes
from policies.observation import check_images
from toto_robot.data.episodes import IMAGE_PREFIX, ORACLE_KEY, EpisodeStore
from toto_robot.encoders.base import Encoder

_MOVED_M = 0.01  # a thing that is this far from its start has been taken
_ENCODED_AT_ONCE = 64  # frames
_AXES = ("x", "y", "z")
CLOSING = "closing place"


@dataclass(frozen=True)
class ProbeFrames:
    """Frames of a store's first episodes, a few an episode, with what a readout is given and asked."""

    thing: str  # what is asked for
    rows: np.ndarray  # (n,) row in the store
    episodes: np.ndarray  # (n,) episode of each
    proprio: np.ndarray  # (n, Dp) float32
    target_cm: np.ndarray  # (n, 3) the thing seen from the hand, along the axes of the world or of the robot's base

    @property
    def count(self) -> int:
        """Number of episodes."""
        return int(self.episodes[-1]) + 1


def probe_frames(store: EpisodeStore, episodes: int, frames_per_episode: int, thing: str | None = None) -> ProbeFrames:
    """Choose frames evenly from the part of each episode in which the thing lies still.

    `thing` is a name in the environment's state, such as "cube"; null takes the first that it tells seen from the hand,
    and in a store without state the place where the hand first closed. ValueError where there is no such thing.
    """
    if not 1 <= episodes <= len(store):
        raise ValueError(f"asked for {episodes} demonstrations, {store.path} holds {len(store)}")
    stop = int(store.ends[episodes - 1])
    bounds = [store.bounds(episode) for episode in range(episodes)]
    if ORACLE_KEY in store.features:
        thing, target, still = _from_state(store, store.read(ORACLE_KEY, 0, stop), bounds, thing)
    elif thing is not None:
        raise ValueError(f"{store.path} has no {ORACLE_KEY} that tells where {thing!r} is; leave thing unset")
    else:
        thing, (target, still) = CLOSING, _from_closing(store, stop, bounds)
    chosen = [
        start + np.unique(np.linspace(0, steps - 1, frames_per_episode).round().astype(int))
        for (start, _), steps in zip(bounds, still, strict=True)
    ]
    rows = np.concatenate(chosen)
    proprio = store.read("observation.state", 0, stop)[rows].astype(np.float32)
    owners = np.repeat(np.arange(episodes), [len(part) for part in chosen])
    return ProbeFrames(thing, rows, owners, proprio, 100 * target[rows].astype(np.float64))


Bounds = list[tuple[int, int]]


def _from_state(
    store: EpisodeStore, state: np.ndarray, bounds: Bounds, thing: str | None
) -> tuple[str, np.ndarray, list[int]]:
    """Return the thing, where it is seen from the hand (N, 3) m, and for how many steps of each episode it is still."""
    names = state_names(store)
    thing = thing or next((name.partition("_from_")[0] for name in names if "_from_" in name), None)
    points = sorted({name.rpartition("_")[0] for name in names if name.startswith(f"{thing}_from_")})
    if thing is None or not points:
        raise ValueError(f"expected entries <thing>_from_<point>_x, _y, _z in the state, it has {', '.join(names)}")
    place = state[:, _entries(names, thing)]
    target = np.mean([state[:, _entries(names, point)] for point in points], axis=0)
    still = []
    for start, stop in bounds:
        moved = np.linalg.norm(place[start:stop] - place[start], axis=1) > _MOVED_M
        still.append(int(np.argmax(moved)) if moved.any() else stop - start)
    return thing, target, still


def _from_closing(store: EpisodeStore, stop: int, bounds: Bounds) -> tuple[np.ndarray, list[int]]:
    """Return where the hand will first close, seen from where it is (N, 3) m, and how many steps before that."""
    grip, hand = "gripper", [f"hand_{axis}" for axis in _AXES]
    actions, names = tuple(store.env["action_names"]), tuple(store.env["proprio_names"])
    if grip not in actions or not set(hand) <= set(names):
        raise ValueError(
            f"{store.path} has no {ORACLE_KEY}, and neither {grip} in the action nor {', '.join(hand)} in the "
            "proprioception to stand for it: choose a layer by hand"
        )
    closing = store.read("action", 0, stop)[:, actions.index(grip)] > 0
    place = store.read("observation.state", 0, stop)[:, _entries(names, "hand")]
    target, still = np.empty_like(place), []
    for start, end in bounds:
        closed = closing[start:end]
        steps = max(int(np.argmax(closed)) if closed.any() else end - start, 1)
        target[start:end] = place[start + steps - 1] - place[start:end]
        still.append(steps)
    return target, still


def state_names(store: EpisodeStore) -> tuple[str, ...]:
    """Return the names of the entries of the state, which the environment knows; ValueError where it does not."""
    environment = make_environment(str(store.env["env_id"]))
    try:
        names = getattr(environment.unwrapped, "state_names", None)
    finally:
        environment.close()
    width = store.features[ORACLE_KEY].shape[0]
    if names is None or len(names) != width:
        raise ValueError(f"{store.env['env_id']} does not name the {width} entries of its state: it cannot be probed")
    return tuple(names)


def frame_tokens(encoder: Encoder, store: EpisodeStore, camera: str, frames: ProbeFrames) -> Tensor:
    """Return the features (n, P, D) float16 of the frames, each as the encoder's stream meets it in its episode."""
    if encoder.context_frames > 1:
        place = {int(row): index for index, row in enumerate(frames.rows)}
        found = torch.zeros(len(frames.rows), encoder.tokens_per_frame, encoder.width, dtype=torch.float16)
        for seen in stream_episodes(encoder, store, camera, range(frames.count)):
            if seen.frame in place:
                found[place[seen.frame]] = torch.from_numpy(seen.features)
        return found
    images = np.concatenate([_pictures(store, camera, frames, episode) for episode in range(frames.count)])
    parts = np.array_split(images, -(-len(images) // _ENCODED_AT_ONCE))
    return torch.cat([encoder.encode(part).half().cpu() for part in parts])


def _pictures(store: EpisodeStore, camera: str, frames: ProbeFrames, episode: int) -> np.ndarray:
    """Return the chosen pictures of an episode: only what lies between its first and its last one is read."""
    rows = frames.rows[frames.episodes == episode]
    images = store.read(IMAGE_PREFIX + camera, int(rows[0]), int(rows[-1]) + 1)
    check_images(images, camera, int(store.env["image_size"]))
    return images[rows - rows[0]]


def _entries(names: tuple[str, ...], point: str) -> list[int]:
    """Return where x, y and z of a point stand."""
    missing = [f"{point}_{axis}" for axis in _AXES if f"{point}_{axis}" not in names]
    if missing:
        raise ValueError(f"expected {', '.join(missing)} among {', '.join(names)}")
    return [names.index(f"{point}_{axis}") for axis in _AXES]
