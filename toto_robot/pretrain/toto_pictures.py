"""What does a Toto make of a video, while it trains and when it is done?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from toto_robot.data.frames import FrameStore
from toto_robot.data.mixture import MixtureSampler, Window, read_rows
from toto_robot.data.tokens import TokenStore
from toto_robot.models.generate import generate
from toto_robot.models.toto import Toto
from toto_robot.pretrain.pictures import draw_rows
from toto_robot.tokenizers.load import load_tokenizer

_CLIPS_DRAWN = 3
_TEMPERATURE = 0.8


class Continuations:
    """A few windows, always the same, continued from their first quarter beside what really came."""

    def __init__(
        self,
        sampler: MixtureSampler,
        tokens: TokenStore,
        frames: FrameStore | None,
        tokenizer_dir: Path,
        *,
        kind: str,
        seed: int,
    ) -> None:
        """`sampler` chooses the windows; `kind`, "held-out" or "training", says of what; `frames` are only drawn."""
        self._tokens, self._frames, self._kind, self._seed = tokens, frames, kind, seed
        drawn = sampler.windows(0, 100 * _CLIPS_DRAWN)
        self._windows = _of_different_clips([one for one in drawn if one.kind == "video"] or drawn, tokens.clip_ends)
        self._tokenizer_dir = tokenizer_dir

    @torch.no_grad()
    def draw(self, model: Toto, path: Path) -> None:
        """Draw what `model` makes now; call it under the autocast and in the mode of validation."""
        T, given = model.config.frames, max(1, model.config.frames // 4)
        kind = "video" if self._windows[0].kind == "video" else "image"
        truth = self._tokens.windows([window.rows for window in self._windows]).astype(np.int64)  # (B, T, P)
        device = model.embed.weight.device
        made = generate(
            model, torch.from_numpy(truth[:, :given]), T - given, temperature=_TEMPERATURE, kind=kind,
            generator=torch.Generator(device).manual_seed(self._seed),
        ).cpu().numpy()  # fmt: skip
        rows = []
        decoded = [self._decoded(codes, device) for codes in (truth, made)]
        for window, tokens, continued in zip(self._windows, *decoded, strict=True):
            if self._frames is not None:
                rows.append((kind, read_rows(self._frames.frames, window.rows)))
            rows += [("its tokens", tokens), ("continued", continued)]
        title = (
            f"{model.config.name}, {self._kind} {kind}; right of the line the model draws every token "
            f"(temperature {_TEMPERATURE})"
        )
        draw_rows(path, rows, title=title, mark=given)

    def _decoded(self, codes: np.ndarray, device: torch.device) -> list[np.ndarray]:
        """Decode codes (B, T, P) to B times uint8 (T, h, w, 3)."""
        tokenizer = load_tokenizer(self._tokenizer_dir, device)  # for the moment: memory is the training's
        grids = torch.from_numpy(codes).unflatten(-1, self._tokens.grid).to(device)
        with torch.autocast(device.type, enabled=False):
            return [tokenizer.decode(one).cpu().numpy() for one in grids]


def _of_different_clips(windows: list[Window], clip_ends: np.ndarray) -> list[Window]:
    """Return the first few windows of which no two begin in the same clip."""
    by_clip: dict[int, Window] = {}
    for window in windows:
        by_clip.setdefault(int(np.searchsorted(clip_ends, window.rows[0], side="right")), window)
    return list(by_clip.values())[:_CLIPS_DRAWN]
