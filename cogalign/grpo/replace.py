"""Groups whose rewards do not differ are replaced by groups of new prompts whose do (DAPO, arXiv 2503.14476, sec. 3.2).

The new groups of all ranks stand in one line and fill the places of the old ones in order, wherever those are, so that
what a step learns from does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cogalign.generation.sampling import Rollout
from cogalign.grpo.experience import Draw, MicroBatch, Origin, joined, rows_of
from cogalign.grpo.judge import Judgement
from cogalign.grpo.ranks import Ranks


@dataclass(frozen=True)
class Group:
    """A group that may take another's place, on the CPU: `rollout` of G completions, rewards [G, R], totals [G]."""

    origin: Origin
    rollout: Rollout
    single: Tensor
    total: Tensor


def groups_of(micros: Sequence[MicroBatch], judgement: Judgement, chosen: Sequence[int], size: int) -> list[Group]:
    """The groups at some places of micro-batches.

    Args:
        micros: micro-batches.
        judgement: of all their completions.
        chosen: places of groups.
        size: completions of a group.
    """
    found = []
    for place in chosen:
        micro, row = locate(micros, place)
        rows = torch.arange(row * size, (row + 1) * size)
        here = slice(place * size, (place + 1) * size)
        rollout = on(rows_of(micro.rollout, rows.to(micro.rollout.ids.device)), torch.device("cpu"))
        found.append(Group(micro.draws[row].origin, rollout, judgement.single[here], judgement.total[here]))
    return found


def global_place(place: int, size: int, ranks: Ranks) -> int:
    """Place of a rank's group among those of all ranks: optimizer step by optimizer step, rank by rank in each.

    Args:
        place: of the group on this rank.
        size: groups of an optimizer step on a rank.
        ranks: this one.
    """
    step, local = divmod(place, size)
    return (step * ranks.world_size + ranks.rank) * size + local


def put(
    micros: Sequence[MicroBatch], judgement: Judgement, place: int, group: Group, draw: Draw, pad: int
) -> Judgement:
    """Put a group at `place` among the groups of `micros`; gives back the rewards with the group's own."""
    old, row = locate(micros, place)
    device, size = old.rollout.ids.device, len(group.total)
    both = joined([old.rollout, on(group.rollout, device)], pad)
    rows = torch.arange(len(old), device=device)
    rows[row * size : (row + 1) * size] = len(old) + torch.arange(size, device=device)
    old.rollout, old.prompts = rows_of(both, rows), None
    old.draws[row] = draw
    single, total = judgement.single.clone(), judgement.total.clone()
    here = slice(place * size, (place + 1) * size)
    single[here], total[here] = group.single, group.total
    return replace(judgement, single=single, total=total)


def on(rollout: Rollout, device: torch.device) -> Rollout:
    """A rollout on a device."""
    logps = None if rollout.logps is None else rollout.logps.to(device)
    return Rollout(rollout.ids.to(device), rollout.mask.to(device), rollout.finished.to(device), logps)


def locate(micros: Sequence[MicroBatch], place: int) -> tuple[MicroBatch, int]:
    """The micro-batch that holds the group `place`, and the group's place in it."""
    for micro in micros:
        if place < len(micro.draws):
            return micro, place
        place -= len(micro.draws)
    raise IndexError(f"no group {place}")
