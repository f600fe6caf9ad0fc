"""A checkpoint's completions on another number of ranks: the same groups in the same order, none lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cogalign.data.case import Case
from cogalign.generation.sampling import Rollout
from cogalign.grpo.experience import Draw, Experience, MicroBatch, Slice, load, save
from cogalign.grpo.recut import recut

GROUP, PAD = 2, 7


def micro(places: list[int], step: int, with_old: bool = True) -> MicroBatch:
    """Groups whose numbers tell where they stand: completion k of place p has p + k + 1 tokens, all of them 10 p + k."""
    lengths = torch.tensor([place + k + 1 for place in places for k in range(GROUP)])
    value = torch.tensor([10 * place + k for place in places for k in range(GROUP)])
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    ids = torch.where(mask.bool(), value[:, None], PAD)
    logps = torch.where(mask.bool(), -value[:, None].float(), 0.0)
    draws = [Draw(Case(str(place), "images/a.png", ("polyp",), "train"), (0, step, place)) for place in places]
    made = MicroBatch(draws, Rollout(ids, mask, value % 2 == 0, None), None, mask, value.float())
    made.old_logps, made.ref_logps = (logps if with_old else None), logps * 2
    return made


def written(cuts: list[list[list[int]]], steps: int = 2) -> list[dict[str, Any] | None]:
    """What ranks with these micro-batches write, with two optimizer steps' worth of completions."""
    slices = [[Slice([micro(part, step, step == 0) for part in rank], {"reward": float(step)}) for step in range(steps)]
              for rank in cuts]  # fmt: skip
    return [save(Experience(parts, 2, used=1)) for parts in slices]


def told(state: dict[str, Any]) -> list[list[tuple[int, list[int], float]]]:
    """Place, tokens and advantage of each completion of each step, as `load` reads them."""

    def find(origin: tuple[int, int, int]) -> Case:
        return Case(str(origin[2]), "images/a.png", ("polyp",), "train")

    read = load(state, find, torch.device("cpu"))
    assert (read.used, read.iterations) == (1, 2)
    found = []
    for step, part in enumerate(read.slices):
        assert part.metrics == {"reward": float(step)}
        rows = []
        for one in part.micros:
            rollout = one.rollout
            assert one.mask is not None and one.advantages is not None and one.ref_logps is not None
            assert (one.old_logps is not None) == (step == 0)
            assert torch.equal(one.ref_logps, -2.0 * rollout.ids * rollout.mask)
            assert rollout.mask.sum(1).max() == rollout.ids.shape[1]  # no column of padding only
            assert bool((rollout.ids[rollout.mask == 0] == PAD).all())
            for row in range(len(one)):
                place = int(one.draws[row // GROUP].case.id)
                rows.append((place, rollout.ids[row][rollout.mask[row].bool()].tolist(), float(one.advantages[row])))
        found.append(rows)
    return found


@pytest.mark.parametrize(
    "cuts", [[[[0, 1, 2, 3]]], [[[0, 1]], [[2, 3]]], [[[0], [1]], [[2], [3]]], [[[0]], [[1]], [[2]], [[3]]]]
)
@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 4), (1, 3), (2, 2), (2, 1), (4, 8)])  # fmt: skip
def test_groups_keep_their_order_and_their_numbers(cuts: Any, ranks: int, micro_batch: int) -> None:
    stored = written(cuts)
    wanted = told(written([[[0, 1, 2, 3]]])[0] or {})
    parts = recut(stored, range(ranks), micro_batch, PAD)
    assert len(parts) == ranks
    by_rank = [told(part or {}) for part in parts]
    assert [[row for rank in by_rank for row in rank[step]] for step in range(2)] == wanted
    if len(cuts) != ranks:
        sizes = [len(one["origins"]) for one in (parts[0] or {})["slices"][0]["micros"]]
        assert max(sizes) <= micro_batch and sum(sizes) == 4 // ranks


def test_the_same_number_of_ranks_goes_on_with_what_it_wrote() -> None:
    stored = written([[[0, 1]], [[2, 3]]])
    found = recut(stored, range(2), 1, PAD)
    assert found[0] is stored[0] and found[1] is stored[1]


def test_between_two_generations_there_is_nothing_to_cut() -> None:
    assert recut([None, None], range(4), 1, PAD) == [None] * 4


def test_what_cannot_be_cut_says_why() -> None:
    with pytest.raises(ValueError, match="4 groups of a step cannot be divided over 3 ranks"):
        recut(written([[[0, 1, 2, 3]]]), range(3), 4, PAD)
    with pytest.raises(ValueError, match="some of its ranks have completions and some have none"):
        recut([*written([[[0, 1]]]), None], range(1), 4, PAD)
    odd = written([[[0, 1]], [[2, 3]]])
    assert odd[1] is not None
    odd[1]["slices"][0]["micros"][0]["old_logps"] = None
    with pytest.raises(ValueError, match="old_logps is known for some of its completions only"):
        recut(odd, range(1), 4, PAD)
