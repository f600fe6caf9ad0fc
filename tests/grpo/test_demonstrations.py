"""Demonstrations: reports among the completions of a group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cogalign.generation.sampling import Rollout
from cogalign.grpo.demonstrations import with_demonstrations, without_demonstrations
from cogalign.recipe_grpo import GrpoSettings

PAD, END = 0, 1
Ids = list[list[int]]


def rollout_of(completions: Ids) -> Rollout:
    """Completions of any tokens from 2 on, as sampling gives them: padded, closed by END or cut."""
    width = max(map(len, completions))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in completions])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in completions])
    return Rollout(ids, mask, torch.tensor([row[-1] == END for row in completions]))


def rows(rollout: Rollout) -> Ids:
    return [ids[mask.bool()].tolist() for ids, mask in zip(rollout.ids, rollout.mask, strict=True)]


completion = st.lists(st.integers(2, 9), min_size=1, max_size=6)
groups = st.integers(1, 3).flatmap(
    lambda size: st.lists(
        st.tuples(st.lists(completion, min_size=size, max_size=size), completion), min_size=1, max_size=4
    )
)


@given(groups, st.integers(1, 3))
def test_each_group_is_its_own_completions_then_its_report(
    given_groups: list[tuple[Ids, list[int]]], count: int
) -> None:
    sampled = [row for completions, _ in given_groups for row in completions]
    answers = [[*answer, END] for _, answer in given_groups]
    found = with_demonstrations(rollout_of(sampled), answers, count, PAD)
    wanted = [row for (own, _), answer in zip(given_groups, answers, strict=True) for row in [*own, *[answer] * count]]
    assert rows(found) == wanted
    assert found.finished.tolist() == [row[-1] == END for row in wanted]
    assert found.mask.dtype == torch.long and bool((found.ids[found.mask == 0] == PAD).all())


@given(groups, st.integers(1, 3))
def test_the_policys_own_completions_are_found_again(given_groups: list[tuple[Ids, list[int]]], count: int) -> None:
    sampled = [row for completions, _ in given_groups for row in completions]
    found = with_demonstrations(rollout_of(sampled), [[*answer, END] for _, answer in given_groups], count, PAD)
    size = len(given_groups[0][0]) + count
    own = without_demonstrations(torch.arange(len(found.ids)), size, count)
    assert [rows(found)[place] for place in own.tolist()] == sampled


def test_completions_of_another_engine_are_refused() -> None:
    sampled = rollout_of([[5, END], [6, END]])
    other = Rollout(sampled.ids, sampled.mask, sampled.finished, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="sampler hf"):
        with_demonstrations(other, [[7, END]], 1, PAD)


def test_a_number_of_reports_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 completions and 2 reports"):
        with_demonstrations(rollout_of([[5, END]] * 3), [[7, END]] * 2, 1, PAD)


@pytest.mark.parametrize(
    "values", [{"demonstrations": 8}, {"demonstrations": -1}, {"demonstrations": 1, "sampler": "vllm"}]
)
def test_a_recipe_with_demonstrations_that_cannot_work_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"grpo\.demonstrations"):
        GrpoSettings(**values)  # type: ignore[arg-type]
