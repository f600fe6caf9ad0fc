"""How this process was started: as the main one of a command, or beside it. Asks the environment; torch is not needed."""

from __future__ import annotations

import os

RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")


def is_main_process() -> bool:
    """Whether this process writes files: not one that Lightning, SLURM or torchrun started beside the first."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)
