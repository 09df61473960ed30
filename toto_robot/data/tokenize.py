"""How do videos become a token store, by one process or many, and go on after a kill?

A manifest of units is planned once (manifest.py); each process does its share of the units that have no shard yet
(share.py, token_job.py), and whoever finds that none is missing lists them in the root: the store is finished. Nothing
else is agreed on, so any number of processes may come, die and come again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toto_robot.data.frames import FrameStore, frame_sources, is_frame_store
from toto_robot.data.manifest import RESIZE, Manifest, changed_since, read_entries
from toto_robot.data.share import Share, local_rank, processes_here, share_from
from toto_robot.data.sources import Source, find_sources
from toto_robot.data.token_job import TokenJob
from toto_robot.data.token_shards import create_store, first_unfinished, remove_leftovers, seal_store, skipped_by_unit
from toto_robot.data.tokens import MANIFEST, TokenSpec, TokenStore, count_used_codes, open_root
from toto_robot.run_folder import provenance as run_provenance
from toto_robot.run_folder import write_text
from toto_robot.tokenizers.base import Tokenizer
from toto_robot.tokenizers.load import load_tokenizer

PRECISIONS = ("fp32", "bf16")
ENGINES = ("local", "ray", "plan")


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """What to turn into tokens, with what, and by whom."""

    MAY_CHANGE = ("batch_size", "device", "decoders", "engine", "workers", "retry")

    data: tuple[str, ...]  # folders of videos, pictures, episodes; ego4d:<folder>; or one frame store
    tokenizer: str  # folder of a saved tokenizer (`train-tokenizer` leaves it in pretrained_model), or a packaged name
    out: str | None = None  # token store to write or continue; default <run>/tokens
    image_px: int = 64  # side of the square frames, pixels
    limit_files: tuple[int, ...] | None = None  # use only so many videos, episodes or pictures (one number: of each)
    limit_frames: int | None = None  # take sources up to that many frames, by their headers; default all
    min_frames: int = 16  # shorter videos are left out
    unit_frames: int = 16384  # about so many frames are one unit of work and one shard
    batch_size: int = 64  # frames per call of the tokenizer
    device: str = "auto"  # auto | cpu | cuda | cuda:<n>
    precision: str = "fp32"  # fp32 | bf16 (a few per cent of the tokens differ)
    decoders: int = 0  # threads that decode; 0: one for every two cores
    engine: str = "local"  # local (this process's share) | ray (workers on a Ray cluster) | plan (the manifest only)
    workers: int = 2  # engine=ray: how many actors, each with a tokenizer of its own
    retry: bool = False  # try sources again that were left out; those that have changed are tried anyway

    def __post_init__(self) -> None:
        if self.image_px < 8:
            raise ValueError(f"image_px must be at least 8, got {self.image_px}")
        if self.batch_size < 1 or self.unit_frames < 1 or self.workers < 1 or self.decoders < 0:
            raise ValueError("batch_size, unit_frames and workers must be at least 1, decoders at least 0")
        if self.min_frames < 1 or (self.limit_frames is not None and self.limit_frames < self.min_frames):
            raise ValueError(f"1 <= min_frames <= limit_frames must hold; got {self.min_frames}, {self.limit_frames}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")

    def settings(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return what the manifest holds: all that decides what is encoded, and how."""
        return job_settings(
            tokenizer,
            image_px=self.image_px,
            precision=self.precision,
            min_frames=self.min_frames,
            limit_frames=self.limit_frames,
            unit_frames=self.unit_frames,
        )


def tokenize(config: TokenizeConfig, run_dir: Path) -> int:
    """Do this process's share of turning `data` into tokens; the same command continues, and adds new files."""
    device = choose_job_device(config.device)
    tokenizer = load_tokenizer(config.tokenizer, device)
    out = Path(config.out) if config.out else run_dir / "tokens"
    sources = job_sources(config)
    about = run_provenance(data=list(config.data), tokenizer=tokenizer.fingerprint())
    share = share_from() if config.engine == "local" else Share()
    manifest = open_manifest(out, sources, config.settings(tokenizer), about, share, retry=config.retry)
    if config.engine == "plan":
        print(f"{out / MANIFEST}: {len(manifest.units)} units of {len(sources)} sources")
        return 0
    if config.engine == "ray":
        from toto_robot.data.tokenize_ray import run_with_ray

        run_with_ray(config, out, manifest, first_unfinished(out, len(manifest.units)))
    else:
        _run_share(config, out, manifest, sources, tokenizer, device, about, share)
    missing = first_unfinished(out, len(manifest.units))
    if missing:
        print(f"{out}: this process's units are done, {len(missing)} of {len(manifest.units)} are left to others")
        return 0
    _report(seal_store(out, TokenSpec.of(manifest.settings), len(manifest.units)))
    if share.world_size == 1:
        remove_leftovers(out)
    return 0


