"""What is a policy made of besides its settings: which weights, and which demonstrations, lay where they point?

Settings name a folder; what lies in it changes when an encoder is trained again or a store is collected anew. A
training writes down what it found, in its `settings.json`, and neither goes on nor counts as done where something else
lies there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from policies.encoder import EncoderConfig, open_encoder
from toto_robot.data.episodes import EpisodeStore
from toto_robot.encoders.base import Encoder
from toto_robot.run_folder import git_commit, read_json

MADE_OF = "made_of"  # in settings.json
_WORDS = {"encoder": "another encoder (its weights, layer or precision)", "demonstrations": "other demonstrations"}
_Stamp = tuple[tuple[str, int, int], ...]  # path, time of change and size of files


def made_of(encoder: Encoder, store: EpisodeStore | None = None, episodes: int = 0) -> dict[str, str]:
    """Return what a training is about to learn from: the encoder's fingerprint, the hash of the first episodes."""
    shown = {} if store is None else {"demonstrations": store.content_hash(episodes)}
    return {"encoder": encoder.fingerprint, **shown}


def read_made_of(settings: Path) -> dict[str, Any]:
    """Return what a training in `settings.json` was made of, its commits too; {} where that was not written down."""
    found: dict[str, Any] = read_json(settings).get(MADE_OF, {}) if settings.exists() else {}
    return found


def check_made_of(before: Mapping[str, Any], now: Mapping[str, Any], run_dir: Path) -> None:
    """Raise ValueError where what was recorded and what is there now differ; what either does not tell is passed."""
    for what, words in _WORDS.items():
        if what in before and what in now and before[what] != now[what]:
            raise ValueError(
                f"{run_dir} holds a policy of {words}: {before[what][:12]} -> {now[what][:12]}; choose another folder "
                "with run=<folder>, or delete it"
            )


def with_commit(found: Mapping[str, str], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded: the commits of every start in their order, beside what it was made of."""
    commits = [*before.get("commits", ())]
    now = git_commit()
    return {**found, "commits": commits if now in commits else [*commits, now]}


def encoder_there(config: EncoderConfig, settings: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of the encoder that a configuration points to now; None where it cannot be opened.

    `settings` are those of the encoder in the finished bundle: what the configuration leaves to this machine or to the
    demonstrations (`precision=auto`, `layer=auto`) is what they say.
    """
    if config.precision == "auto":
        config = replace(config, precision=str(settings.get("precision", "auto")))
    if config.layer == "auto" and "layer" in settings:  # a blind encoder has none
        config = replace(config, layer=str(settings["layer"]))
    folder = config.folder
    files = [path for path in folder.rglob("*") if path.is_file()] if folder is not None and folder.is_dir() else []
    return _fingerprint(config, _stamp(*files))


def demonstrations_there(path: Path, episodes: int) -> str | None:
    """Return the hash of the first episodes of a store; None where there is none, or fewer."""
    commit = path / "zarr.json"
    return _content(path, episodes, _stamp(commit)) if commit.exists() else None


def _stamp(*files: Path) -> _Stamp:
    return tuple(sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@functools.lru_cache(maxsize=64)
def _fingerprint(config: EncoderConfig, _: _Stamp) -> str | None:
    try:
        return open_encoder(config).fingerprint
    except (ValueError, ImportError):
        return None


@functools.lru_cache(maxsize=64)
def _content(path: Path, episodes: int, _: _Stamp) -> str | None:
    store = EpisodeStore.open(path)
    return store.content_hash(episodes) if len(store) >= episodes else None
