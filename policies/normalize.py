"""How are proprioception and actions brought to one scale, and what happens when a statistic is missing?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.failure import ACTION

KINDS = ("mean_std", "min_max", "none")
# A value far outside the demonstrations would drive the head anywhere; ten standard deviations is surely outside.
CLIP = 10.0


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """An affine map for each named dimension, fitted on the training demonstrations and stored with the policy."""

    kind: str
    names: tuple[str, ...]  # one for each dimension, in order
    offset: np.ndarray  # (D,) float32, in the units of the data
    scale: np.ndarray  # (D,) float32, in the units of the data, positive

    @classmethod
    def fit(
        cls, values: np.ndarray, names: Sequence[str], *, kind: str = "mean_std", floor: float = 1e-3
    ) -> Normalizer:
        """Fit on `values` (N, D); `floor` is the smallest scale, so that a dimension at rest is not blown up.

        ValueError for no data, a number that is not finite, a wrong number of names, or an unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(f"expected a normaliser of kind {', '.join(KINDS)}, got {kind!r}")
        if values.ndim != 2 or len(values) == 0:
            raise ValueError(f"expected values of shape (N, D) with N > 0, got {values.shape}")
        if values.shape[1] != len(names):
            raise ValueError(f"expected {len(names)} dimensions ({', '.join(names)}), got {values.shape[1]}")
        check_finite(values, names, "the demonstrations")
        offset, scale = _statistics(values.astype(np.float64), kind, floor)
        return cls(kind=kind, names=tuple(names), offset=offset.astype(np.float32), scale=scale.astype(np.float32))

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Map (..., D) to about unit scale, float32, clipped to +-10; ValueError for another D or a NaN.

        Kind `none` leaves them as they are.
        """
        self._check(values)
        normal: np.ndarray = (values.astype(np.float32) - self.offset) / self.scale
        return normal if self.kind == "none" else np.clip(normal, -CLIP, CLIP)

    def restore(self, normal: np.ndarray) -> np.ndarray:
        """Map (..., D) of a policy's actions back to the units of the data, float32; ValueError for a NaN."""
        self._check(normal, ACTION)
        return normal.astype(np.float32) * self.scale + self.offset

    def require(self, names: Sequence[str]) -> None:
        """Raise ValueError unless there is a statistic for exactly these names in this order.

        A statistic that is not there is an error, never the identity: peers pass such values through and the policy
        fails on the robot without a word (facts/peers.md, pain 5).
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(f"no normaliser statistic for {', '.join(missing)}; it has {', '.join(self.names)}")
        if tuple(names) != self.names:
            raise ValueError(f"expected the values {', '.join(self.names)} in this order, got {', '.join(names)}")

    def as_dict(self) -> dict[str, Any]:
        """Return JSON; float32 survives the way through decimal text exactly."""
        return {
            "kind": self.kind,
            "names": list(self.names),
            "offset": [float(value) for value in self.offset],
            "scale": [float(value) for value in self.scale],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Normalizer:
        """Read what `as_dict` wrote; ValueError names what is missing or has the wrong length."""
        for key in ("kind", "names", "offset", "scale"):
            if key not in stored:
                raise ValueError(f"the stored normaliser has no {key!r}; write the bundle again")
        names = tuple(stored["names"])
        offset, scale = (np.asarray(stored[key], dtype=np.float32) for key in ("offset", "scale"))
        if offset.shape != (len(names),) or scale.shape != (len(names),) or not np.all(scale > 0):
            raise ValueError(
                f"expected {len(names)} offsets and positive scales for {', '.join(names)}, "
                f"got {offset.shape} and {scale.shape}; write the bundle again"
            )
        return cls(kind=str(stored["kind"]), names=names, offset=offset, scale=scale)

    def _check(self, values: np.ndarray, where: str = "the observation") -> None:
        if values.shape[-1:] != (len(self.names),):
            raise ValueError(f"expected (..., {len(self.names)}) values ({', '.join(self.names)}), got {values.shape}")
        check_finite(values, self.names, where)


def check_finite(values: np.ndarray, names: Sequence[str], where: str) -> None:
    """Raise ValueError naming the dimensions of (..., D) `values` that hold NaN or infinity."""
    bad = ~np.isfinite(values)
    if bad.any():
        columns = np.flatnonzero(bad.reshape(-1, values.shape[-1]).any(axis=0))
        listed = ", ".join(names[column] for column in columns)
        raise ValueError(f"NaN or infinity in {where}: {listed} ({int(bad.sum())} of {values.size} numbers)")


def _statistics(values: np.ndarray, kind: str, floor: float) -> tuple[np.ndarray, np.ndarray]:
    if kind == "mean_std":
        offset, scale = values.mean(axis=0), values.std(axis=0)
    elif kind == "min_max":  # to [-1, 1]
        low, high = values.min(axis=0), values.max(axis=0)
        offset, scale = (low + high) / 2, (high - low) / 2
    else:
        offset, scale = np.zeros(values.shape[1]), np.ones(values.shape[1])
    return offset, np.maximum(scale, floor)
