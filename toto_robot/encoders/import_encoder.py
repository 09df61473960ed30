"""How does a published encoder become a folder of ours: `toto_robot import-encoder`?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from toto_robot import weights
from toto_robot.encoders.foreign_mae import FORMATS, read_mae
from toto_robot.models import hub
from toto_robot.models.mae import mae_config
from toto_robot.run_folder import read_json, write_json

IMPORTED_FILE = "imported.json"


@dataclass(frozen=True, kw_only=True)
class ImportEncoderConfig:
    """Which published checkpoint to read, and where to."""

    source: str  # the .pth of facebookresearch/mae or ir413/mvp, or a folder of transformers (ViTMAE)
    format: str  # mae | mvp | hf
    out: str | None = None  # folder to write; default <run>/pretrained_model
    heads: int | None = None  # attention heads, where the width does not tell
    sha256: str | None = None  # refuse the file if this is not its SHA-256

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads}")
        if self.heads is not None and self.format == "hf":
            raise ValueError("heads is for format=mae and mvp; a folder of transformers says how many there are")
        if self.sha256 is not None and not re.fullmatch(r"(sha256:)?[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"sha256 must be 64 hexadecimal digits, got {self.sha256!r}")


def import_encoder(config: ImportEncoderConfig, run_dir: Path) -> int:
    """Read a published MAE, running nothing that the file holds, and write safetensors and config.json.

    The folder that comes out is taken wherever an MAE is: encoder=mae encoder.path=<folder>.
    """
    out = Path(config.out) if config.out else run_dir / "pretrained_model"
    model, hashes = read_mae(Path(config.source), config.format, heads=config.heads, sha256=config.sha256)
    recorded = out / IMPORTED_FILE
    same = recorded.is_file() and read_json(recorded).get("sha256") == hashes
    if (out / weights.CONFIG_FILE).exists() and not same:
        raise ValueError(f"{out} holds another model; choose another folder with out=<folder>, or delete it")
    write_json(recorded, {"format": config.format, "sha256": hashes, "fingerprint": hub.fingerprint(model)})
    hub.save_pretrained(model, out)
    sizes = mae_config(model)
    for name, digest in hashes.items():
        print(f"{name}: SHA-256 {digest}")
    print(f"{out}: {sizes.layers} blocks of {sizes.width}, {sizes.heads} heads, {sizes.image_px} px")
    print(f"next: toto_robot train-policy encoder=mae encoder.path={out}")
    return 0
