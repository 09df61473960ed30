"""Which trained weights come with the package, and where do they lie?

A folder here a name, in the layout of `<run>/pretrained_model`, its tensors bfloat16 (they are loaded as float32).
`scripts/package_weights.py` makes them. A string that is such a name means the packaged weights whatever the working
directory holds; a folder of yours that is called the same is "./<name>", or a Path.
"""

from __future__ import annotations

from pathlib import Path

from toto_robot.run_folder import read_json

FOLDER = Path(__file__).resolve().parent
BUDGET_BYTES = 25_000_000  # of all together: a wheel should stay small
REFERENCE = "packaged"  # model_type of a config.json that only says which name is meant


def names() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob("[!.]*/config.json"))  # with a dot: half written


def model_folder(name_or_folder: str | Path) -> Path:
    """Return the folder of packaged weights (`<name>`, `<name>/tokenizer`), and any other folder as it is."""
    folder = Path(name_or_folder)
    if isinstance(name_or_folder, str) and name_or_folder.split("/")[0] in names():
        folder = FOLDER / name_or_folder
    config = folder / "config.json"
    refers = read_json(config) if config.is_file() else None
    return FOLDER / refers["name"] if isinstance(refers, dict) and refers.get("model_type") == REFERENCE else folder
