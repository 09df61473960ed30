"""Put a trained run's weights into the package: bfloat16, with a card that says what the rounding changed.

python scripts/package_weights.py <run> <name> --data "what it was trained on" [--licence apache-2.0]

<run> is the run folder of `toto_robot pretrain` or `train-tokenizer`, with its frames; where its settings name them by
a relative path, call this from the same working directory. Package the tokenizer first: a Toto of the same one then
only names it. What is too large for the budget of all together is refused.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from toto_robot import packaged
from toto_robot.data.frames import FrameStore
from toto_robot.encoders.load import load_encoder
from toto_robot.models.generate import surprise
from toto_robot.models.hub import describe, from_pretrained, parameter_count
from toto_robot.models.model_card import CARD_FILE, ModelCard
from toto_robot.models.toto import Toto
from toto_robot.pretrain.card import model_card, tokenizer_card
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.run_folder import read_json, write_json, write_text
from toto_robot.tokenizers.load import AnyTokenizer, load_tokenizer, save_tokenizer
from toto_robot.weights import read_config, write_model

_PICTURES = 64  # frames on which both are compared
_CLIPS = 8  # windows whose next tokens are predicted by both


def package(run: Path, name: str, *, data: str, licence: str | None) -> Path:
    """Write `<package>/packaged/<name>` and return it; ValueError where all together would exceed the budget."""
    source, final = run / "pretrained_model", packaged.FOLDER / name
    kind, frames = read_config(source)["model_type"], _frames(run)
    partial = final.with_name(f".{name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if kind in ("toto", "mae"):
            model = rounded(from_pretrained(source))
            write_model(partial, describe(model), _halved(model))
            if kind == "toto":
                _write_tokenizer(rounded(load_tokenizer(source / "tokenizer")), partial / "tokenizer")
            changed = encoder_changes(source, partial, frames)
        else:
            model = rounded(load_tokenizer(source))
            _write_tokenizer(model, partial, may_refer=False)
            changed = tokenizer_changes(load_tokenizer(source), model, frames)
        _check_budget(partial, name)
        card = dataclasses.replace(_card(run, kind, frames), data=data, licence=licence)
        text = card.text(read_config(source), parameter_count(model))
        write_text(partial / CARD_FILE, text + _section(name, kind, _size(partial), changed))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def rounded(model: Any) -> Any:
    """Return a copy whose weights are float32 but no finer than bfloat16: what the packaged ones are when loaded."""
    twin = copy.deepcopy(model)
    for tensor in twin.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(torch.bfloat16))
    return twin


def encoder_changes(source: Path, partial: Path, frames: FrameStore) -> dict[str, str]:
    """Return, in words, how far features and next-token loss are from those of the weights that were trained."""
    pictures = frames.read(np.linspace(0, len(frames.frames) - 1, _PICTURES).round().astype(int))
    encoders = [load_encoder(folder, precision="fp32") for folder in (source, partial)]
    before, after = (encoder.encode(pictures) for encoder in encoders)
    spread = (before - before.mean((0, 1))).square().mean().sqrt()
    change = (after - before).square().mean().sqrt() / spread
    changes = {f"features of layer {encoders[0].layers[0]}": f"{change:.2%} RMS"}
    if encoders[0].name != "toto":
        return changes
    codes = [encoder.codes(pictures) for encoder in encoders]  # type: ignore[attr-defined]
    changes["codes of the tokenizer that are the same"] = f"{(codes[0] == codes[1]).float().mean():.2%}"
    nats = [_nats(folder, frames) for folder in (source, partial)]
    changes["nats per token"] = f"{nats[0]:.4f} before, {nats[1]:.4f} after, each on its own tokens, {_CLIPS} windows"
    return changes


def tokenizer_changes(before: AnyTokenizer, after: AnyTokenizer, frames: FrameStore) -> dict[str, str]:
    """Return, in words, how many codes are others and how good the pictures are."""
    pictures = torch.from_numpy(frames.read(np.linspace(0, len(frames.frames) - 1, _PICTURES).round().astype(int)))
    with torch.no_grad():
        codes = [tokenizer.encode(pictures) for tokenizer in (before, after)]
        made = [tokenizer.decode(code) for tokenizer, code in zip((before, after), codes, strict=True)]
    psnr_db = [10 * np.log10(255**2 / float((one.double() - pictures.double()).square().mean())) for one in made]
    return {
        "codes that are the same": f"{(codes[0] == codes[1]).float().mean():.2%}",
        "PSNR": f"{psnr_db[0]:.2f} dB before, {psnr_db[1]:.2f} dB after",
    }


def _nats(folder: Path, frames: FrameStore) -> float:
    """Return the next-token loss on windows spread over the clips that are long enough."""
    encoder, model = load_encoder(folder, precision="fp32"), from_pretrained(folder)
    assert isinstance(model, Toto)
    T, lengths = model.config.frames, np.diff(frames.clip_ends, prepend=0)
    long_enough = np.flatnonzero(lengths >= T)
    if not len(long_enough):
        raise ValueError(f"{frames.path} has no clip of the {T} frames of a window")
    chosen = long_enough[np.unique(np.linspace(0, len(long_enough) - 1, _CLIPS).round().astype(int))]
    windows = [frames.clip(int(frames.clip_ends[clip] - lengths[clip]), T) for clip in chosen]
    codes = torch.stack([encoder.codes(window) for window in windows])  # type: ignore[attr-defined]
    return float(surprise(model, codes).mean())


def _halved(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _write_tokenizer(tokenizer: AnyTokenizer, folder: Path, *, may_refer: bool = True) -> None:
    """Write a tokenizer, or only the name of the packaged one that is the same."""
    for name in packaged.names() if may_refer else ():
        kind = read_config(packaged.FOLDER / name)["model_type"]
        if kind not in ("toto", "mae") and load_tokenizer(name).fingerprint() == tokenizer.fingerprint():
            write_json(folder / "config.json", {"model_type": packaged.REFERENCE, "name": name})
            return
    save_tokenizer(tokenizer, folder)
    write_model(folder, read_json(folder / "config.json"), _halved(tokenizer))


def _check_budget(partial: Path, name: str) -> None:
    others = {other: _size(packaged.FOLDER / other) for other in packaged.names() if other != name}
    total = _size(partial) + sum(others.values())
    if total > packaged.BUDGET_BYTES:
        raise ValueError(
            f"{name} has {_size(partial):,} bytes and there are {others}: {total:,} together, "
            f"{packaged.BUDGET_BYTES:,} are allowed; package a smaller model, or remove one"
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _frames(run: Path) -> FrameStore:
    given = _summary(run)["settings"].get("frames")
    return FrameStore.open(Path(given) if given else run / "frames")


def _card(run: Path, kind: str, frames: FrameStore) -> ModelCard:
    found = _summary(run)
    if kind not in ("toto", "mae"):
        return tokenizer_card(run, found, frames)
    known = {field.name for field in dataclasses.fields(PretrainConfig)}
    settings = {key: value for key, value in found["settings"].items() if key in known}  # of an older version, too
    return model_card(PretrainConfig(**settings), run, found, frames)


def _summary(run: Path) -> dict[str, Any]:
    """Return summary.json with settings as their dataclass has them."""
    found = read_json(run / "summary.json")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in found["settings"].items()}
    if isinstance(settings.get("data"), str):  # before several sources could be mixed
        settings["data"] = (settings["data"],)
    return {**found, "settings": settings}


def _section(name: str, kind: str, size_bytes: int, changed: dict[str, str]) -> str:
    load = "load_encoder" if kind in ("toto", "mae") else "load_tokenizer"
    rows = {
        "load it as": f"`{load}({name!r})`, or give the name where a command takes a folder",
        "weights": f"bfloat16, loaded as float32; {size_bytes:,} bytes with its configuration",
        **{f"after rounding: {what}": value for what, value in changed.items()},
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["", "## Packaged", "", "| | |", "|---|---|", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="such as toto-small-sim")
    parser.add_argument("--data", required=True, help="what it was trained on, in words")
    parser.add_argument("--licence", help="SPDX identifier of the weights' licence")
    given = parser.parse_args(arguments)
    folder = package(given.run, given.name, data=given.data, licence=given.licence)
    print((folder / CARD_FILE).read_text())


if __name__ == "__main__":
    main()
