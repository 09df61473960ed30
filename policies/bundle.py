"""What is a policy on disk: everything that deployment needs in one folder, and proof that nothing in it has changed?

    policy.json        schema, normalisers, encoder, task with units, cameras, control rate, what it was trained on
    head/              config.json, model.safetensors
    encoder/           the frozen encoder: config.json, weights, tokenizer/
    hashes.json        SHA-256 of each of the above
    evaluation.json    the success rate it earned, when it was evaluated
    MODEL_CARD.md      the same for people
Nothing is pickled. `load_policy` refuses a folder with a missing or changed file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policies.bc import Trained
from policies.chunks import ExecutionConfig
from policies.heads.base import Head, InputSizes
from policies.heads.build import build_head, head_config_from_json
from policies.normalize import Normalizer
from policies.policy import Policy
from toto_robot.encoders.base import Encoder, layer_setting
from toto_robot.encoders.load import load_encoder
from toto_robot.run_folder import provenance, read_json, sha256_file, write_json
from toto_robot.weights import read_config, read_weights, write_model

SCHEMA = 2  # 2: heads of several kinds
_HASHED = ("policy.json", "head", "encoder")


@dataclass(frozen=True, kw_only=True)
class BundleContent:
    """What a bundle is made of."""

    trained: Trained
    encoder: Encoder
    execution: ExecutionConfig
    task: Mapping[str, Any]
    cameras: tuple[str, ...]
    training: Mapping[str, Any]  # demonstrations, seed, settings: for people and reports


def save_bundle(folder: Path, content: BundleContent) -> str:
    """Write a bundle whole, replacing one that is there; return its hash."""
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    head = content.trained.head
    write_model(partial / "head", {"model_type": "policy_head", **_describe_head(head)}, head.state_dict())
    content.encoder.save(partial / "encoder")
    write_json(partial / "policy.json", _description(content))
    hashes = _hash_files(partial)
    write_json(partial / "hashes.json", hashes)
    old = folder.with_name(f".{folder.name}.old")  # moved aside, so that a kill leaves a whole bundle or none
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
    return _digest(hashes)


def load_policy(folder: Path | str, device: str = "cpu", execution: ExecutionConfig | None = None) -> Policy:
    """Load a policy from its bundle; ValueError says what is missing or does not match.

    `policy.act(observation)` takes `{"proprio": (Dp,), "pixels": {camera: uint8 (h, w, 3)}}` and returns (A,), or the
    same with a leading batch; `policy.reset()` begins an episode. `device` is where the encoder runs; `execution`
    replaces the bundle's own way to turn chunks of actions into one.
    """
    parts = load_parts(Path(folder), device)
    description = parts.description
    return Policy(
        encoder=parts.encoder,
        head=parts.head,
        proprio=parts.proprio,
        actions=parts.actions,
        execution=execution or ExecutionConfig(**description["execution"]),
        task=description["task"],
        cameras=tuple(description["cameras"]),
    )


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a bundle holds."""

    description: Mapping[str, Any]  # policy.json
    encoder: Encoder
    head: Head
    proprio: Normalizer
    actions: Normalizer


def load_parts(folder: Path, device: str = "cpu") -> Parts:
    """Load what a bundle holds, checked; ValueError says what is missing or does not match."""
    description = check_bundle(folder)
    stored = description["encoder"]
    encoder = load_encoder(folder / "encoder", device=device, **stored["settings"])
    if encoder.fingerprint != stored["fingerprint"]:
        raise ValueError(
            f"{folder}: expected encoder {stored['fingerprint'][:16]}, its folder gives {encoder.fingerprint[:16]}; "
            "use the version of toto_robot that wrote the bundle, or train it again"
        )
    return Parts(
        description=description,
        encoder=encoder,
        head=_load_head(folder / "head"),
        proprio=Normalizer.from_dict(description["normalizers"]["proprio"]),
        actions=Normalizer.from_dict(description["normalizers"]["action"]),
    )


def check_bundle(folder: Path) -> dict[str, Any]:
    """Check every hash of a bundle and return policy.json; ValueError names the file that is missing or has changed."""
    if not (folder / "hashes.json").exists():
        nested = folder / "bundle"
        hint = f"; did you mean {nested}?" if nested.exists() else "; make one with `toto_robot train-policy`"
        raise ValueError(f"no policy bundle at {folder} (hashes.json is missing){hint}")
    expected, found = read_json(folder / "hashes.json"), _hash_files(folder)
    for name in sorted({*expected, *found}):
        if name not in found:
            raise ValueError(f"{folder}: {name} is missing; copy the bundle again, or train it again")
        if name not in expected:
            raise ValueError(f"{folder}: {name} does not belong to the bundle; remove it")
        if expected[name] != found[name]:
            raise ValueError(
                f"{folder}: {name} has changed since the bundle was written; copy it again, or train it again"
            )
    description: dict[str, Any] = read_json(folder / "policy.json")
    if description.get("schema") != SCHEMA:
        raise ValueError(
            f"{folder}: bundle schema {description.get('schema')}, this version reads {SCHEMA}; train it again"
        )
    return description


def bundle_hash(folder: Path) -> str:
    """Return the hash that stands for a bundle's content."""
    return _digest(read_json(folder / "hashes.json"))


def write_card(folder: Path, text: str, evaluation: Mapping[str, Any] | None) -> None:
    """Put the earned evaluation and the model card beside the weights; they are no part of the bundle's hash."""
    if evaluation is not None:
        write_json(folder / "evaluation.json", evaluation)
    temporary = folder / ".MODEL_CARD.md.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, folder / "MODEL_CARD.md")


def _description(content: BundleContent) -> dict[str, Any]:
    encoder = content.encoder
    return {
        "schema": SCHEMA,
        "control_rate_hz": content.task["control_rate_hz"],
        "cameras": list(content.cameras),
        "head": content.trained.head.config.name,
        "task": dict(content.task),
        "encoder": {
            "name": encoder.name,
            "layer": layer_setting(encoder.layers),
            "context_frames": encoder.context_frames,
            "parameters": encoder.parameters,
            "fingerprint": encoder.fingerprint,
            "settings": encoder.settings(),
        },
        "execution": asdict(content.execution),
        "normalizers": {"proprio": content.trained.proprio.as_dict(), "action": content.trained.actions.as_dict()},
        "training": dict(content.training),
        "versions": provenance()["versions"],
    }


def _describe_head(head: Head) -> dict[str, Any]:
    return {"head": asdict(head.config), "inputs": asdict(head.sizes), "action_dim": head.action_dim}


def _load_head(folder: Path) -> Head:
    stored = read_config(folder, "policy_head")
    config, sizes = head_config_from_json(stored["head"]), InputSizes.from_json(stored["inputs"])
    head = build_head(config, sizes, int(stored["action_dim"]), seed=0)
    read_weights(folder, head)
    return head


def _hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that makes the policy, by its path in the bundle."""
    files = [path for name in _HASHED for path in [folder / name, *(folder / name).rglob("*")] if path.is_file()]
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(files)}


def _digest(hashes: Mapping[str, str]) -> str:
    text = "".join(f"{name} {value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()
