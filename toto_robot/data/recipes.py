"""Which files of the paper's data sets train, as those lie on disk, and how often is each data set sampled?

`imagenet:/data/imagenet` in place of a folder finds the training files where that data set's own download puts them,
and nothing else: no validation split, no second copy in another resolution, no annotations. Weights are Toto's
(arXiv 2501.05453): 20, 10, 10 and 60 % of the samples; videos are sampled every 4th frame (`strides=4`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toto_robot.data.images import EXTENSIONS as PICTURES
from toto_robot.data.sampling import Kind


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One data set: its kind, its percent of the samples, and the folders that its files lie in."""

    kind: Kind
    percent: float
    layouts: tuple[str, ...]  # patterns of folders below the one that is given; the first with files in it counts
    extensions: tuple[str, ...]


RECIPES: Mapping[str, Recipe] = {
    "imagenet": Recipe(  # image-net.org's train archive unpacked; Kaggle's; the 21k archive, which has no splits
        kind="images", percent=20, extensions=PICTURES,
        layouts=("train/n[0-9]*", "ILSVRC/Data/CLS-LOC/train/n[0-9]*", "n[0-9]*"),
    ),
    "kinetics600": Recipe(  # by class, as most downloaders write; flat, as in the CVDF archives
        kind="video", percent=10, extensions=(".mp4", ".mkv", ".webm"), layouts=("train/*", "train"),
    ),
    "ego4d": Recipe(  # ego4d CLI; the copies of 540 px hold the same videos and decode many times faster
        kind="video", percent=10, extensions=(".mp4",),
        layouts=tuple(f"{v}/{kind}" for kind in ("video_540ss", "full_scale", "clips") for v in ("v2", "v1")),
    ),
    "howto100m": Recipe(
        kind="video", percent=60, extensions=(".mp4", ".webm", ".mkv"), layouts=("videos", "videos/*"),
    ),
}  # fmt: skip


def recipe_of(data: str | Path) -> tuple[str | None, Path]:
    """Split `<recipe>:<folder>`; a path without a recipe comes back with None.

    ValueError where what stands before the colon is no recipe, and no such path exists.
    """
    name, colon, folder = str(data).partition(":")
    if name in RECIPES and colon:
        return name, Path(folder)
    if colon and "/" not in name and not Path(data).exists():
        raise ValueError(f"{data}: there is no recipe {name!r}; recipes are {', '.join(RECIPES)}, anything else a path")
    return None, Path(data)


def recipe_files(name: str, folder: Path) -> list[Path]:
    """Return the training files of data set `name` below `folder`, sorted.

    ValueError, with what was expected and what lies there, where the folder is laid out in no known way.
    """
    recipe = RECIPES[name]
    for layout in recipe.layouts:
        files = sorted(
            file
            for parent in folder.glob(layout)
            if parent.is_dir()
            for file in parent.iterdir()
            if file.suffix.lower() in recipe.extensions and not file.name.startswith(".")
        )
        if files:
            print(f"{name}: {len(files)} files in {folder / layout}")
            return files
    expected = f"{' or '.join(recipe.extensions)} files in {' or '.join(f'{layout}/' for layout in recipe.layouts)}"
    raise ValueError(
        f"{folder} is not {name} as its download lies on disk: expected {expected}; found {_there(folder)}"
    )


def paper_weights(names: Sequence[str]) -> dict[str, float] | None:
    """Return the paper's weights where all of several sources are its data sets, else None."""
    if len(names) < 2 or not set(names) <= set(RECIPES):
        return None
    return {name: RECIPES[name].percent for name in names}


def _there(folder: Path) -> str:
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:6]) or "nothing"
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown
