"""How many floating-point operations did a training take?

Convention: one multiply-add is 2; backward is twice forward; matrix products and attention only. Attention counts every
pair of positions (12 L T D per token), masked or not. Not counted: embedding look-ups, norms, softmax, the optimizer,
and the tokenizer, which runs once over the data.
"""

from __future__ import annotations

from toto_robot.models.mae import MAEConfig
from toto_robot.models.toto import TotoConfig

CONVENTION = (
    "2 per multiply-add, backward twice forward, attention counted in full (12 L T D per token), without tokenizer, "
    "norms and optimizer"
)


def toto_training_flops(config: TotoConfig, tokens: int) -> float:
    """Return the FLOPs of training on `tokens` visual tokens, in samples of `config.frames` frames and a start id."""
    positions = 1 + config.frames * config.tokens_per_frame
    samples = tokens / (config.frames * config.tokens_per_frame)
    blocks = transformer_flops(config.width, config.ffn_width * 3, config.layers, positions)
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


def transformer_flops(width: int, ffn_widths: int, layers: int, positions: int) -> float:
    """Return the training FLOPs of a stack of blocks on one sequence; `ffn_widths` sums the matrices' hidden sides."""
    weights = width * (4 * width + ffn_widths)
    return layers * positions * (6 * weights + 12 * positions * width)
