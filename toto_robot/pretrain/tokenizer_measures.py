"""How good is a tokenizer: its pictures, use of the codes, whether they keep still, its cost, Toto's loss on it?

Frames come in runs (first row, frames) of neighbours from a frame store; every measure has its unit in its name.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toto_robot.data.frames import FrameStore
from toto_robot.encoders.base import autocast
from toto_robot.models.hub import from_pretrained
from toto_robot.models.toto import Toto
from toto_robot.pretrain.clips import Division
from toto_robot.tokenizers.load import AnyTokenizer, load_tokenizer

Runs = list[tuple[int, int]]

NEAR_LEVELS = 2  # grey levels that a pixel may move by in a patch that is called nearly unchanged: codec noise
_FRAMES = 512  # in all runs
_TIMED_FRAMES = 32
_TIMED_ROUNDS = 3


def measured_runs(division: Division, clips: np.ndarray, run_frames: int = 16) -> Runs:
    """Return runs of `run_frames` neighbouring frames, one a clip from its middle, spread over `clips`."""
    wanted = max(1, _FRAMES // run_frames)
    chosen = clips[np.unique(np.linspace(0, len(clips) - 1, wanted).round().astype(int))]
    starts = np.concatenate([[0], division.ends[:-1]])
    runs = []
    for clip in chosen:
        length = int(division.ends[clip] - starts[clip])
        frames = min(run_frames, length)
        runs.append((int(starts[clip]) + (length - frames) // 2, frames))
    return runs


def measure(tokenizer: AnyTokenizer, frames: FrameStore, runs: Runs, precision: str = "fp32") -> dict[str, Any]:
    """Measure a tokenizer on runs.

    `psnr_db` of the decoded pictures; `codes_used` and `perplexity` over all of them; `stability`, the share of patches
    without any changed pixel that keep their code in the next frame, and `stability_near`, the same of patches in which
    no value moved by more than 2 grey levels (each None where there is no such patch).
    """
    squared, values = 0.0, 0
    kept, still = np.zeros(2), np.zeros(2)  # unchanged, nearly unchanged
    counts = torch.zeros(tokenizer.vocab, dtype=torch.long)
    for start, length in runs:
        images = torch.from_numpy(frames.clip(start, length)).to(_device(tokenizer))
        with torch.inference_mode(), autocast(precision, images.device):
            codes = tokenizer.encode(images)
            error = tokenizer.decode(codes).double() - images.double()
        squared, values = squared + float(error.square().sum()), values + error.numel()
        counts += torch.bincount(codes.flatten().cpu(), minlength=tokenizer.vocab)
        change, same = largest_change(images, tokenizer.stride), codes[1:] == codes[:-1]
        for index, levels in enumerate((0, NEAR_LEVELS)):
            still[index] += int((change <= levels).sum())
            kept[index] += int(((change <= levels) & same).sum())
    share = counts[counts > 0].double() / counts.sum()
    stability, near = (round(k / n, 4) if n else None for k, n in zip(kept, still, strict=True))
    return {
        "psnr_db": round(10 * float(np.log10(255**2 / max(squared / values, 1e-12))), 2),
        "codes_used": int((counts > 0).sum()),
        "vocab": tokenizer.vocab,
        "perplexity": round(float((-(share * share.log()).sum()).exp()), 1),
        "stability": stability,
        "stability_near": near,
        "measured_frames": sum(length for _, length in runs),
    }


def largest_change(images: Tensor, stride: int) -> Tensor:
    """Return by how many grey levels the values of each patch moved at most, (T - 1, h / stride, w / stride)."""
    moved = (images[1:].short() - images[:-1].short()).abs().amax(-1)  # (T - 1, h, w)
    T, h, w = moved.shape
    return moved.view(T, h // stride, stride, w // stride, stride).amax((2, 4))


@torch.inference_mode()
def agreement(first: AnyTokenizer, second: AnyTokenizer, frames: FrameStore, runs: Runs, precision: str) -> float:
    """Return the share of patches to which both give the same code."""
    same, patches = 0, 0
    for start, length in runs:
        images = torch.from_numpy(frames.clip(start, length)).to(_device(first))
        with autocast(precision, images.device):
            equal = first.encode(images) == second.encode(images)
        same, patches = same + int(equal.sum()), patches + equal.numel()
    return round(same / patches, 4)


def cost(tokenizer: AnyTokenizer, image_px: int, precision: str = "fp32") -> dict[str, Any]:
    """Return `encoder_gflop` a frame (a multiply-add counts two), `encoder_parameters`, and measured `frames_per_s`."""
    device = _device(tokenizer)
    images = torch.randint(256, (_TIMED_FRAMES, image_px, image_px, 3), dtype=torch.uint8).to(device)
    counter = FlopCounterMode(display=False)
    with counter:
        tokenizer.encode(images[:1])
    seconds = []
    for _ in range(_TIMED_ROUNDS + 1):  # the first one warms up
        began = time.perf_counter()
        with torch.inference_mode(), autocast(precision, device):
            tokenizer.encode(images)[0, 0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    parts = (*tokenizer.trunk, *tokenizer.choice)
    return {
        "encoder_gflop": round(counter.get_total_flops() / 1e9, 4),
        "encoder_parameters": sum(parameter.numel() for part in parts for parameter in part.parameters()),
        "frames_per_s": round(_TIMED_FRAMES / float(np.median(seconds[1:])), 1),
    }


def load_toto_of(folder: Path | str, tokenizer: AnyTokenizer, device: torch.device | str = "cpu") -> Toto:
    """Load the Toto in `folder`, in eval mode; ValueError unless it was trained on the codes of `tokenizer`."""
    toto = from_pretrained(folder, device)
    if not isinstance(toto, Toto):
        raise ValueError(f"{folder} holds no Toto; give the pretrained_model folder of `toto_robot pretrain`")
    if load_tokenizer(Path(folder) / "tokenizer").fingerprint() != tokenizer.fingerprint():
        raise ValueError(f"{folder} was trained on the codes of another tokenizer; give the one in {folder}/tokenizer")
    return toto


@torch.inference_mode()
def next_token_nats(
    toto: Toto, tokenizer: AnyTokenizer, frames: FrameStore, runs: Runs, precision: str = "fp32"
) -> float:
    """Return Toto's mean cross-entropy, in nats a token, on the tokens that a tokenizer makes of its windows.

    Runs are cut into windows of the frames that Toto was trained on; ValueError where none is long enough.
    """
    T, losses = toto.config.frames, []
    for start, length in runs:
        for first in range(start, start + length - T + 1, T):
            images = torch.from_numpy(frames.clip(first, T)).to(_device(tokenizer))
            with autocast(precision, images.device):
                inputs, targets = toto.pack(tokenizer.encode(images).flatten(1)[None])
                logits = toto(inputs).logits[:, :-1].float()  # (1, T * P, V), without the end token
            losses.append(float(F.cross_entropy(logits.flatten(0, 1), targets[:, :-1].flatten())))
    if not losses:
        raise ValueError(f"no held-out clip has the {T} frames of a window of {toto.config.name}; add longer videos")
    return float(np.mean(losses))


def _device(tokenizer: AnyTokenizer) -> torch.device:
    return next(tokenizer.parameters()).device
