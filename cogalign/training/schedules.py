"""The learning rate over a stage, as a factor on its peak."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup_share: float) -> float:
    """Factor of the learning rate at `step` of `steps`: linear warm-up, then cosine decay to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
