"""Do our exports open in lerobot and robomimic themselves, with equal numbers and frames?

Two halves, because these packages cannot share an environment with ours (docs/formats.md has the commands):

    .venv/bin/python scripts/check_peer_formats.py expected <episode store> expected.npz
    <peers' python>  scripts/check_peer_formats.py compare expected.npz [--lerobot <folder>] [--lossless <folder>]
                                                                        [--robomimic <file>]

The second half imports nothing of ours. It prints one JSON object a line, and exits with 1 where a number differs or a
frame of video is further off than codecs explain.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = "observation.images."
VIDEO_MEAN_LEVELS = 5.0  # mean difference of a frame that H.264 at crf 18 with halved colour may have
FIXED = {
    "action": "actions",
    "action.executed": "actions_executed",
    "next.reward": "rewards",
    "simulator.state": "states",
}


def main() -> int:
    """Run one half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    halves = parser.add_subparsers(dest="half", required=True)
    expected = halves.add_parser("expected")
    expected.add_argument("store", type=Path)
    expected.add_argument("npz", type=Path)
    compare = halves.add_parser("compare")
    compare.add_argument("npz", type=Path)
    for name in ("lerobot", "lossless", "robomimic"):
        compare.add_argument(f"--{name}", type=Path)
    arguments = parser.parse_args()
    if arguments.half == "expected":
        return write_expected(arguments.store, arguments.npz)
    episodes, about = read_expected(arguments.npz)
    rows: list[dict[str, Any]] = []
    if arguments.lerobot:
        rows += compare_lerobot(arguments.lerobot, episodes, about, lossless=False)
    if arguments.lossless:
        rows += compare_lerobot(arguments.lossless, episodes, about, lossless=True)
    if arguments.robomimic:
        rows += compare_robomimic(arguments.robomimic, episodes)
    for row in rows:
        print(json.dumps(row))
    return 0 if rows and all(row["ok"] for row in rows) else 1


def write_expected(store_path: Path, npz: Path) -> int:
    """Save the arrays of a store, `<episode>/<key>`; runs in our environment."""
    from toto_robot.data.episodes import EpisodeStore
    from toto_robot.data.recording import tasks_of

    store = EpisodeStore.open(store_path)
    arrays = {f"{index}/{key}": array for index in range(len(store)) for key, array in store.episode(index).items()}
    about = {"fps": store.fps, "tasks": list(tasks_of(store.env)), "episodes": len(store)}
    np.savez_compressed(npz, about=json.dumps(about), **arrays)
    print(f"{npz}: {len(store)} episodes, {store.steps} steps")
    return 0


def read_expected(npz: Path) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """Return the arrays of every episode, and what belongs to all."""
    with np.load(npz) as saved:
        about = json.loads(str(saved["about"]))
        episodes: list[dict[str, np.ndarray]] = [{} for _ in range(about["episodes"])]
        for name in saved.files:
            if "/" in name:
                index, key = name.split("/", 1)
                episodes[int(index)][key] = saved[name]
    return episodes, about


# ------------------------------------------------------------------------------------------------------------- lerobot


