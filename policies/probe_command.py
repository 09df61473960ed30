"""How is a table made of what encoders know of where things are: `toto_robot probe`?"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from policies.compare_plan import CompareConfig, Entry
from policies.environment import environment_id
from policies.probe import SCHEMA, ReadoutConfig, open_layers, probe_encoder
from policies.probe_frames import ProbeFrames, probe_frames
from policies.probe_scores import Score, draw_layers, table
from toto_robot.data.episodes import EpisodeStore, require_env
from toto_robot.run_folder import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of `toto_robot probe`."""

    MAY_CHANGE = ("encoders",)  # more rows of the same table

    env: str = "franka_pick"  # short name or gymnasium id
    demos: str | None = None  # episode store; null is outputs/collect/<env>/episodes
    demonstrations: int = 200  # episodes to use: the first ones of the store
    encoders: tuple[str, ...] = ("toto", "mae", "random_vit", "random_toto")  # [label:]name[=path][@key=value]
    cameras: tuple[str, ...] = ("front", "wrist")  # each alone and all together
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)

    def __post_init__(self) -> None:
        if not self.encoders or not self.cameras:
            raise ValueError("expected at least one encoder and one camera")


def probe(config: ProbeConfig, run_dir: Path) -> int:
    """Print, for every layer of some encoders, how well it tells where the thing is; write probe.json and layers.png.

    Encoders that are done already are not done again.
    """
    entries = CompareConfig(encoders=config.encoders).entries
    store = open_store(config)
    frames = probe_frames(store, config.demonstrations, config.readout.frames_per_episode, config.readout.thing)
    print(f"{len(frames.rows)} frames of {frames.count} demonstrations, {store.path}")
    scores = {entry.label: _scores(entry, config, store, frames, run_dir) for entry in entries}
    told = {label: [score.as_dict() for score in of] for label, of in scores.items()}
    write_json(run_dir / "probe.json", {"schema": SCHEMA, "env": config.env, "thing": frames.thing, "encoders": told})
    draw_layers(scores, frames.thing, run_dir / "layers.png")
    print(table(scores, frames.thing))
    print(f"look at: {run_dir / 'layers.png'}")
    return 0


def open_store(config: ProbeConfig) -> EpisodeStore:
    """Open the demonstrations; ValueError when they are of another environment, too few, or lack a camera."""
    path = Path("outputs/collect") / config.env.replace("/", "-") / "episodes" if config.demos is None else config.demos
    store = EpisodeStore.open(Path(path))
    require_env(store, environment_id(config.env))
    missing = [camera for camera in config.cameras if camera not in store.cameras]
    if missing:
        has = ", ".join(store.cameras) or "none"
        raise ValueError(f"{store.path} has no camera {', '.join(missing)}; it has {has}")
    return store


def _scores(entry: Entry, config: ProbeConfig, store: EpisodeStore, frames: ProbeFrames, run_dir: Path) -> list[Score]:
    """Return the scores of an encoder, from its file where that is of the same encoder and demonstrations."""
    of = {
        "schema": SCHEMA, "encoder": open_layers(entry.config).fingerprint, "demonstrations": store.content_hash(),
        "episodes": config.demonstrations, "cameras": list(config.cameras), "readout": asdict(config.readout),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
    path = run_dir / "encoders" / f"{key[:20]}.json"
    if not path.exists():
        together = [config.cameras] if len(config.cameras) > 1 else []
        views = [*((camera,) for camera in config.cameras), *together]
        scores = probe_encoder(entry.config, store, views, frames, config.readout)
        write_json(path, {"label": entry.label, "of": of, "scores": [score.as_dict() for score in scores]})
    return [Score.from_dict(stored) for stored in read_json(path)["scores"]]
