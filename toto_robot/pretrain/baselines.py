"""How well is the next token predicted without a network, by its frequency or by the frame before?

In nats per token on held-out windows, so that a trained model stands beside what it has to beat. Windows are codes
(B, T, P): B samples of T frames of P tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.integer]

_EM_ROUNDS = 30


def unigram_nats(codes: Codes, vocab: int) -> float:
    """Return the entropy of the codes' own frequencies: no predictor that ignores context can be below it on them."""
    counts = np.bincount(codes.ravel(), minlength=vocab)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def copy_previous_nats(training: Codes, held_out: Codes, vocab: int) -> float:
    """Return what the frame before says of the next: trust in it and frequencies fitted on windows (B, T, P).

    A token is its predecessor with chance t, else drawn from the frequencies; the first frame has the frequencies only.
    ValueError where there is only one frame.
    """
    if training.ndim != 3 or training.shape[1] < 2:
        raise ValueError(f"expected windows (B, T, P) of at least two frames, got {training.shape}")
    counts = np.bincount(training.ravel(), minlength=vocab) + 1.0  # add-one: a code unseen in training may come
    shares = counts / counts.sum()
    trust = _fit_trust(shares[training[:, 1:]].ravel(), (training[:, 1:] == training[:, :-1]).ravel())
    chances = shares[held_out]
    chances[:, 1:] = trust * (held_out[:, 1:] == held_out[:, :-1]) + (1 - trust) * chances[:, 1:]
    return float(-np.log(chances).mean())


def _fit_trust(shares: npt.NDArray[np.float64], same: npt.NDArray[np.bool_]) -> float:
    """Return the weight t of the copy that maximises the likelihood of t * same + (1 - t) * share, by EM."""
    trust = 0.5
    for _ in range(_EM_ROUNDS):
        copied = trust * same / np.maximum(trust * same + (1 - trust) * shares, 1e-300)
        trust = float(np.clip(copied.mean(), 1e-6, 1 - 1e-6))
    return trust
