"""The sign of life that long work gives, which the watchdog looks at: which step, which phase, when.

Light and callable anywhere: `beat("rewards")` costs a clock reading, and nobody has to listen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Pulse:
    """Where this process's work stands.

    Attributes:
        step: the optimizer step that is being worked on, from 1; 0 before the first.
        phase: what is being done, e.g. `training`, `validation`, `sampling`.
        when: `time.monotonic()` of the last beat.
        finished: optimizer steps that this process has finished.
    """

    step: int = 0
    phase: str = "starting"
    when: float = 0.0
    finished: int = 0

    @property
    def idle(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self.when


PULSE = Pulse()
"""Of this process."""


def beat(phase: str | None = None, step: int | None = None) -> None:
    """Tell that the work goes on.

    Args:
        phase: what begins now; None: the same as before.
        step: the optimizer step that begins now, from 1.
    """
    PULSE.when = time.monotonic()
    if phase is not None:
        PULSE.phase = phase
    if step is not None:
        PULSE.step = step


def connection_timeout(timeout: float) -> float:
    """Seconds after which torch.distributed gives up: later than the watchdog, which tells more; ranks may start slowly.

    Args:
        timeout: `trainer.timeout`.
    """
    return max(600.0, timeout + 60.0)
