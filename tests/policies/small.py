"""What is the smallest policy training that is still a real one?"""

from __future__ import annotations

from pathlib import Path

from policies.bc import BCConfig
from policies.encoder import EncoderConfig
from policies.evaluate import EvaluationConfig
from policies.heads.config import HeadConfig
from policies.heads.trunk import TrunkConfig
from policies.train import TrainPolicyConfig

IMAGE_SIZE = 32
EPISODES = 3


def make_small(demos: Path, toto: EncoderConfig, folder: Path) -> TrainPolicyConfig:
    """A policy that trains and runs in seconds; its cache lies in `folder`."""
    return TrainPolicyConfig(
        demos=str(demos),
        demonstrations=EPISODES,
        cache=str(folder / "cache"),
        encoder=toto,
        bc=BCConfig(
            steps=30,
            batch_size=16,
            validate_every=10,
            log_every=10,
            checkpoint_every=10,
            head=HeadConfig(
                trunk=TrunkConfig(queries=2, attention_heads=2, camera_width=16, proprio_width=16, hidden=(32,))
            ),
        ),
        evaluation=EvaluationConfig(episodes=3, workers=1, envs_per_worker=2, videos=1),
    )
