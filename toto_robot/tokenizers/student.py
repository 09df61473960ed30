"""How does a narrow encoder learn to give a wide one's codes?

A student has the vocabulary, the grid and the decoder of its teacher and a smaller encoder of the dVAE layout, trained
as a classifier of each patch. It is a `DVAE` like any other.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, frames_to_input
from toto_robot.tokenizers.vq import open_residual_paths


def student_config(teacher: DVAEConfig, hidden: int | None = None, blocks_per_group: int = 1) -> DVAEConfig:
    """Return a student's sizes: by default a quarter of the teacher's width; ValueError where it is not narrower."""
    hidden = max(4, teacher.hidden // 16 * 4) if hidden is None else hidden
    decoder_hidden, decoder_blocks = teacher.decoder_sizes
    if hidden >= teacher.hidden:
        raise ValueError(f"a student must be narrower than its teacher's {teacher.hidden}, got width={hidden}")
    return replace(
        teacher, name=f"{teacher.name}_student", hidden=hidden, blocks_per_group=blocks_per_group,
        decoder_hidden=decoder_hidden, decoder_blocks_per_group=decoder_blocks,
    )  # fmt: skip


def make_student(teacher: DVAE, config: DVAEConfig, *, generator: torch.Generator | None = None) -> DVAE:
    """Return a fresh encoder of that configuration before a frozen copy of the teacher's decoder."""
    student = DVAE(config, generator=generator)
    open_residual_paths(student.encoder)
    student.decoder.load_state_dict(teacher.decoder.state_dict())
    student.decoder.requires_grad_(False)
    return student


def student_loss(student: DVAE, teacher: DVAE, frames: Tensor, soft: float) -> dict[str, Tensor]:
    """Compare the two on uint8 frames (B, h, w, 3); return scalars: `loss` and, detached, `agreement` and more.

    The loss is (1 - soft) times the cross-entropy on the teacher's codes plus `soft` times that on its probabilities,
    the softmax of its logits, in nats a patch. `agreement` is the share of patches with equal codes.
    """
    mapped = frames_to_input(frames)
    logits = student.encoder(mapped)
    with torch.no_grad():
        wanted = teacher.encoder(mapped)
        codes = wanted.argmax(dim=1)
    hard = F.cross_entropy(logits, codes)
    loss = hard
    if soft:
        loss = (1 - soft) * hard + soft * F.cross_entropy(logits, wanted.softmax(dim=1))
    agreement = (logits.detach().argmax(dim=1) == codes).float().mean()
    return {"loss": loss, "cross_entropy": hard.detach(), "agreement": agreement}
