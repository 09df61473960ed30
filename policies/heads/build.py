"""Which class is a head of this configuration, and how is it built so that the seed alone decides its weights?"""

from __future__ import annotations

import torch

from policies.heads.act import ACTHead
from policies.heads.base import Head, InputSizes
from policies.heads.config import HeadConfig, head_config_from_json
from policies.heads.diffusion import DiffusionHead
from policies.heads.gmm import GMMHead
from policies.heads.mlp import MLPHead

__all__ = ["build_head", "head_config_from_json"]

_CLASSES: dict[str, type[Head]] = {"mlp": MLPHead, "gmm": GMMHead, "act": ACTHead, "diffusion": DiffusionHead}


def build_head(config: HeadConfig, sizes: InputSizes, action_dim: int, seed: int) -> Head:
    """Build a head with first weights of `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _CLASSES[config.name](config, sizes, action_dim)
