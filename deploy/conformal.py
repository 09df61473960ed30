"""Above which score is an episode unlike the successful ones, with a false-alarm rate that holds for finite samples?

Split conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005; Angelopoulos and
Bates, arXiv 2107.07511, section 1): of n episodes that nothing was fitted to, each gives its largest score. With
k = ceil((n + 1) (1 - alpha)), the k-th smallest of the n is the threshold. A further episode that is exchangeable with
them exceeds it with a probability of at most alpha, whatever the scores are made of: over the draw of calibration and
episode together. An episode is one draw, not its steps, which depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


def sustained(scores: Scores, consecutive: int) -> Scores:
    """Return (T,) what each of scores (T,) and the `consecutive` - 1 before it all reach; -inf at the first few."""
    if consecutive < 1:
        raise ValueError(f"expected consecutive of at least 1 frame, got {consecutive}")
    held = np.full(len(scores), -np.inf)
    for last in range(consecutive - 1, len(scores)):
        held[last] = scores[last + 1 - consecutive : last + 1].min()
    return held


def episode_score(scores: Scores, consecutive: int = 1) -> float:
    """Return the largest score that an episode (T,) holds for `consecutive` frames; ValueError for a shorter one."""
    if len(scores) < consecutive:
        raise ValueError(f"expected an episode of at least {consecutive} frames, got {len(scores)}")
    return float(sustained(scores, consecutive).max())


def episodes_needed(alpha: float) -> int:
    """Return the fewest calibration episodes that a false-alarm rate of `alpha` can be promised with."""
    _check_alpha(alpha)
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_threshold(episode_scores: Sequence[float], alpha: float) -> float:
    """Return the score that a further episode exceeds with a probability of at most `alpha`.

    ValueError for scores that are not finite, or for too few episodes.
    """
    needed, n = episodes_needed(alpha), len(episode_scores)
    if n < needed:
        raise ValueError(
            f"a false-alarm rate of {alpha:g} needs {needed} calibration episodes or more, got {n}; "
            f"roll out more, or allow alpha={1 / (n + 1):.3f}"
        )
    if not np.isfinite(episode_scores).all():
        raise ValueError("expected finite calibration scores; an episode has NaN or infinity")
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(episode_scores)[rank - 1])


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha between 0 and 1, such as 0.05, got {alpha}")
