"""How many floating-point operations does a training take, and what share of the device's peak is that (MFU)?

Convention: one multiply-add is 2; backward is twice forward; matrix products and attention only. Attention counts every
pair of positions in reach (12 L T D per token, as llm-foundry and nanoGPT do), or with `causal` the half that the mask
leaves (6 L T D); T is the sample, or the window where that is shorter. Not counted: embedding look-ups, norms, softmax,
the optimizer, what activation checkpointing computes twice, and the tokenizer, which runs once over the data.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from toto_robot.models.mae import MAEConfig
from toto_robot.models.toto import TotoConfig

CONVENTION = (
    "2 per multiply-add, backward twice forward, attention counted in full (12 L T D per token), without tokenizer, "
    "norms and optimizer"
)


# Dense bf16 peaks with fp32 accumulation, FLOP/s, by a part of CUDA's device name; the first that fits counts. NVIDIA's
# data sheets for H100 (SXM 989, NVL 835, PCIe 756), H200 and A100 give them with sparsity, which is twice this; RTX
# 4090: Ada architecture white paper, appendix A.
_PEAK_BF16_FLOPS_PER_S = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
    "RTX 4090": 165.2e12,
}


class Utilisation(NamedTuple):
    """Share of the peak that the model's FLOPs took (MFU), in both conventions."""

    full: float  # 12 L T D per token for attention
    causal: float  # 6 L T D


def mfu(config: TotoConfig, tokens_per_s: float, peak_flops_per_s: float) -> Utilisation:
    """Return the model FLOPs utilisation of training at `tokens_per_s` visual tokens; peak: that of all devices."""
    full, causal = (toto_training_flops(config, 1, causal=causal) for causal in (False, True))
    return Utilisation(full * tokens_per_s / peak_flops_per_s, causal * tokens_per_s / peak_flops_per_s)


def peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak of one device: bf16 of a known GPU by its data sheet, a CPU's by measuring; None where unknown.

    A CPU takes up to a second for it the first time, with as many threads as torch has.
    """
    if device.type == "cpu":
        return _cpu_peak(dtype)
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_BF16_FLOPS_PER_S.items() if part in name), None)


@functools.cache
def _cpu_peak(dtype: torch.dtype) -> float:
    return product_flops_per_s(torch.device("cpu"), dtype)


def product_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOPs per second of the best of a few square matrix products: what no step exceeds by much."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


def toto_training_flops(config: TotoConfig, tokens: int, *, causal: bool = False) -> float:
    """Return the FLOPs of training on `tokens` visual tokens, in samples of `config.frames` frames and a start id."""
    positions = 1 + config.frames * config.tokens_per_frame
    reach = 1 + config.context_frames * config.tokens_per_frame
    samples = tokens / (config.frames * config.tokens_per_frame)
    blocks = transformer_flops(
        config.width, config.ffn_width * 3, config.layers, positions, reach / 2 if causal else reach
    )
    return samples * (blocks + 6 * positions * config.width * config.vocab_size)


def mae_training_flops(config: MAEConfig, images: int) -> float:
    """Return the FLOPs of training on `images` images: the encoder sees the visible patches, the decoder all."""
    patches, pixels = config.tokens_per_frame, 3 * config.patch_px**2
    visible = 1 + int(patches * (1 - config.mask_ratio))  # and the CLS token
    embed = 4 * patches * pixels * config.width  # pixels need no gradient
    encoder = transformer_flops(config.width, config.ffn_width * 2, config.layers, visible)
    bridge = 6 * visible * config.width * config.decoder_width
    decoder = transformer_flops(config.decoder_width, config.decoder_ffn_width * 2, config.decoder_layers, 1 + patches)
    return images * (embed + encoder + bridge + decoder + 6 * (1 + patches) * config.decoder_width * pixels)


def transformer_flops(width: int, ffn_widths: int, layers: int, positions: int, reach: float | None = None) -> float:
    """Return the training FLOPs of a stack of blocks on one sequence; `ffn_widths` sums the matrices' hidden sides.

    `reach`: to how many positions each attends, default all.
    """
    weights = width * (4 * width + ffn_widths)
    return layers * positions * (6 * weights + 12 * (positions if reach is None else reach) * width)


def counted_flops(call: Callable[[], object]) -> int:
    """Return the floating-point operations of one call: its matrix products, convolutions and attention.

    Counted by torch as they run, two per multiply-add. Fused attention is not counted on every device, so it is taken
    apart for this call.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
