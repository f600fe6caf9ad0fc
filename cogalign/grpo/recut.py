"""The completions of a checkpoint, cut anew for another number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cogalign.grpo.experience import LEARNED, ROLLOUT

TENSORS = (*(f"rollout.{name}" for name in ROLLOUT), *LEARNED)
State = dict[str, Any]
"""What `experience.save` gives."""


def recut(stored: Sequence[State | None], ranks: range, micro_batch: int, pad: int) -> list[State | None]:
    """What each of some ranks goes on with.

    An optimizer step's groups are those of rank 0, then of rank 1, and so on; the new ranks take equal contiguous parts
    of the same line, so that each step learns from the same completions as it would have.

    Args:
        stored: the experience of every rank that wrote the checkpoint; None where a generation had just ended.
        ranks: the ranks that are there now, `range(world_size)`.
        micro_batch: groups of a micro-batch.
        pad: id of the padding.

    Returns:
        The experience of each rank; as it was where the number of ranks is the same.

    Raises:
        ValueError: it cannot be cut so; says why.
    """
    if len(stored) == len(ranks) or all(state is None for state in stored):
        return list(stored) if len(stored) == len(ranks) else [None for _ in ranks]
    states = [state for state in stored if state is not None]
    if len(states) < len(stored):
        raise ValueError("some of its ranks have completions and some have none")
    parts: list[list[State]] = [[] for _ in ranks]
    for slices in zip(*(state["slices"] for state in states), strict=True):
        whole = _joined([micro for part in slices for micro in part["micros"]], pad)
        groups = len(whole["origins"])
        if groups % len(ranks):
            raise ValueError(f"{groups} groups of a step cannot be divided over {len(ranks)} ranks")
        size = groups // len(ranks)
        for rank in ranks:
            firsts = range(rank * size, (rank + 1) * size, micro_batch)
            micros = [_rows(whole, first, min(first + micro_batch, (rank + 1) * size)) for first in firsts]
            parts[rank].append({"metrics": dict(slices[0]["metrics"]), "micros": micros})
    return [{**states[0], "slices": slices} for slices in parts]


def _joined(micros: Sequence[State], pad: int) -> State:
    """All groups of an optimizer step in one line."""
    longest = max(micro["rollout.ids"].shape[1] for micro in micros)
    whole: State = {"origins": [origin for micro in micros for origin in micro["origins"]]}
    for name in TENSORS:
        values = [micro[name] for micro in micros]
        known = [_wide(value, longest, pad if name == "rollout.ids" else 0) for value in values if value is not None]
        if 0 < len(known) < len(values):
            raise ValueError(f"{name} is known for some of its completions only")
        whole[name] = torch.cat(known) if known else None
    return whole


def _wide(values: Tensor, length: int, fill: int) -> Tensor:
    """Values [N, T] padded on the right; values [N] as they are."""
    if values.dim() == 1:
        return values
    return torch.nn.functional.pad(values, (0, length - values.shape[1]), value=fill)


def _rows(whole: State, first: int, stop: int) -> State:
    """The micro-batch of some groups, cut to its longest completion."""
    group = len(whole["rollout.ids"]) // len(whole["origins"])
    rows = slice(first * group, stop * group)
    length = max(1, int(whole["rollout.mask"][rows].sum(1).max()))
    micro: State = {"origins": whole["origins"][first:stop]}
    for name in TENSORS:
        value = whole[name]
        cut = None if value is None else value[rows] if value.dim() == 1 else value[rows, :length]
        micro[name] = None if cut is None else cut.clone()
    return micro
