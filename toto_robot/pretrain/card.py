"""What stands on the card of a model that `toto_robot pretrain` or `train-tokenizer` made?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toto_robot.data.frames import FrameStore
from toto_robot.data.sources import kind_of, source_names
from toto_robot.data.tokens import TokenStore
from toto_robot.models.compute import mae_training_flops, toto_training_flops
from toto_robot.models.hub import parameter_count
from toto_robot.models.mae import MAEConfig
from toto_robot.models.model_card import CARD_FILE, ModelCard
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.run_folder import git_commit, read_json, write_text
from toto_robot.tokenizers.load import load_tokenizer
from toto_robot.weights import read_config


def write_card(config: PretrainConfig, run_dir: Path, found: Mapping[str, Any], store: FrameStore | TokenStore) -> Path:
    """Write README.md beside the published weights; a rerun writes the same. `found` is what the stages found out."""
    folder = run_dir / "pretrained_model"
    card = model_card(config, run_dir, found, store)
    write_text(folder / CARD_FILE, card.text(read_config(folder), int(found["parameters"])))
    return folder / CARD_FILE


def model_card(
    config: PretrainConfig, run_dir: Path, found: Mapping[str, Any], store: FrameStore | TokenStore
) -> ModelCard:
    """Return what is known of a training of Toto or MAE; `found` is its summary, `store` what it read."""
    sizes = config.sizes()
    unit = "images" if isinstance(sizes, MAEConfig) else "tokens"
    seen = int(found[f"{unit}_seen"])
    recorded = not (config.data or config.frames or config.tokens)
    return ModelCard(
        data="scripted FrankaPick episodes of our simulation" if recorded else _named(asdict(config)),
        started_from=Path(config.start).resolve().name if config.start else None,
        **_amounts(store),
        seen=seen,
        unit=unit,
        steps=int(found["steps"]),
        flops=mae_training_flops(sizes, seen) if isinstance(sizes, MAEConfig) else toto_training_flops(sizes, seen),
        commit=_commit(run_dir),
        seed=config.seed,
        validation=_validation(found, config.val_fraction),
        licence="apache-2.0" if recorded else None,  # what strangers' videos allow, only they can say
    )


def write_tokenizer_card(run_dir: Path, found: Mapping[str, Any], frames: FrameStore) -> None:
    """Write README.md beside a published tokenizer; a rerun writes the same. `found` is its summary."""
    folder = run_dir / "pretrained_model"
    parameters = parameter_count(load_tokenizer(folder))
    write_text(folder / CARD_FILE, tokenizer_card(run_dir, found, frames).text(read_config(folder), parameters))


def tokenizer_card(run_dir: Path, found: Mapping[str, Any], frames: FrameStore) -> ModelCard:
    """Return what is known of a training of a tokenizer; `found` is its summary.json, `frames` what it read."""
    settings = found["settings"]
    held_out = f"{settings['val_fraction']:.0%} of the videos or episodes" if found["held_out"] else "nothing"
    stability = found.get("stability")
    return ModelCard(
        data=_named(settings),
        **_amounts(frames),
        seen=int(found["images"]),
        unit="images",
        steps=int(found["steps"]),
        commit=_commit(run_dir),
        seed=settings["seed"],
        validation={
            "held out": f"{held_out}; measured on {found['measured_frames']} frames",
            "PSNR": f"{found['psnr_db']} dB",
            "codes used": f"{found['codes_used']} of {found['vocab']}, perplexity {found['perplexity']}",
            "patches without a changed pixel that keep their code": "none seen" if stability is None else stability,
        },
    )


def _amounts(store: FrameStore | TokenStore) -> dict[str, Any]:
    records = store.records
    return {
        "data_sha256": hashlib.sha256(
            repr([(r["name"], r.get("pixels_sha256") or r.get("source_fingerprint")) for r in records]).encode()
        ).hexdigest(),
        "clips": len(records),
        "data_frames": int(store.clip_ends[-1]),
        "hours": _hours(records),
    }


def _named(settings: Mapping[str, Any]) -> str:
    """Name the data without the folders above it: a card travels, the machine's paths do not."""
    given = [(kind, settings.get(kind)) for kind in ("frames", "tokens")]
    paths = [(kind, Path(path).resolve()) for kind, path in given if path]  # a run calls its stores frames and tokens
    names = [f"data {name}" for name in source_names(settings.get("data") or ())]
    names += [f"{kind} {path.parent.name if path.name == kind else path.name}" for kind, path in paths]
    return ", ".join(names)


def _hours(records: list[dict[str, Any]]) -> float | None:
    """Return the hours of all videos; None where the rate of one is not known."""
    videos = [record for record in records if kind_of(record) == "video"]
    if not videos or not all(record.get("fps") for record in videos):
        return None
    return float(sum(record["frames"] / record["fps"] for record in videos)) / 3600


def _commit(run_dir: Path) -> str | None:
    """Return the commit that the run began with."""
    begun = run_dir / "provenance.json"
    return read_json(begun).get("commit") if begun.is_file() else git_commit()


def _validation(found: Mapping[str, Any], val_fraction: float) -> dict[str, object]:
    if found.get("val_loss") is None:
        return {}
    held_out = {"held out": f"{val_fraction:.0%} of the videos or episodes"}
    if "val_unigram" not in found:
        return {**held_out, "loss": f"{found['val_loss']} squared error on hidden, normalised patches"}
    return {
        **held_out,
        "loss": f"{found['val_loss']} nats per token, {found['val_windows']} windows",
        "of the first, of the last frame": f"{found['val_first_frame']}, {found['val_last_frame']} nats per token",
        "entropy of single tokens": f"{found['val_unigram']} nats",
        "most likely token is right": f"{found['val_accuracy']}, from the second frame on",
        "copying the frame before is right": f"{found['val_copy_accuracy']}",
    }
