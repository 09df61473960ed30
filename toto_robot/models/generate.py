"""How does Toto continue a video?"""

from __future__ import annotations

import torch
from torch import Tensor

from toto_robot.models.toto import Toto


@torch.no_grad()
def generate(
    model: Toto, codes: Tensor, frames: int, *, temperature: float = 1.0, top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Continue codes (B, T0, P) by `frames` frames; return codes (B, T0 + frames, P) int64. T0 may be 0.

    Temperature 0 takes the most likely code. Only visual ids are drawn: a frame has exactly P tokens, and the end id
    can only follow the last. Beyond `context_frames` the window slides as in streaming. Raises ValueError for a
    negative temperature, a `top_k` below 1, or codes of another frame size.
    """
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"expected temperature >= 0 and top_k >= 1, got {temperature} and {top_k}")
    config = model.config
    ids, _ = config.pack(codes.to(model.embed.weight.device))
    new_tokens = frames * config.tokens_per_frame
    cache = model.token_cache(ids.shape[1] + new_tokens)
    made = [codes.flatten(1).long().to(ids.device)]
    for _ in range(new_tokens):
        output = model(ids, layers=(config.layers,), logits=False, cache=cache)
        last = model.logits(output.features[config.layers][:, -1:])[:, 0]  # (B, V)
        code = _draw(last[:, config.first_visual_id :].float(), temperature, top_k, generator)
        made.append(code)
        ids = code + config.first_visual_id
    return torch.cat(made, dim=1).unflatten(1, (-1, config.tokens_per_frame))


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Draw a code (B, 1) from logits (B, visual codes)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
