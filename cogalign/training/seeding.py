"""Seeds, and the state of every random generator as plain values that a checkpoint can hold."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators (CPU and all GPUs).

    Args:
        seed: any integer; taken modulo 2^32, which is what numpy allows.
    """
    seed %= 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def derive_seed(seed: int, *names: object) -> int:
    """A seed in [0, 2^32) for one part of a run, so that its random stream is not another part's.

    Args:
        seed: the run's seed.
        names: what tells the part, e.g. `"grpo", rank`.
    """
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(sha256(text.encode("utf-8")).digest()[:4], "big")


def rng_state() -> dict[str, Any]:
    """The state of all generators as tensors, lists and numbers (loads with `weights_only=True`)."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss),
                  float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }  # fmt: skip


def set_rng_state(state: dict[str, Any]) -> None:
    """Set all generators to a state that `rng_state` gave.

    GPUs that this machine does not have are left out: such a run goes on, though not bit for bit.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), device)