def compare_lerobot(
    folder: Path, episodes: list[dict[str, np.ndarray]], about: dict[str, Any], lossless: bool
) -> list[dict[str, Any]]:
    """Open the folder as a LeRobotDataset and compare every step, a window in time, the task and the statistics."""
    dataset_class = _lerobot_class()
    name = "lerobot_lossless" if lossless else "lerobot_video"
    dataset = dataset_class("local/export", root=folder, video_backend="pyav")
    rows = [
        _row(name, "episodes", dataset.num_episodes == len(episodes), dataset.num_episodes),
        _row(name, "fps", dataset.fps == about["fps"], dataset.fps),
    ]
    starts = np.cumsum([0] + [len(episode["action"]) for episode in episodes])
    exact: dict[str, bool] = {}
    mean_levels: dict[str, list[float]] = {}
    neighbours: dict[str, list[list[float]]] = {}
    tasks = set()
    for index, episode in enumerate(episodes):
        for step in range(len(episode["action"])):
            item = dataset[int(starts[index]) + step]
            tasks.add(item["task"])
            for key, array in episode.items():
                if key.startswith(IMAGES):
                    seen = np.rint(item[key].numpy().transpose(1, 2, 0) * 255).astype(np.int16)
                    levels = [float(np.abs(seen - array[at].astype(np.int16)).mean()) for at in _around(step, array)]
                    mean_levels.setdefault(key, []).append(levels[0])
                    neighbours.setdefault(key, []).append(levels)
                else:
                    wanted = _as_lerobot(array[step])
                    same = np.array_equal(np.asarray(item[key].numpy()).reshape(wanted.shape), wanted)
                    exact[key] = exact.get(key, True) and same
    rows += [_row(name, f"{key} equal", same) for key, same in exact.items()]
    for key, levels in neighbours.items():
        own, before, after = np.mean(levels, axis=0)
        shown = {"own": round(own, 3), "before": round(before, 3), "after": round(after, 3)}
        rows.append(_row(name, f"{key} shows its own step", own < min(before, after), shown))
    for key, levels in mean_levels.items():
        limit = 0.0 if lossless else VIDEO_MEAN_LEVELS
        shown = {"mean_levels": round(float(np.mean(levels)), 3), "worst_frame": round(max(levels), 3)}
        rows.append(_row(name, f"{key} within {limit} grey levels", max(levels) <= limit, shown))
    rows.append(_row(name, "task", tasks == set(about["tasks"]), sorted(tasks)))
    rows += _compare_window(dataset_class, folder, name, episodes, starts, about["fps"])
    rows += _compare_statistics(dataset, name, episodes)
    return rows


def _around(step: int, array: np.ndarray) -> tuple[int, int, int]:
    """Return the step, the one before and the one after, inside the episode."""
    return step, max(step - 1, 0), min(step + 1, len(array) - 1)


def _as_lerobot(value: np.ndarray) -> np.ndarray:
    """Return what lerobot hands out: it makes tensors of Python numbers, and float64 becomes torch's float32."""
    return value.astype(np.float32) if value.dtype == np.float64 else value


def _compare_window(
    dataset_class: Any, folder: Path, name: str, episodes: list[dict[str, np.ndarray]], starts: Any, fps: float
) -> list[dict[str, Any]]:
    """Ask for the past and the future of a step in seconds, through a DataLoader, as a policy's training does."""
    import torch

    camera = next(key for key in episodes[0] if key.startswith(IMAGES))
    windows = {"action": [0.0, 1 / fps, 2 / fps], camera: [-1 / fps, 0.0]}
    dataset = dataset_class("local/export", root=folder, video_backend="pyav", delta_timestamps=windows)
    last = len(episodes) - 1
    at = [int(starts[0]) + 3, int(starts[last]), int(starts[last + 1]) - 1]
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(dataset, at), batch_size=3)
    batch = next(iter(loader))
    wanted = []
    for index, step in ((0, 3), (last, 0), (last, len(episodes[last]["action"]) - 1)):
        actions = episodes[index]["action"]
        wanted.append(actions[np.minimum(np.arange(step, step + 3), len(actions) - 1)])
    same = np.array_equal(batch["action"].numpy(), np.stack(wanted))
    padded = batch["action_is_pad"].tolist() == [[False] * 3, [False] * 3, [False, True, True]]
    shape = tuple(batch[camera].shape)
    return [
        _row(name, "actions of a window equal", same),
        _row(name, "padding at an episode's end", padded),
        _row(name, "pictures of a window", shape[:3] == (3, 2, 3), shape),
    ]


