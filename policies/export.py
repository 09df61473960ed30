"""How does a policy leave Python: written by torch.export or as ONNX, and checked to answer as it did before?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policies.bundle import Parts, bundle_hash, load_parts
from policies.program import Array, HeadProgram, PolicyProgram, head_arrays, policy_arrays
from toto_robot.run_folder import atomic_path, provenance, write_json, write_text

FORMATS = {"torch_export": "pt2", "onnx": "onnx"}
PARTS = ("auto", "head", "policy")
_TITLES = {"head": "a policy's head, from features to actions", "policy": "a policy, from pixels to actions"}
_TOLERANCE = 1e-3  # of the action's scale: the sums are of float32, but not in the same order
_TRIALS = 5


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of `toto_robot export`."""

    policy: str  # bundle folder of a trained policy
    format: str = "torch_export"  # torch_export (.pt2) or onnx
    part: str = "auto"  # head (from features), policy (from pixels), or auto: policy where it is one program, else head
    out: str | None = None  # folder to write to; null is the run folder
    batch: int = 1  # rows that the program takes

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"expected format {' or '.join(FORMATS)}, got {self.format!r}")
        if self.part not in PARTS:
            raise ValueError(f"expected part {', '.join(PARTS)}, got {self.part!r}")
        if self.batch < 1:
            raise ValueError(f"expected batch of at least 1, got {self.batch}")


def export(config: ExportConfig, run_dir: Path) -> int:
    """Write a policy bundle as one program for another runtime, after checking that it answers as the original does.

    Writes <part>.pt2 or .onnx, export.json (arrays with shapes, types and meaning; the largest difference found) and
    EXPORT.md.
    """
    folder = Path(config.out) if config.out else run_dir
    parts = load_parts(Path(config.policy))
    part, program, arrays = _program(parts, config)
    path = folder / f"{part}.{FORMATS[config.format]}"
    write = _write_onnx if config.format == "onnx" else _write_torch
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        program(*_draw(arrays, generator))  # once before it is traced: what the model caches must be real
        with atomic_path(path) as temporary:
            run = write(program, arrays, temporary)
            difference = _compare(program, run, arrays, generator)
    facts = _describe(config, parts, part, arrays, difference)
    write_json(folder / "export.json", facts)
    write_text(folder / "EXPORT.md", _card(facts))
    print(
        f"wrote {path}; its answers to {_TRIALS} random inputs differ by at most {difference:.1e} of the action's scale"
    )
    return 0


def _program(parts: Parts, config: ExportConfig) -> tuple[str, HeadProgram | PolicyProgram, list[Array]]:
    if config.part != "head" and parts.head.sizes.cameras:
        try:
            arrays = policy_arrays(parts, config.batch)
            return "policy", PolicyProgram(parts).eval(), arrays
        except ValueError:
            if config.part == "policy":
                raise
    return "head", HeadProgram(parts).eval(), head_arrays(parts, config.batch)


def _write_torch(program: nn.Module, arrays: Sequence[Array], path: Path) -> Callable[..., Tensor]:
    exported = torch.export.export(program, tuple(_draw(arrays, torch.Generator())))
    with open(path, "wb") as file:
        torch.export.save(exported, file)
    with open(path, "rb") as file:
        read: Callable[..., Tensor] = torch.export.load(file).module()
    return read


def _write_onnx(program: nn.Module, arrays: Sequence[Array], path: Path) -> Callable[..., Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ValueError(
            f"format=onnx needs the extra onnx ({error.name} is missing): pip install 'toto-robot[onnx]'; "
            "format=torch_export needs nothing"
        ) from error
    names = [array.name for array in arrays]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        written: Any = torch.onnx.export(
            program, tuple(_draw(arrays, torch.Generator())), input_names=names, output_names=["actions"], dynamo=True,
            verbose=False,
        )  # fmt: skip
    written.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*values: Tensor) -> Tensor:
        given = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return torch.from_numpy(session.run(["actions"], given)[0])

    return run


def _compare(
    program: HeadProgram | PolicyProgram,
    run: Callable[..., Tensor],
    arrays: Sequence[Array],
    generator: torch.Generator,
) -> float:
    """Return the largest difference over random inputs, in parts of the action's scale; ValueError if it is large."""
    inner = program.head if isinstance(program, PolicyProgram) else program
    difference = 0.0
    for _ in range(_TRIALS):
        values = _draw(arrays, generator)
        expected, got = program(*values), run(*values)
        assert got.shape == expected.shape, (got.shape, expected.shape)
        difference = max(difference, float(((got - expected) / inner.action_scale).abs().max()))
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"the exported program answers differently: by {difference:.2e} of the action's scale, {_TOLERANCE:.0e} is "
            "allowed; use another format, or report this with the bundle"
        )
    return difference


def _draw(arrays: Sequence[Array], generator: torch.Generator) -> list[Tensor]:
    return [array.random(generator) for array in arrays]


def _describe(
    config: ExportConfig, parts: Parts, part: str, arrays: Sequence[Array], difference: float
) -> dict[str, Any]:
    task, head = parts.description["task"], parts.head
    return {
        "part": part,
        "format": config.format,
        "policy": bundle_hash(Path(config.policy)),
        "task": {key: task[key] for key in ("env_id", "robot", "control_rate_hz", "action_low", "action_high")},
        "inputs": [
            {"name": a.name, "shape": list(a.shape), "dtype": str(a.dtype).removeprefix("torch."), "meaning": a.meaning}
            for a in arrays
        ],
        "output": {
            "name": "actions",
            "shape": [config.batch, head.chunk_steps, head.action_dim],
            "meaning": f"{', '.join(parts.actions.names)}; clip them to the action box",
        },
        "execution": parts.description["execution"],
        "largest_difference": difference,  # in parts of the action's scale, over random inputs
        "versions": provenance()["versions"],
    }


def _card(facts: dict[str, Any]) -> str:
    rows = [f"| {a['name']} | {a['dtype']} {a['shape']} | {a['meaning']} |" for a in [*facts["inputs"]]]
    output = facts["output"]
    lines = [
        f"# {facts['task']['env_id']}: {_TITLES[facts['part']]}, as {facts['format']} (bundle {facts['policy'][:16]})",
        "",
        f"Control rate {facts['task']['control_rate_hz']} Hz. Computed in float32; on random inputs its answers differ "
        f"from the bundle's program by at most {facts['largest_difference']:.1e} of the action's scale.",
        "",
        "| array | type | meaning |",
        "|---|---|---|",
        *rows,
        f"| {output['name']} (out) | float32 {output['shape']} | {output['meaning']} |",
        "",
        "Normalisers are inside. Not inside: the action box, the execution of chunks"
        + (", the encoder with its stream." if facts["part"] == "head" else ", the resizing of pictures."),
        "",
    ]
    return "\n".join(lines)
