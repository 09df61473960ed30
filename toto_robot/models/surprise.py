"""How surprised is Toto by each token of the frame that has just come, while the video still runs?

What costs: all layers and the head for one frame, not the history again. The last feature of a frame predicts the first
token of the next, so it is kept; the rest of a frame is predicted within the frame's own pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toto_robot.models.toto import Toto


class SurpriseStream:
    """Negative log-likelihood of every token of every row's newest frame given all before, one frame a call.

    Equals the full forward at any length for the memory of one window of `context_frames` (by default and at most what
    the model was trained with). The likelihood is over all ids, as in the training loss; beyond the trained length over
    visual ids, since there the model has learned that the end id comes. Call it and its steps under the same autocast.
    """

    def __init__(self, model: Toto, batch: int, context_frames: int | None = None) -> None:
        config = model.config
        self._model, self._layers = model, (config.layers,)
        self._ring = model.ring(batch, context_frames=context_frames)
        start = torch.full((1, 1), config.start_video_id, device=self._ring.device)
        self._start = self._last_layer(start)  # (1, 1, D): what predicts the first token of a video
        self._before = self._start.expand(batch, 1, -1)

    @property
    def frames_seen(self) -> Tensor:
        """How many frames of its video every row has taken, (B,) int64."""
        return self._ring.frames_since_reset

    @torch.no_grad()
    def step(self, codes: Tensor, restart: Tensor | None = None) -> Tensor:
        """Take the codes (B, P) of every row's next frame; return nats (B, P) float32.

        `restart` (B,) boolean: these rows begin a new video with this frame.
        """
        config, ring = self._model.config, self._ring
        if restart is not None:
            rows = restart.to(ring.device)
            ring.reset(rows)
            self._before = torch.where(rows[:, None, None], self._start, self._before)
        beyond = ring.frames_since_reset >= config.frames
        ids = codes.to(ring.device).long() + config.first_visual_id
        here = self._model(ids, layers=self._layers, logits=False, cache=ring).features[config.layers]
        predicting = torch.cat([self._before, here[:, :-1]], dim=1)  # (B, P, D)
        logits = float_logits(self._model, predicting)
        logits[..., : config.first_visual_id].masked_fill_(beyond[:, None, None], -torch.inf)
        self._before = here[:, -1:]
        return F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")

    @torch.no_grad()
    def _last_layer(self, ids: Tensor) -> Tensor:
        return self._model(ids, layers=self._layers, logits=False).features[self._layers[0]]


def float_logits(model: Toto, x: Tensor) -> Tensor:
    """Return float32 logits (B, L, V) of the last layer's output, whatever the autocast.

    bfloat16 rounds a logit of 10 to steps of 0.06, which is 6 % of a probability.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(model.norm(x.float()), model.head.weight.float())  # a fast copy's weight is bfloat16
