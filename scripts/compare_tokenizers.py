r"""Which tokenizer is how good on the same frames: pictures, use of codes, stillness of codes, cost?

    python scripts/compare_tokenizers.py frames=outputs/pretrain/default/frames a=outputs/a/pretrained_model \
        b=outputs/b/pretrained_model [teacher=a] [toto=outputs/pretrain/default/pretrained_model] [out=table.md]

Prints, and writes to `out`, a markdown table with a row for each name=<tokenizer folder>. All are measured on the same
held-out runs of 16 neighbouring frames (`val_fraction` and `seed` divide as training does). With `teacher` each row has
its agreement with that tokenizer's codes; with `toto`, a model on the teacher's tokens, its nats a token. Those two are
for tokenizers with the teacher's codes: its students. frames/s is of encoding a batch of 32, on OMP_NUM_THREADS
threads, in the precision that training chooses.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from toto_robot.data.frames import FrameStore
from toto_robot.encoders.base import resolve_precision
from toto_robot.models.toto import Toto
from toto_robot.pretrain.clips import divide
from toto_robot.pretrain.tokenizer_measures import (
    NEAR_LEVELS,
    agreement,
    cost,
    load_toto_of,
    measure,
    measured_runs,
    next_token_nats,
)
from toto_robot.run_folder import git_commit, machine, write_text
from toto_robot.tokenizers.load import AnyTokenizer, load_tokenizer

OPTIONS = ("frames", "teacher", "toto", "out", "val_fraction", "seed")
COLUMNS = {
    "psnr_db": "PSNR dB",
    "codes_used": "codes used",
    "perplexity": "perplexity",
    "stability": "still patches keep their code",
    "stability_near": f"moved by <= {NEAR_LEVELS} grey levels",
    "encoder_gflop": "encoder GFLOP a frame",
    "encoder_parameters": "encoder parameters",
    "frames_per_s": "frames/s",
    "agreement": "agreement",
    "toto_nats": "Toto nats/token",
}


def rows_of(
    tokenizers: Mapping[str, AnyTokenizer],
    frames: FrameStore,
    *,
    val_fraction: float = 0.05,
    seed: int = 0,
    teacher: str | None = None,
    toto: Toto | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the measures of each tokenizer, by name; `teacher` is one of the names."""
    division = divide(frames.clip_ends, frames.records, val_fraction, seed)
    clips = division.held_out if len(division.held_out) else division.training
    precision = resolve_precision("auto", torch.device("cpu"))
    runs = measured_runs(division, clips)
    rows: dict[str, dict[str, Any]] = {}
    for name, tokenizer in tqdm(tokenizers.items(), desc="tokenizers", unit="tokenizer"):
        rows[name] = {**measure(tokenizer, frames, runs, precision), **cost(tokenizer, frames.image_px, precision)}
        if teacher is None or tokenizer.vocab != tokenizers[teacher].vocab:
            continue
        rows[name]["agreement"] = agreement(tokenizers[teacher], tokenizer, frames, runs, precision)
        if toto is not None:
            windows = measured_runs(division, clips, toto.config.frames)
            rows[name]["toto_nats"] = round(next_token_nats(toto, tokenizer, frames, windows, precision), 4)
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return rows by name as a markdown table, without the columns that no row has."""
    there = [key for key in COLUMNS if any(row.get(key) is not None for row in rows.values())]
    lines = ["| tokenizer | " + " | ".join(COLUMNS[key] for key in there) + " |", "|---" * (len(there) + 1) + "|"]
    for name, row in rows.items():
        cells = ["-" if row.get(key) is None else _cell(key, row) for key in there]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Measure, print and write; 2 with a line on stderr where the arguments are wrong."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    folders = {name: folder for name, folder in given.items() if name not in OPTIONS}
    teacher, toto = given.get("teacher"), given.get("toto")
    if len(given) != len(arguments) or "frames" not in given or not folders:
        print(f"expected frames=<frame store> and name=<tokenizer folder>, got {arguments}", file=sys.stderr)
        return 2
    if (teacher and teacher not in folders) or (toto and not teacher):
        print(f"teacher must be one of {', '.join(folders)}, and toto needs one, got {teacher}", file=sys.stderr)
        return 2
    tokenizers = {name: load_tokenizer(folder) for name, folder in folders.items()}
    rows = rows_of(
        tokenizers,
        FrameStore.open(Path(given["frames"])),
        val_fraction=float(given.get("val_fraction", 0.05)),
        seed=int(given.get("seed", 0)),
        teacher=teacher,
        toto=load_toto_of(toto, tokenizers[teacher]) if toto and teacher else None,
    )
    cores = f"{torch.get_num_threads()} threads of {machine()['processor']}"
    text = table(rows) + f"\n{git_commit()}, {cores}, {next(iter(rows.values()))['measured_frames']} held-out frames\n"
    print(text)
    if "out" in given:
        write_text(Path(given["out"]), text)
    return 0


def _cell(key: str, row: Mapping[str, Any]) -> str:
    value = row[key]
    if key == "codes_used":
        return f"{value} of {row['vocab']}"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
