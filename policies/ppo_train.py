"""How does the simulator become a PPO policy's bundles: environments, encoder, training, best and last?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from policies.bc import Trained
from policies.bundle import BundleContent, check_bundle, save_bundle
from policies.chunks import ExecutionConfig
from policies.control import PREFIX
from policies.encoder import EncoderConfig, open_encoder
from policies.environment import environment_id, make_environment, randomization, task_spec
from policies.observation import seen_cameras, sees_state
from policies.ppo import Setting
from policies.ppo_config import PPOConfig
from policies.ppo_loop import train_ppo
from toto_robot.encoders.base import Encoder

SCORE = "window_score"  # of a bundle's training: success and return of the window that made it the best


def learn_by_trial(
    config: PPOConfig,
    *,
    env: str,
    preset: str,
    cameras: tuple[str, ...],
    encoder: EncoderConfig,
    seed: int,
    settings: Mapping[str, Any],
    run_dir: Path,
) -> None:
    """Train with PPO and leave <run>/bundle and <run>/bundle_best or bundle_last, the one that `select` did not choose.

    `settings` are stored in the bundles. While it trains, <run>/bundle_best is the best so far, ready to be evaluated.
    """
    eyes = open_encoder(encoder)
    seen = seen_cameras(eyes, cameras)
    setting = learning_setting(config, env=env, preset=preset, cameras=seen, filmed=cameras, encoder=eyes)
    if config.device == encoder.device == "cpu":
        setting = replace(setting, open_encoder=partial(open_encoder, encoder))
    training = {
        "learner": "ppo",
        "env_steps": config.updates * config.batch_steps,
        "seed": seed,
        "settings": dict(settings),
    }

    def save(name: str, checkpoint: str, trained: Trained, score: list[float] | None = None) -> None:
        content = BundleContent(
            trained=trained,
            encoder=eyes,
            execution=ExecutionConfig(kind="first"),
            task=setting.task,
            cameras=seen,
            training={**training, "checkpoint": checkpoint, **({} if score is None else {SCORE: score})},
        )
        save_bundle(run_dir / name, content)

    best = run_dir / "bundle_best"
    # After a kill the bundle may be newer than the checkpoint, or gone; its own score says which.
    kept = check_bundle(best)["training"].get(SCORE) if best.exists() else []
    last = train_ppo(config, setting, seed, run_dir, keep_best=partial(save, best.name, "best"), kept=kept)
    if config.select == "best" and best.exists():
        save("bundle_last", "last", last)
        os.replace(best, run_dir / "bundle")  # last, because a run that has it is done
    else:
        save("bundle", "last", last)


def learning_setting(
    config: PPOConfig,
    *,
    env: str,
    preset: str,
    cameras: tuple[str, ...],
    filmed: tuple[str, ...],
    encoder: Encoder,
) -> Setting:
    """Say how environments are made; one that is never stepped tells the specification."""
    name, control = environment_id(env), env.startswith(PREFIX)
    options: dict[str, Any] = {"preset": preset, "action_mode": config.action_mode, "image_size": config.image_size}
    blind_mode = "state" if sees_state(encoder) else "proprio"
    watched = {"obs_mode": "pixels", "cameras": cameras} if cameras else {"obs_mode": blind_mode}
    # What a blind policy is filmed with belongs to its task too.
    example = make_environment(name, **options, obs_mode="proprio" if control else "all", cameras=filmed)
    task, state = task_spec(example), example.observation_space.spaces.get("state")
    example.close()
    looks = randomization(config.randomize, config.randomize_strength)
    return Setting(
        make=partial(make_environment, name, **options, **watched, **looks),
        task=task,
        state_entries=0 if state is None else int(state.shape[0]),
        encoder=encoder,
        cameras=cameras,
    )
