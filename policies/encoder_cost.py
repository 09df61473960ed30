"""What does one frame cost under an encoder: operations, time, parameters?"""

from __future__ import annotations

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from toto_robot.encoders.base import Encoder, layer_setting
from toto_robot.models.compute import counted_flops

_TIMED_FRAMES, _TIMED_S = 40, 5.0  # whichever comes first


def stored_parameters(folder: Path) -> int:
    """Return how many numbers lie in the safetensors files of a folder, without reading them."""
    count = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def total_parameters(encoder: Encoder) -> int:
    """Return the weights that come with an encoder, also those that no frame passes through: decoder, upper layers."""
    with TemporaryDirectory() as folder:
        encoder.save(Path(folder))
        return stored_parameters(Path(folder))


def encoder_cost(encoder: Encoder) -> dict[str, Any]:
    """Return name, sizes, GFLOPs and milliseconds of one new frame of one stream, its memory being full.

    The tokenizer is included. Times are with one thread: `ms_per_frame` as they pass (quartiles over frames), which
    other work on the machine lengthens, and `processor_ms_per_frame` as the processor spends them.
    """
    facts: dict[str, Any] = {
        key: getattr(encoder, key)
        for key in ("name", "context_frames", "parameters", "width", "tokens_per_frame", "image_px", "precision",
                    "fingerprint")
    } | {"layer": layer_setting(encoder.layers), "total_parameters": total_parameters(encoder)}  # fmt: skip
    if encoder.width == 0:
        return {**facts, "gflops_per_frame": 0.0, "ms_per_frame": [0.0] * 3, "processor_ms_per_frame": 0.0}
    size = encoder.image_px
    frame = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    stream: Any = encoder.stream(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(encoder.context_frames + 3):
            stream.step(frame)
        times_s: list[float] = []
        spent_s = time.process_time()
        while len(times_s) < _TIMED_FRAMES and sum(times_s) < _TIMED_S:
            began = time.perf_counter()
            stream.step(frame).cpu()
            times_s.append(time.perf_counter() - began)
        spent_s = time.process_time() - spent_s
        flops = counted_flops(lambda: stream.step(frame))
    finally:
        torch.set_num_threads(threads)
    quartiles = 1000 * np.percentile(times_s, [25, 50, 75])
    return {
        **facts,
        "gflops_per_frame": round(flops / 1e9, 4),
        "ms_per_frame": [round(float(quartile), 3) for quartile in quartiles],
        "processor_ms_per_frame": round(1000 * spent_s / len(times_s), 3),
    }