def _compare_statistics(dataset: Any, name: str, episodes: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Compare lerobot's view of the statistics with those of all steps."""
    actions = np.concatenate([episode["action"] for episode in episodes]).astype(np.float64)
    truth = {"min": actions.min(0), "max": actions.max(0), "mean": actions.mean(0), "std": actions.std(0)}
    stats = dataset.meta.stats["action"]
    same = all(np.allclose(stats[key], value, rtol=1e-6, atol=1e-9) for key, value in truth.items())
    camera = next(key for key in episodes[0] if key.startswith(IMAGES))
    shape = dataset.meta.stats[camera]["mean"].shape
    return [
        _row(name, "statistics of action", same),
        _row(name, "shape of image statistics", shape == (3, 1, 1), shape),
    ]


@functools.cache  # an operator can be defined once
def _lerobot_class() -> Any:
    """Import LeRobotDataset where torchvision has no compiled operators (it has none for a newer CPU torch).

    torchvision registers a fake of its operator `nms` on import, which fails unless the name is defined. Nothing that
    reads a dataset calls it.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_HOME", tempfile.mkdtemp())
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    LeRobotDataset._keep = library  # the definition lives as long as the object
    return LeRobotDataset


# ----------------------------------------------------------------------------------------------------------- robomimic


def compare_robomimic(file: Path, episodes: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Open the file as robomimic's SequenceDataset and compare every demonstration and a sequence."""
    import robomimic.utils.obs_utils as observation_utils
    from robomimic.utils.dataset import SequenceDataset

    images = {f"{key.removeprefix(IMAGES)}_image": key for key in episodes[0] if key.startswith(IMAGES)}
    numbers = {
        key.removeprefix("observation."): key
        for key in episodes[0]
        if key.startswith("observation.") and not key.startswith(IMAGES)
    }
    modalities = {"low_dim": list(numbers), "rgb": list(images)}
    observation_utils.initialize_obs_utils_with_obs_specs({"obs": modalities})
    there = {theirs: ours for ours, theirs in FIXED.items() if ours in episodes[0]}
    dataset = SequenceDataset(
        hdf5_path=str(file),
        obs_keys=[*numbers, *images],
        dataset_keys=[*there, "dones"],
        seq_length=5,
        load_next_obs=True,
    )
    exact: dict[str, bool] = {}
    for index, episode in enumerate(episodes):
        demo = dataset.get_trajectory_at_index(index)
        for theirs, ours in there.items():
            exact[theirs] = exact.get(theirs, True) and np.array_equal(demo[theirs], episode[ours])
        ends = np.arange(len(episode["action"])) == len(episode["action"]) - 1
        exact["dones"] = exact.get("dones", True) and np.array_equal(demo["dones"], ends)
        for theirs, ours in {**numbers, **images}.items():
            later = np.concatenate([episode[ours][1:], episode[ours][-1:]])
            same = np.array_equal(demo["obs"][theirs], episode[ours])
            exact[f"obs/{theirs}"] = exact.get(f"obs/{theirs}", True) and same
            same = np.array_equal(demo["next_obs"][theirs], later)
            exact[f"next_obs/{theirs}"] = exact.get(f"next_obs/{theirs}", True) and same
    rows = [_row("robomimic", f"{key} equal", same) for key, same in exact.items()]
    steps = sum(len(episode["action"]) for episode in episodes)
    rows.append(_row("robomimic", "demonstrations", dataset.n_demos == len(episodes), dataset.n_demos))
    rows.append(_row("robomimic", "sequences", len(dataset) == steps, len(dataset)))
    sequence = dataset[2]
    same = np.array_equal(sequence["actions"], episodes[0]["action"][2:7])
    rows.append(_row("robomimic", "a sequence of 5 actions equal", same))
    processed = observation_utils.process_obs_dict({key: sequence["obs"][key] for key in images})
    shapes = {key: list(value.shape) for key, value in processed.items()}
    rows.append(_row("robomimic", "its own image processing", all(shape[1] == 3 for shape in shapes.values()), shapes))
    return rows


def _row(format: str, what: str, ok: bool, got: Any = None) -> dict[str, Any]:
    return {"format": format, "what": what, "ok": bool(ok), **({} if got is None else {"got": got})}


if __name__ == "__main__":
    sys.exit(main())
