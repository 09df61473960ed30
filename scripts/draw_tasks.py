"""Draw the pictures of docs/tasks.md: every task from both cameras, lean and full, and randomised starts.

python scripts/draw_tasks.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

TASKS = ("FrankaPick", "FrankaCabinet", "KukaPick", "KukaCabinet")
MOMENTS = (0, 24, 38, 54)  # control steps
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"


def make(task: str, **options: Any) -> Any:
    """Make the bare environment."""
    return gymnasium.make(f"toto_robot/{task}-v0", obs_mode="proprio", **options).unwrapped


def strip(task: str, quality: str, size: int) -> np.ndarray:
    """Return both cameras at some moments of an expert's episode, side by side. (size, 8 * size, 3)"""
    env = make(task, render_quality=quality)
    env.reset(seed=1)
    expert, pictures = env.expert(1), []
    for step in range(MOMENTS[-1] + 1):
        if step in MOMENTS:
            pictures += [env.picture("front", size), env.picture("wrist", size)]
        env.step(expert.act().executed)
    return np.concatenate(pictures, axis=1)


def randomized(task: str, size: int) -> np.ndarray:
    """Return the front camera of some randomised starts."""
    env = make(task, randomize="all")
    pictures = []
    for seed in range(8):
        env.reset(seed=seed)
        pictures.append(env.picture("front", size))
    return np.concatenate(pictures, axis=1)


def main() -> None:
    """Draw them all."""
    for quality in ("lean", "full"):
        save(f"tasks_{quality}.png", [strip(task, quality, 176) for task in TASKS])
    save("tasks_randomized.png", [randomized(task, 176) for task in TASKS])


def save(name: str, rows: list[np.ndarray]) -> None:
    """Stack rows and write a picture of 255 colours."""
    picture = Image.fromarray(np.concatenate(rows)).quantize(255, method=Image.Quantize.MEDIANCUT)
    picture.save(FOLDER / name, optimize=True)
    print(FOLDER / name, (FOLDER / name).stat().st_size)


if __name__ == "__main__":
    main()
