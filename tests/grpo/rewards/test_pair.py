"""A case and its counterfactual, judged together."""

from __future__ import annotations

from typing import Any

import pytest

from cogalign.grpo.rewards import pair_reward


def says(diagnosis: str, place: str = "Colon") -> str:
    return f"1. Location & Imaging Environment\n{place}, white light.\nThe diagnosis result is {diagnosis}."


def pair(what: str, factual: list[str], other: list[str], organ: str | None = "colon") -> list[float | None]:
    """Rewards of completions of a polyp and of its counterfactual."""
    n, m = len(factual), len(other)
    columns: dict[str, Any] = {
        "id": ["a"] * n + ["a-cf"] * m,
        "counterfactual_of": [None] * n + ["a"] * m,
        "intervention": [None] * n + [what] * m,
        "findings": [["polyp"]] * n + [["normal"] if what == "removal" else ["polyp"]] * m,
        "organ": [organ] * (n + m),
    }
    return pair_reward([*factual, *other], **columns)


def test_removal_of_one_of_two_findings_wants_exactly_the_other() -> None:
    columns: dict[str, Any] = {
        "id": ["a", "a-cf"],
        "counterfactual_of": [None, "a"],
        "intervention": [None, "removal"],
        "findings": [["polyp", "ulcer"], ["ulcer"]],
        "organ": ["colon", "colon"],
    }
    assert pair_reward([says("Polyp, Ulcer"), says("Ulcer")], **columns) == [1.0, 1.0]
    assert pair_reward([says("Polyp, Ulcer"), says("Normal")], **columns) == [0.0, 0.0]
    assert pair_reward([says("Polyp, Ulcer"), says("Polyp, Ulcer")], **columns) == [0.0, 0.0]


def test_removal_wants_the_flip_and_the_same_place() -> None:
    assert pair("removal", [says("Polyp")], [says("Normal")]) == [1.0, 1.0]
    assert pair("removal", [says("Polyp")], [says("Normal", "Stomach")]) == [0.5, 0.5]
    assert pair("removal", [says("Polyp")], [says("Polyp")]) == [0.0, 0.0]
    assert pair("removal", [says("Polyp")], [says("Ulcer")]) == [0.0, 0.0]


@pytest.mark.parametrize("what", ["control", "transplant", "background"])
def test_other_interventions_want_the_same_diagnosis(what: str) -> None:
    assert pair(what, [says("Polyp")], [says("Polyp", "Stomach")]) == [1.0, 1.0]
    assert pair(what, [says("Polyp")], [says("Normal")]) == [0.0, 0.0]
    assert pair(what, [says("Polyp")], [says("Polyp, Ulcer")]) == [0.0, 0.0]


@pytest.mark.parametrize("what", ["removal", "control", "transplant"])
@pytest.mark.parametrize("always", ["Normal", "Ulcer", "Unicorn", ""])
def test_it_is_not_fooled_by_two_wrong_answers_that_agree(what: str, always: str) -> None:
    assert pair(what, [says(always)], [says(always)]) == [0.0, 0.0]


@pytest.mark.parametrize("what", ["removal", "control", "transplant"])
def test_it_is_not_fooled_by_empty_answers(what: str) -> None:
    assert pair(what, [""], [""]) == [0.0, 0.0]


def test_it_is_not_fooled_by_a_flip_from_a_wrong_diagnosis() -> None:
    assert pair("removal", [says("Ulcer")], [says("Normal")]) == [0.0, 0.0]


def test_it_is_not_fooled_by_two_wrong_places_that_agree() -> None:
    assert pair("removal", [says("Polyp", "Stomach")], [says("Normal", "Stomach")]) == [0.5, 0.5]
    assert pair("removal", [says("Polyp", "Somewhere")], [says("Normal", "Somewhere")]) == [0.5, 0.5]


def test_where_the_organ_is_not_known_the_place_is_not_judged() -> None:
    assert pair("removal", [says("Polyp")], [says("Normal", "Stomach")], organ="unknown") == [1.0, 1.0]


def test_each_is_compared_with_all_completions_of_its_partner() -> None:
    rewards = pair("removal", [says("Polyp"), says("Normal")], [says("Normal"), says("Normal"), says("Polyp")])
    assert rewards == pytest.approx([2 / 3, 0.0, 0.5, 0.5, 0.0])


def test_without_a_partner_in_the_batch_nothing_is_judged() -> None:
    columns: dict[str, Any] = {
        "id": ["a", "b-cf", "c", "c-cf"],
        "counterfactual_of": [None, "b", "", "c"],
        "intervention": [None, "removal", None, "sharpening"],
        "findings": [["polyp"], ["normal"], ["polyp"], ["polyp"]],
    }
    assert pair_reward([says("Polyp")] * 4, **columns) == [None] * 4


def test_two_counterfactuals_of_one_case_both_count_for_it() -> None:
    columns: dict[str, Any] = {
        "id": ["a", "a-r", "a-c"],
        "counterfactual_of": [None, "a", "a"],
        "intervention": [None, "removal", "control"],
        "findings": [["polyp"], ["normal"], ["polyp"]],
    }
    assert pair_reward([says("Polyp"), says("Normal"), says("Normal")], **columns) == [0.5, 1.0, 0.0]
