"""How well is the next token predicted without a network, by its frequency or by the frame before?

Both are fitted on training windows and measured on held-out ones, in nats per token, so that a trained model stands
beside what it has to beat. Windows are codes (B, T, P): B samples of T frames of P tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.integer]

_EM_ROUNDS = 30


@dataclass(frozen=True)
class Baselines:
    """Nats per token on held-out windows."""

    unigram: float  # each token from its share in the training windows
    copy_previous: float  # the frame before with a fitted trust, else the unigram; the first frame is unigram


def baselines(training: Codes, held_out: Codes, vocab: int) -> Baselines:
    """Fit on training windows (B, T, P), measure on held-out ones; ValueError where there is only one frame."""
    if training.ndim != 3 or training.shape[1] < 2:
        raise ValueError(f"expected windows (B, T, P) of at least two frames, got {training.shape}")
    counts = np.bincount(training.ravel(), minlength=vocab) + 1.0  # add-one: a code unseen in training may come
    shares = counts / counts.sum()
    trust = _fit_trust(shares[training[:, 1:]].ravel(), (training[:, 1:] == training[:, :-1]).ravel())
    unigram = -np.log(shares[held_out])
    copied = np.empty(held_out.shape)
    copied[:, 0] = unigram[:, 0]
    mixed = trust * (held_out[:, 1:] == held_out[:, :-1]) + (1 - trust) * shares[held_out[:, 1:]]
    copied[:, 1:] = -np.log(mixed)
    return Baselines(float(unigram.mean()), float(copied.mean()))


def _fit_trust(shares: npt.NDArray[np.float64], same: npt.NDArray[np.bool_]) -> float:
    """Return the weight t of the copy that maximises the likelihood of t * same + (1 - t) * share, by EM."""
    trust = 0.5
    for _ in range(_EM_ROUNDS):
        copied = trust * same / np.maximum(trust * same + (1 - trust) * shares, 1e-300)
        trust = float(np.clip(copied.mean(), 1e-6, 1 - 1e-6))
    return trust
