"""How does a published tokenizer, OpenAI's dVAE or a VQGAN of taming-transformers, become a folder of ours?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toto_robot import weights
from toto_robot.foreign_weights import Checkpoint, state_dict
from toto_robot.run_folder import read_json, write_json
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, dvae_preset
from toto_robot.tokenizers.load import AnyTokenizer, save_tokenizer
from toto_robot.tokenizers.vqgan import VQGAN, VQGANConfig

IMPORTED_FILE = "imported.json"
FORMATS = ("dalle", "taming")
_LOSS = "loss."  # taming's checkpoints carry their training loss, a VGG and a discriminator
_DALLE_NAMES = {"w": "weight", "b": "bias"}


@dataclass(frozen=True, kw_only=True)
class ImportTokenizerConfig:
    """Which published checkpoint to read, and where to."""

    source: str  # the file, or its folder: encoder.pkl and decoder.pkl (dalle), or one .ckpt (taming)
    format: str  # dalle | taming
    out: str | None = None  # folder to write; default <run>/pretrained_model
    sha256: str | None = None  # refuse the checkpoint (dalle: encoder.pkl) if this is not its SHA-256
    decoder_sha256: str | None = None  # the same for decoder.pkl of dalle

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.format != "dalle" and self.decoder_sha256:
            raise ValueError("decoder_sha256 is for format=dalle, which comes in two files")
        for name in ("sha256", "decoder_sha256"):
            given = getattr(self, name)
            if given is not None and not re.fullmatch(r"(sha256:)?[0-9a-fA-F]{64}", given):
                raise ValueError(f"{name} must be 64 hexadecimal digits, got {given!r}")


def import_tokenizer(config: ImportTokenizerConfig, run_dir: Path) -> int:
    """Read a published tokenizer, running nothing that the file holds, and write safetensors and config.json.

    Published files are pickles, which can run anything when loaded with torch.load; here they are only described. The
    folder that comes out is taken wherever a tokenizer is (`tokenize tokenizer=<folder>`).
    """
    out = Path(config.out) if config.out else run_dir / "pretrained_model"
    source = Path(config.source)
    tokenizer: AnyTokenizer
    if config.format == "dalle":
        tokenizer, hashes = read_dalle(source, sha256=config.sha256, decoder_sha256=config.decoder_sha256)
    else:
        tokenizer, hashes = read_taming(source, sha256=config.sha256)
    if (out / weights.CONFIG_FILE).exists() and not _is_import_of(out, hashes):
        raise ValueError(f"{out} holds another model; choose another folder with out=<folder>, or delete it")
    write_json(out / IMPORTED_FILE, {"format": config.format, "sha256": hashes, "fingerprint": tokenizer.fingerprint()})
    save_tokenizer(tokenizer, out)
    for name, digest in hashes.items():
        print(f"{name}: SHA-256 {digest}")
    side = tokenizer.stride
    print(f"{out}: {tokenizer.config.name}, {tokenizer.vocab} codes, each for {side} x {side} px")
    return 0


def read_dalle(
    source: Path, *, sha256: str | None = None, decoder_sha256: str | None = None
) -> tuple[DVAE, dict[str, str]]:
    """Read `encoder.pkl` and `decoder.pkl`, modules of the `DALL-E` package, from a folder or beside the given one.

    Returns the dVAE in eval mode and the files' hashes by name; ValueError as `Checkpoint` or where sizes do not fit.
    """
    folder = source if source.is_dir() else source.parent
    with (
        Checkpoint(folder / "encoder.pkl", sha256=sha256) as encoder_file,
        Checkpoint(folder / "decoder.pkl", sha256=decoder_sha256) as decoder_file,
    ):
        encoder, decoder = (_dalle_names(_tensors(file, file.content)) for file in (encoder_file, decoder_file))
        config = dalle_config(encoder, decoder)
        model = DVAE(config)
        _fill(model.encoder, encoder, encoder_file.path)
        _fill(model.decoder, decoder, decoder_file.path)
        return model.eval(), {"encoder.pkl": encoder_file.sha256, "decoder.pkl": decoder_file.sha256}


def read_taming(source: Path, *, sha256: str | None = None) -> tuple[VQGAN, dict[str, str]]:
    """Read a VQGAN checkpoint that Lightning saved (`state_dict` among other things), or the only one in a folder.

    Returns the VQGAN in eval mode and the file's hash by name; ValueError as `Checkpoint` or where sizes do not fit.
    """
    with Checkpoint(_only_checkpoint(source), sha256=sha256) as file:
        content = file.content
        if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
            raise ValueError(f"{file.path} has no state_dict; expected a .ckpt of taming-transformers")
        tensors = _tensors(file, content["state_dict"], without=_LOSS)
        try:
            config = taming_config({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        except KeyError as error:
            raise ValueError(
                f"{file.path} has no tensor {error.args[0]}; expected a VQGAN with a table of codes (taming's "
                "transformers, and its models with Gumbel-softmax, are not read)"
            ) from error
        model = VQGAN(config)
        _fill(model, tensors, file.path)
        return model.eval(), {file.path.name: file.sha256}


def dalle_config(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> DVAEConfig:
    """Return the sizes that the tensors have; ValueError when they are of another network."""
    try:
        vocab = encoder["blocks.output.conv.weight"].shape[0]
        hidden = encoder["blocks.input.weight"].shape[0]
        init = decoder["blocks.input.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"no tensor {error.args[0]}; expected the modules of OpenAI's dVAE") from error
    blocks = len({name.split(".")[2] for name in encoder if name.startswith("blocks.group_1.")})
    config = DVAEConfig(name="dvae", hidden=hidden, blocks_per_group=blocks, vocab=vocab, decoder_init=init)
    return config if config == dvae_preset("dvae") else replace(config, name=f"dvae_{vocab}")


def taming_config(shapes: Mapping[str, tuple[int, ...]]) -> VQGANConfig:
    """Return the sizes that names and shapes of the tensors tell; KeyError names a missing one.

    taming keeps them in a YAML file beside the checkpoint, which is not needed.
    """
    vocab, code_width = shapes["quantize.embedding.weight"]
    width = shapes["encoder.conv_in.weight"][0]
    found = [match for name in shapes if (match := re.match(r"encoder\.down\.(\d+)\.(block|attn)\.(\d+)\.", name))]
    levels = 1 + max((int(match[1]) for match in found), default=-1)
    outputs = [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)]
    return VQGANConfig(
        name=f"vqgan_{vocab}", vocab=vocab, width=width, multipliers=tuple(output // width for output in outputs),
        blocks=len({match[3] for match in found if match[1] == "0" and match[2] == "block"}),
        attention_levels=tuple(sorted({int(match[1]) for match in found if match[2] == "attn"})),
        latent_width=shapes["encoder.conv_out.weight"][0], code_width=code_width,
    )  # fmt: skip


def _tensors(file: Checkpoint, content: Any, without: str | None = None) -> dict[str, Tensor]:
    try:
        stored = state_dict(content)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    return {name: file.tensor(at) for name, at in stored.items() if without is None or not name.startswith(without)}


def _dalle_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Call .w and .b what torch calls them."""
    split = {name: name.rpartition(".") for name in state}
    return {f"{path}.{_DALLE_NAMES.get(last, last)}": state[name] for name, (path, _, last) in split.items()}


def _fill(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    weights.check_fit(module.state_dict(), tensors, str(path))
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; download it again")
    module.load_state_dict(dict(tensors))


def _only_checkpoint(source: Path) -> Path:
    if not source.is_dir():
        return source
    found = sorted(source.rglob("*.ckpt"))
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(source)) for path in found[:5]) or "none"
        raise ValueError(f"expected one .ckpt in {source}, found {len(found)} ({names}); give source=<file>")
    return found[0]


def _is_import_of(folder: Path, hashes: Mapping[str, str]) -> bool:
    recorded = folder / IMPORTED_FILE
    return recorded.is_file() and read_json(recorded).get("sha256") == dict(hashes)