def tokenize_sources(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    out: Path,
    *,
    image_px: int,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    min_frames: int = 1,
    limit_frames: int | None = None,
    unit_frames: int = TokenizeConfig.unit_frames,
    decoders: int = 1,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TokenStore:
    """Encode every source that `out` does not hold yet in this process, and return the finished store.

    ValueError where `out` was made with other settings, or no source can be used; OSError where the disk is full.
    """
    settings = job_settings(
        tokenizer, image_px=image_px, precision=precision, min_frames=min_frames, limit_frames=limit_frames,
        unit_frames=unit_frames,
    )  # fmt: skip
    about = dict(provenance or {})
    manifest = open_manifest(out, sources, settings, about, Share(), progress=progress)
    job = TokenJob(
        out, manifest, sources, tokenizer,
        batch_size=batch_size, device=device, decoders=decoders, provenance=about,
    )  # fmt: skip
    for _ in job.run(first_unfinished(out, len(manifest.units)), progress=progress):
        pass
    remove_leftovers(out)
    return seal_store(out, TokenSpec.of(manifest.settings), len(manifest.units))


def job_settings(
    tokenizer: Tokenizer,
    *,
    image_px: int,
    precision: str,
    min_frames: int,
    limit_frames: int | None,
    unit_frames: int,
) -> dict[str, Any]:
    """Return the settings of a manifest; ValueError where the frames do not divide into the tokenizer's patches."""
    if image_px % tokenizer.stride:
        raise ValueError(f"frames of {image_px} px do not divide into patches of {tokenizer.stride} px")
    side = image_px // tokenizer.stride
    spec = TokenSpec(
        grid=(side, side),
        vocab=tokenizer.vocab,
        image_px=image_px,
        tokenizer=tokenizer.fingerprint(),
        precision=precision,
    )
    limits = {"min_frames": min_frames, "limit_frames": limit_frames, "unit_frames": unit_frames}
    return {**spec.attributes(), **limits, "resize": RESIZE}


def open_manifest(
    out: Path,
    sources: Sequence[Source],
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    share: Share,
    *,
    retry: bool = False,
    progress: bool = True,
) -> Manifest:
    """Return the manifest of the job in `out`: planned now, or before, with the sources that came since.

    Where several processes work they must agree, so only a single one adds what came since. ValueError where `out` was
    made with other settings, or holds something else.
    """
    if not (out / MANIFEST).exists():
        planned = Manifest(settings, ()).extended(read_entries(sources, progress=progress))
        create_store(out, TokenSpec.of(settings), planned.text(), about)
    open_root(out)
    manifest = Manifest.read(out / MANIFEST)
    if manifest.settings != settings:
        changed = [key for key in settings if manifest.settings.get(key) != settings[key]]
        what = ", ".join(f"{key} {_short(manifest.settings.get(key))}, not {_short(settings[key])}" for key in changed)
        raise ValueError(f"{out} was made with {what}; delete it or use another folder")
    skipped = skipped_by_unit(out) if share.world_size == 1 else {}
    new = changed_since(manifest, sources, skipped, retry=retry)
    if not new:
        return manifest
    if share.world_size > 1:
        print(f"{len(new)} sources came or changed since the manifest was made: a single process can add them later")
        return manifest
    extended = manifest.extended(read_entries(new, progress=progress))
    write_text(out / MANIFEST, extended.text())
    return extended


def job_sources(config: TokenizeConfig) -> list[Source]:
    """Return what is behind `data`: videos and episodes, or the clips of a frame store."""
    stores = [path for path in config.data if is_frame_store(Path(path))]
    if not stores:
        return find_sources(*config.data, limits=config.limit_files or ())
    if len(config.data) > 1 or config.limit_files:
        raise ValueError(f"{stores[0]} is a frame store: it is taken whole and alone; give the videos themselves")
    frames = FrameStore.open(Path(stores[0]))
    if frames.image_px != config.image_px:
        raise ValueError(f"{stores[0]} holds frames of {frames.image_px} px; set image_px={frames.image_px}")
    return frame_sources(frames)


def choose_job_device(name: str) -> str:
    """Return the device of this process: where several share a machine, each takes the GPU of its number."""
    if name != "auto":
        return name
    return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def decoder_threads(config: TokenizeConfig) -> int:
    """Return how many threads decode: by default half of the cores that are this process's."""
    return config.decoders or max(1, len(os.sched_getaffinity(0)) // processes_here() // 2)


def _run_share(
    config: TokenizeConfig,
    out: Path,
    manifest: Manifest,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    device: str,
    about: Mapping[str, Any],
    share: Share,
) -> None:
    mine = set(share.of(len(manifest.units)))
    todo = [unit for unit in first_unfinished(out, len(manifest.units)) if unit in mine]
    if share.world_size > 1:
        print(f"process {share.rank} of {share.world_size}: {len(todo)} of {len(manifest.units)} units")
    job = TokenJob(
        out, manifest, sources, tokenizer,
        batch_size=config.batch_size, device=device, decoders=decoder_threads(config),
        provenance={**about, "rank": share.rank, "world_size": share.world_size, "batch_size": config.batch_size},
    )  # fmt: skip
    for _ in job.run(todo):
        pass


def _report(tokens: TokenStore) -> None:
    rows, used, skipped = len(tokens.tokens), count_used_codes(tokens), len(tokens.skipped)
    print(f"{tokens.path}: {len(tokens)} clips, {rows} frames, {rows * tokens.tokens_per_frame} tokens")
    print(f"{used} of {tokens.vocab} codes are used")
    if skipped:
        print(f"{skipped} sources were left out: {tokens.path / 'skipped.json'}")


def _short(value: object) -> str:
    return f"{value:.12}" if isinstance(value, str) else str(value)
