"""What do the policy tests share: a few real demonstrations, and encoders small enough for seconds?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policies.collect import CollectConfig, collect_episodes
from policies.encoder import EncoderConfig
from policies.train import TrainPolicyConfig
from tests.policies.small import EPISODES, IMAGE_SIZE, make_small
from toto_robot.data.episodes import EpisodeStore
from toto_robot.models.hub import save_pretrained
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demos(tmp_path_factory) -> Path:
    """Three real demonstrations, 32 px."""
    path = tmp_path_factory.mktemp("demos") / "episodes"
    collect_episodes(CollectConfig(episodes=EPISODES, image_size=IMAGE_SIZE, workers=1), path)
    return path


@pytest.fixture
def store(demos) -> EpisodeStore:
    return EpisodeStore.open(demos)


@pytest.fixture(scope="session")
def toto_folder(tmp_path_factory) -> Path:
    """A Toto of 16 tokens a frame that looks back on 4 frames, with its tokenizer, untrained."""
    folder = tmp_path_factory.mktemp("toto") / "pretrained_model"
    config = TotoConfig(
        name="test", visual_vocab=16, width=32, layers=2, heads=2, ffn_width=48, tokens_per_frame=16, frames=4,
        context_frames=4, image_px=IMAGE_SIZE,
    )  # fmt: skip
    model = Toto(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # attention far from even, so that errors show
    save_pretrained(model, folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = DVAE(DVAEConfig(name="test", hidden=8, blocks_per_group=1, vocab=16, decoder_init=8))
    save_dvae(tokenizer, folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def toto(toto_folder) -> EncoderConfig:
    return EncoderConfig(name="toto", path=str(toto_folder), context_frames=None, precision="fp32")


@pytest.fixture
def small(demos, toto, tmp_path) -> TrainPolicyConfig:
    return make_small(demos, toto, tmp_path)
