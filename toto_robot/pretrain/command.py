"""How does `toto_robot pretrain` get from videos to a trained backbone?

data -> frames -> tokenizer -> tokens -> train -> validate -> pictures, each stage done once per run folder. With an MAE
preset the same frames and the same loop train the baseline, and the two token stages fall away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toto_robot import packaged
from toto_robot.data.frames import FrameStore, frame_sources
from toto_robot.data.tokenize import tokenize_sources
from toto_robot.data.tokens import TokenStore, count_used_codes
from toto_robot.encoders.base import resolve_precision
from toto_robot.models.toto import TotoConfig
from toto_robot.pretrain.card import write_card
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.distributed import Processes, started
from toto_robot.pretrain.equal import equalled, shortest_clip
from toto_robot.pretrain.optim import choose_device
from toto_robot.pretrain.stages import Stages
from toto_robot.pretrain.tokenizer import open_frames, prepare, train_tokenizer
from toto_robot.pretrain.tokenizer_config import TrainTokenizerConfig
from toto_robot.pretrain.train_mae import train_mae
from toto_robot.pretrain.train_toto import train_toto
from toto_robot.run_folder import provenance, read_json, write_json
from toto_robot.tokenizers.load import AnyTokenizer, load_tokenizer


def pretrain(config: PretrainConfig, run_dir: Path) -> int:
    """Train Toto on videos, or MAE on the same frames; the same command continues after a kill.

    Leaves `pretrained_model/` (what policies take as encoder, with a model card), `summary.json`, `loss.png`, and
    `continuation.png` or `reconstructions.png`. Without data it records its own in simulation.
    """
    config = equalled(config)
    with started(config.device, config.replicas) as processes:
        processes.share(config.computed_at_once())  # refuses now what would fail after hours
        _pretrain(config, run_dir, processes)
    return 0


def _pretrain(config: PretrainConfig, run_dir: Path, processes: Processes) -> None:
    stages = Stages(run_dir, config.deciding(), processes=processes)
    frames = None if config.tokens and not config.frames else _frames(config, run_dir, stages)
    if config.is_mae:
        assert frames is not None
        found = train_mae(config, run_dir, stages, frames, processes)
        data: FrameStore | TokenStore = frames
    else:
        tokenizer_dir = _tokenizer_dir(config, run_dir, stages, frames)
        data = _tokens(config, run_dir, stages, frames, tokenizer_dir)
        found = train_toto(config, run_dir, stages, data, tokenizer_dir, frames, processes)
    if processes.is_first:
        write_card(config, run_dir, found, data)
        summary = {"model": config.model, **found, "minutes": stages.minutes, "settings": config.deciding()}
        write_json(run_dir / "summary.json", {key: value for key, value in summary.items() if key != "summary"})
        print(f"model in {run_dir / 'pretrained_model'}, {sum(stages.minutes.values()):.1f} min in all")


def _frames(config: PretrainConfig, run_dir: Path, stages: Stages) -> FrameStore:
    """Do the stages from nothing, or from videos, to a frame store; or open the one that was given."""
    sizes = config.sizes()
    if config.frames:
        return open_frames(Path(config.frames), sizes.image_px)
    data = config.data
    if data is None:
        data = (str(run_dir / "video"),)
        stages.run("data", lambda: _collect(config, run_dir))
    min_frames = shortest_clip(config)
    out = run_dir / "frames"
    stages.run(
        "frames", lambda: prepare(data, out, sizes.image_px, config.limit_frames, min_frames, config.limit_files)
    )
    return open_frames(out, sizes.image_px)


def _collect(config: PretrainConfig, run_dir: Path) -> dict[str, Any]:
    """Record the default video by the command of that name: this package knows neither robots nor environments."""
    from toto_robot.cli import run_command

    out = run_dir / "video"
    quoted = "'" + str(out).replace("\\", "\\\\").replace("'", "\\'") + "'"  # Hydra's quoting of any path
    size = f"image_size={config.sizes().image_px}"
    code = run_command(
        "collect", ["env=franka_pick", f"episodes={config.episodes}", size, f"out={quoted}"], run_dir / "collect"
    )
    if code != 0:
        raise ValueError(f"collect ended with exit code {code}; give your own videos with data=<folder>")
    return {"summary": f"{config.episodes} episodes in {out}", "episodes": config.episodes}


def _tokenizer_dir(config: PretrainConfig, run_dir: Path, stages: Stages, frames: FrameStore | None) -> Path:
    """Return the folder of the tokenizer that was given, or train one on the same frames."""
    if config.tokenizer:
        return packaged.model_folder(config.tokenizer)
    assert frames is not None
    sizes = config.sizes()
    assert isinstance(sizes, TotoConfig)
    settings = TrainTokenizerConfig(
        frames=str(frames.path.resolve()), image_px=sizes.image_px,
        model=config.tokenizer_model, vocab=sizes.visual_vocab,
        steps=config.tokenizer_steps, weights=config.weights,
        val_fraction=config.val_fraction, seed=config.seed, device=config.device, precision=config.precision,
        checkpoint_every=config.checkpoint_every, eval_every=config.eval_every,
    )  # fmt: skip
    out = run_dir / "tokenizer"

    def work() -> dict[str, Any]:
        train_tokenizer(settings, out)
        found = read_json(out / "summary.json")
        return {
            "summary": f"PSNR {found['psnr_db']:.1f} dB, {found['codes_used']} of {found['vocab']} codes",
            **{key: found[key] for key in ("psnr_db", "codes_used", "vocab", "perplexity", "stability")},
        }

    stages.run("tokenizer", work)
    return out / "pretrained_model"


def _tokens(
    config: PretrainConfig, run_dir: Path, stages: Stages, frames: FrameStore | None, tokenizer_dir: Path
) -> TokenStore:
    """Return the tokens that were given, or tokenize the frames; ValueError where they are another tokenizer's."""
    tokenizer = load_tokenizer(tokenizer_dir)
    _check_tokenizer(tokenizer, config, tokenizer_dir)
    if config.tokens:
        store = TokenStore.open(Path(config.tokens))
        if store.tokenizer != tokenizer.fingerprint():
            raise ValueError(
                f"{config.tokens} was made by another tokenizer than {tokenizer_dir}; give the one that made it"
            )
        return store
    assert frames is not None
    out = run_dir / "tokens"

    def work() -> dict[str, Any]:
        device = choose_device(config.device)
        # As the encoder will tokenize on this machine: another precision moves a few per cent of the codes.
        precision = resolve_precision(config.precision, device)
        about = provenance(tokenizer=tokenizer.fingerprint(), frames=frames.fingerprint())
        tokenizer.to(device)
        made = tokenize_sources(
            frame_sources(frames), tokenizer, out,
            image_px=frames.image_px, device=device, precision=precision, provenance=about,
        )  # fmt: skip
        count, used = len(made.tokens) * made.tokens_per_frame, count_used_codes(made)
        return {"summary": f"{count} tokens, {used} of {made.vocab} codes", "tokens": count, "codes_used": used}

    stages.run("tokens", work)
    return TokenStore.open(out)


def _check_tokenizer(tokenizer: AnyTokenizer, config: PretrainConfig, folder: Path) -> None:
    sizes = config.sizes()
    assert isinstance(sizes, TotoConfig)
    made = (sizes.image_px // tokenizer.stride) ** 2
    if tokenizer.vocab != sizes.visual_vocab or made != sizes.tokens_per_frame:
        raise ValueError(
            f"{config.model} expects {sizes.visual_vocab} codes and {sizes.tokens_per_frame} tokens a frame of "
            f"{sizes.image_px} px; the tokenizer in {folder} has {tokenizer.vocab} codes and makes {made} tokens of it"
        )
