"""How does Toto continue a video, and how surprised is it by what really came?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toto_robot.models.surprise import SurpriseStream, float_logits
from toto_robot.models.toto import Toto

Randomness = torch.Generator | Sequence[torch.Generator] | None


@torch.no_grad()
def generate(
    model: Toto, codes: Tensor, frames: int, *, temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, generator: Randomness = None, on_token: Callable[[], object] | None = None,
    kind: str = "video",
) -> Tensor:  # fmt: skip
    """Continue codes (B, T0, P) by `frames` frames; return codes (B, T0 + frames, P) int64. T0 may be 0.

    Temperature 0 takes the most likely code. `top_k` keeps the k most likely codes, `top_p` the fewest that together
    reach that probability, in this order and after the temperature, as transformers does. Only visual ids are drawn: a
    frame has exactly P tokens, and the end id can only follow the last. Beyond `context_frames` the window slides as in
    streaming. `kind` is "video" or "image": what the start id says that follows. With one generator a row, what a row
    draws does not depend on the rows beside it. `on_token` is called after every token, for progress. Raises ValueError
    for sampling settings out of range, codes of another frame size or range, or a number of generators that is not B.
    """
    _check(model, codes, frames, temperature, top_k, top_p, generator)
    config = model.config
    ids, _ = config.pack(codes.to(model.embed.weight.device), kind)
    new_tokens = frames * config.tokens_per_frame
    cache = model.token_cache(ids.shape[1] + new_tokens)
    made = [codes.flatten(1).long().to(ids.device)]
    for _ in range(new_tokens):
        output = model(ids, layers=(config.layers,), logits=False, cache=cache)
        last = float_logits(model, output.features[config.layers][:, -1:])[:, 0]  # (B, V)
        code = draw(last[:, config.first_visual_id :], temperature, top_k, top_p, generator)
        made.append(code)
        ids = code + config.first_visual_id
        if on_token is not None:
            on_token()
    return torch.cat(made, dim=1).unflatten(1, (-1, config.tokens_per_frame))


@torch.no_grad()
def surprise(model: Toto, codes: Tensor, *, on_frame: Callable[[], object] | None = None) -> Tensor:
    """Return the negative log-likelihood in nats (B, T, P) float32 of each token of codes (B, T, P) given all before.

    As a stream has it (`SurpriseStream`), with the memory of one window.
    """
    _check_codes(model, codes)
    stream = SurpriseStream(model, len(codes))
    nats = []
    for frame in codes.unbind(1):
        nats.append(stream.step(frame))
        if on_frame is not None:
            on_frame()
    return torch.stack(nats, dim=1)


def draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: Randomness = None
) -> Tensor:
    """Draw one code a row (B, 1) from logits (B, codes).

    The code with the largest log-probability plus Gumbel noise (a draw from the distribution, exactly): the noise does
    not depend on the logits, so two ways of computing the same logits draw the same codes.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    kept = keep_likely(logits / temperature, top_k, top_p)
    return (kept + _gumbel(kept, generator)).argmax(dim=-1, keepdim=True)


def keep_likely(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Return logits (B, codes) with all but the `top_k` largest, then all outside the `top_p` nucleus, at -inf."""
    if top_k is not None and top_k < logits.shape[-1]:
        values, places = logits.topk(top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, places, values)
    if top_p is not None and top_p < 1:
        values, places = logits.sort(dim=-1, descending=True, stable=True)
        shares = values.softmax(dim=-1)
        outside = shares.cumsum(dim=-1) - shares >= top_p  # what stands before it already reaches top_p
        outside[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, places, outside), -torch.inf)
    return logits


def _gumbel(logits: Tensor, generator: Randomness) -> Tensor:
    """Return Gumbel noise like logits (B, codes), from one generator for all rows or one for each."""
    if generator is None or isinstance(generator, torch.Generator):
        device = logits.device if generator is None else generator.device
        return -torch.empty_like(logits, device=device).exponential_(generator=generator).log().to(logits.device)
    rows = [torch.empty(logits.shape[1:], device=one.device).exponential_(generator=one) for one in generator]
    return -torch.stack([row.to(logits.device) for row in rows]).log()


def _check(
    model: Toto, codes: Tensor, frames: int, temperature: float, top_k: int | None, top_p: float | None,
    generator: Randomness,
) -> None:  # fmt: skip
    check_sampling(temperature, top_k, top_p)
    if frames < 0:
        raise ValueError(f"expected frames of at least 0, got {frames}")
    _check_codes(model, codes)
    if isinstance(generator, Sequence) and len(generator) != len(codes):
        raise ValueError(f"expected one generator, or one for each of {len(codes)} rows; got {len(generator)}")


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for settings that nothing can be drawn with."""
    if not temperature >= 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"expected temperature >= 0, top_k >= 1 and 0 < top_p <= 1 (or null), got temperature {temperature}, "
            f"top_k {top_k}, top_p {top_p}"
        )


def _check_codes(model: Toto, codes: Tensor) -> None:
    config = model.config
    if codes.ndim != 3 or codes.shape[-1] != config.tokens_per_frame:
        raise ValueError(f"expected codes (B, T, {config.tokens_per_frame}), got {tuple(codes.shape)}")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < config.visual_vocab:
        raise ValueError(f"codes must lie in 0..{config.visual_vocab - 1}, got {int(codes.min())}..{int(codes.max())}")
