"""Soft credit for the diagnosis."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.taxonomy import FINDINGS, name_of
from cogalign.grpo.rewards import diagnosis_f1_reward, diagnosis_near_reward

ids = st.sets(st.sampled_from(sorted(set(FINDINGS) - {"normal"})), min_size=1, max_size=4)


def said(*names: str) -> str:
    return f"The diagnosis result is {', '.join(names)}."


def f1(gold: list[str], *names: str) -> float | None:
    return diagnosis_f1_reward([said(*names)], [gold])[0]


def near(gold: list[str], *names: str) -> float | None:
    return diagnosis_near_reward([said(*names)], [gold])[0]


def test_f1_of_sets() -> None:
    assert f1(["polyp", "erosion"], "Erosion", "Polyp") == 1
    assert f1(["polyp", "erosion"], "Polyp") == pytest.approx(2 / 3)
    assert f1(["polyp"], "Polyp", "Erosion", "Ulcer") == pytest.approx(1 / 2)
    assert f1(["polyp"], "Ulcer") == 0
    assert f1(["normal"], "Normal") == 1


def test_f1_is_not_fooled_by_listing_every_finding() -> None:
    every = [finding.name for finding in FINDINGS.values() if not finding.normal]
    assert f1(["polyp"], *every) < 0.1  # type: ignore[operator]
    assert near(["polyp"], *every) < 0.15  # type: ignore[operator]


def test_f1_is_not_fooled_by_unknown_names() -> None:
    assert f1(["polyp"], "Polyp", "Unicorn") == pytest.approx(2 / 3)
    assert f1(["polyp"], "Unicorn") == 0


@pytest.mark.parametrize("reward", [f1, near])
def test_it_is_not_fooled_by_normal_beside_a_finding(reward: object) -> None:
    assert reward(["polyp"], "Normal", "Polyp") == 0  # type: ignore[operator]
    assert reward(["normal"], "Normal", "Polyp") == 0  # type: ignore[operator]


@pytest.mark.parametrize("text", ["", "There is a polyp.", "The diagnosis result is ."])
def test_it_is_not_fooled_by_an_answer_without_diagnosis(text: str) -> None:
    assert diagnosis_f1_reward([text], [["polyp"]]) == diagnosis_near_reward([text], [["polyp"]]) == [0.0]


@pytest.mark.parametrize("reward", [diagnosis_f1_reward, diagnosis_near_reward])
def test_a_case_without_findings_is_not_judged(reward: object) -> None:
    assert reward([said("Polyp")] * 2, [None, []]) == [None, None]  # type: ignore[operator]


def test_near_misses_count_in_part() -> None:
    assert near(["ulcer"], "Ulcer") == 1
    assert near(["ulcer"], "Aphthoid ulcer") == 0.5
    assert near(["ulcer"], "Erosion") == 0.25
    assert near(["ulcer"], "Polyp") == near(["ulcer"], "Normal") == near(["normal"], "Ulcer") == 0


def test_near_is_not_fooled_by_listing_relatives() -> None:
    assert near(["ulcer"], "Erosion", "Aphthoid ulcer") < near(["ulcer"], "Aphthoid ulcer")  # type: ignore[operator]
    assert near(["ulcer"], "Ulcer", "Erosion", "Aphthoid ulcer") == 0.5


@settings(max_examples=60, deadline=None)
@given(ids, ids)
def test_near_lies_between_f1_and_one_and_only_the_truth_earns_one(gold: set[str], answer: set[str]) -> None:
    names = [name_of(one) for one in sorted(answer)]
    hard, soft = f1(sorted(gold), *names), near(sorted(gold), *names)
    assert hard is not None and soft is not None
    assert 0 <= hard <= soft <= 1
    assert (soft == 1) == (hard == 1) == (gold == answer)
