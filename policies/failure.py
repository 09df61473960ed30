"""Which errors say that a training went wrong, and not that a setting is?"""

from __future__ import annotations

ACTION = "the policy's action"  # how errors call it; those of worker processes come as text


class TrainingFailed(ValueError):
    """A loss that is not finite: another seed of the same settings may do well."""


def training_failed(error: ValueError) -> bool:
    """Say whether it is the policy that is at fault, in this process or in a worker."""
    return isinstance(error, TrainingFailed) or f"NaN or infinity in {ACTION}" in str(error)
