"""How much better than expected was each action? Generalized advantage estimation (Schulman et al. 2016).

Termination and truncation are two things: a terminated episode is worth nothing from there on, one that ran out of
time is worth what its last observation is worth. Merged into one `done` they teach the critic that time limits kill.
"""

from __future__ import annotations

import numpy as np


def advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    *,
    discount: float,
    trace_decay: float,
) -> np.ndarray:
    """Return the advantage of every step, (T, B) float32.

    Args:
        rewards: of each step (T, B).
        values: the critic's, of the observation that the action answered (T, B).
        next_values: the critic's, of the observation that the action led to: where an episode ended, its last one and
            not the first of the next episode (T, B).
        terminated: the episode ended here, and nothing is to come (T, B) bool.
        truncated: the episode was cut here, and `next_values` stands for what would have come (T, B) bool.
        discount: gamma.
        trace_decay: lambda; 0 trusts the critic after one step, 1 sums rewards to the end.

    The return that a critic learns is `advantages + values`.
    """
    follows = 1.0 - terminated.astype(np.float32)
    errors = rewards + discount * follows * next_values - values
    carry_on = discount * trace_decay * (~(terminated | truncated)).astype(np.float32)
    result = np.zeros_like(errors, dtype=np.float32)
    carried = np.zeros(rewards.shape[1:], dtype=np.float32)
    for step in reversed(range(len(rewards))):
        carried = errors[step] + carry_on[step] * carried
        result[step] = carried
    return result
