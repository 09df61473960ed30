"""Which layer does encoder.layer=auto mean in a comparison: for each task, of each encoder that leaves it open?

It is chosen once, from the fewest demonstrations that any policy has, so no policy profits from labels that it is not
given; and it stays when the comparison grows. `<run>/layers/<task>/<encoder>/layers.json` says how it was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from policies.compare_plan import CompareConfig, Entry, slug
from policies.encoder import EncoderConfig
from policies.probe import choose_layer, open_layers
from toto_robot.data.episodes import EpisodeStore
from toto_robot.run_folder import read_json, wait_for_folder

Chosen = Mapping[tuple[str, str], EncoderConfig]  # (task, label) -> the encoder with its layer


def choose_layers(
    config: CompareConfig, run_dir: Path, stores: Mapping[str, Path | None], published: Iterable[str]
) -> Chosen:
    """Return the encoders whose layer was to be chosen, with the layers; for `published` labels none is chosen anew."""
    found = {}
    for env, store in stores.items():
        for entry in config.entries:
            folder = run_dir / "layers" / slug(env) / slug(entry.label)
            open_still = store is not None and entry.label not in {*published}
            if entry.config.layer == "auto" and (open_still or (folder / "layers.json").exists()):
                with wait_for_folder(run_dir / ".locks" / "layers"):
                    found[env, entry.label] = _choose(config, entry, store, folder)
    return found


def _choose(config: CompareConfig, entry: Entry, store: Path | None, folder: Path) -> EncoderConfig:
    path = folder / "layers.json"
    told = read_json(path) if path.exists() else None
    fewest = min(config.demonstrations)
    if told is not None and told["of"]["encoder"] == open_layers(entry.config).fingerprint:
        if told["of"]["episodes"] > fewest:
            raise ValueError(
                f"the layer of {entry.label} on {folder.parent.name} was chosen from {told['of']['episodes']} "
                f"demonstrations; policies of {fewest} would profit from labels that they are not given: take another "
                f"run=<folder>, or a number as in encoders=[{entry.label}@layer={told['chosen']}]"
            )
        return replace(entry.config, layer=str(told["chosen"]))
    if store is None:  # another encoder than the one whose layer was chosen, and nothing to train
        return replace(entry.config, layer=None)
    return choose_layer(entry.config, EpisodeStore.open(store), config.train.cameras, fewest, folder)


def encoder_on(costs: Mapping[str, Mapping[str, Any]], label: str, env: str) -> Mapping[str, Any]:
    """Return what is known of an encoder as a task sees it: `costed` gives a task with another layer its own row."""
    return costs.get(f"{label} on {env}", costs[label])


def costed(config: CompareConfig, chosen: Chosen) -> list[Entry]:
    """Return the encoders whose cost is measured; one has several rows where tasks have chosen different layers."""
    found = []
    for entry in config.entries:
        layers = [(env, chosen[env, entry.label]) for env in config.tasks if (env, entry.label) in chosen]
        first = layers[0][1] if layers else entry.config
        found.append(replace(entry, config=first))
        found += [replace(entry, label=f"{entry.label} on {env}", config=of) for env, of in layers if of != first]
    return [*found, *config.layer_entries]
