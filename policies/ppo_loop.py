"""How does a PPO training run to its end: turns, window, curve, checkpoints, and on after a kill?

A killed run continues from its last checkpoint with weights, moments, statistics, window and schedule; only the
environments begin new episodes, so that a continued run is not the same to the bit.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from policies.bc import Trained
from policies.curve import CurvePoint, record_point
from policies.ppo import Setting, Trainer
from policies.ppo_config import PPOConfig
from policies.ppo_envs import Episode
from toto_robot.pretrain import checkpoint
from toto_robot.run_folder import MetricLog


class Window:
    """The last finished episodes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.episodes: deque[Episode] = deque(maxlen=size)

    @property
    def full(self) -> bool:
        """Whether as many episodes as it holds have finished."""
        return len(self.episodes) == self._size

    @property
    def successes(self) -> int:
        """How many of them succeeded."""
        return sum(episode.success for episode in self.episodes)

    @property
    def score(self) -> list[float]:
        """What the best policy has most of: success, then reward."""
        return [self.successes / len(self.episodes), float(np.mean([each.reward for each in self.episodes]))]

    def figures(self) -> dict[str, float]:
        """Return success, return and length on average; {} before the first episode has finished."""
        if not self.episodes:
            return {}
        success, reward = self.score
        length = float(np.mean([episode.steps for episode in self.episodes]))
        return {"episode/success": success, "episode/return": reward, "episode/length": length}


def train_ppo(
    config: PPOConfig, setting: Setting, seed: int, run_dir: Path, keep_best: Callable[[Trained, list[float]], None],
    kept: list[float] | None = None,
) -> Trained:  # fmt: skip
    """Train to the end, or from the last checkpoint to the end; return the last policy.

    `keep_best` is called, at checkpoints, with the policy whose window had the most successes so far, then the highest
    return, and with these two; `kept` are those of what it has kept before, [] where that is gone. Writes
    metrics.jsonl, TensorBoard, curve.jsonl (successes of the window, of the policy that explores) and checkpoints.
    `step` is environment steps everywhere, the resets that an ended episode takes included.
    """
    trainer, window = Trainer(config, setting, seed), Window(config.window_episodes)
    start, spent_s, best = restore(run_dir, trainer, window)
    if start > config.updates:
        raise ValueError(
            f"{run_dir} has learned from {start * config.batch_steps} environment steps already, more than "
            f"ppo.env_steps={config.env_steps}; give {start * config.batch_steps} to end it here, or more"
        )
    best = best if kept is None else kept
    done, total = start * config.batch_steps, config.updates * config.batch_steps
    better: Trained | None = None
    with (
        trainer.open(start),
        MetricLog(run_dir, resume_step=done) as log,
        tqdm(total=total, initial=done, unit="step", unit_scale=True, desc="ppo", smoothing=0.05) as bar,
    ):
        began = time.perf_counter()
        for index in range(start, config.updates):
            rollout, values = trainer.turn(index)
            window.episodes.extend(rollout.episodes)
            done += config.batch_steps
            log.write(done, values | window.figures())
            wall_s = spent_s + time.perf_counter() - began
            if window.full:
                record_point(
                    run_dir,
                    CurvePoint(
                        env_steps=done,
                        successes=window.successes,
                        episodes=len(window.episodes),
                        wall_s=round(wall_s, 1),
                    ),
                )
                if window.score > best:
                    best, better = window.score, trainer.learner.trained()
            if (index + 1) % config.checkpoint_every == 0 or index + 1 == config.updates:
                if better is not None:
                    keep_best(better, best)
                    better = None
                notes = {"updates": index + 1, "wall_s": wall_s, "best": best}
                _save(run_dir, done, trainer, notes | {"window": [astuple(each) for each in window.episodes]})
            bar.update(config.batch_steps)
            bar.set_postfix_str(_summary(window, values))
    return trainer.learner.trained()


def _save(run_dir: Path, done: int, trainer: Trainer, notes: Mapping[str, Any]) -> None:
    config = {"model_type": "ppo_learner", **asdict(trainer.config)}
    state = checkpoint.snapshot(done, trainer.learner, trainer.optimizer, config=config, notes=notes)
    checkpoint.save(run_dir, state, keep=1)


def restore(run_dir: Path, trainer: Trainer, window: Window) -> tuple[int, float, list[float]]:
    """Load the last checkpoint, if there is one; return updates done, seconds spent and the best score."""
    last = checkpoint.last(run_dir)
    if last is None:
        return 0, 0.0, []
    notes = checkpoint.restore(last, trainer.learner, trainer.optimizer).notes
    for reward, steps, success in notes["window"]:
        window.episodes.append(Episode(reward=reward, steps=steps, success=success))
    return int(notes["updates"]), float(notes["wall_s"]), list(notes["best"])


def _summary(window: Window, values: Mapping[str, float]) -> str:
    if not window.episodes:
        return ""
    success, reward = window.score
    return f"success {success:.0%} return {reward:.0f} kl {values.get('train/approx_kl', 0.0):.3f}"
