"""The form of a report: what costs, and what must not pay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.report import HEADINGS, SECTIONS, render
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.cognition.templates import template_report
from cogalign.data.phantom.spec import draw_spec
from cogalign.data.phantom.text import report
from cogalign.grpo.rewards import structure_reward
from cogalign.grpo.rewards.structure import repeated_share, structure

H = HEADINGS
PARTS = [H["location"], "Colon, white light.", H["morphology"], "Sessile lesion.", H["microvasculature"],
         "Villous pits.", "The diagnosis result is Polyp."]  # fmt: skip
GOOD = "\n".join(PARTS)


def test_reference_reports_earn_all() -> None:
    rng = np.random.default_rng(0)
    texts = [render(report(draw_spec(rng, 0.0, multi_share=0.4))) for _ in range(60)]
    texts += [render(template_report((f.id,), organ)) for f in FINDINGS.values() for organ in f.organs]
    assert structure_reward(completions=texts) == [1.0] * len(texts)


@pytest.mark.parametrize("missing", range(7))
def test_a_missing_part_costs(missing: int) -> None:
    assert structure("\n".join(PARTS[:missing] + PARTS[missing + 1 :])) <= 0.8


def test_it_is_not_fooled_by_headings_without_text() -> None:
    assert structure("\n".join([*H.values(), PARTS[-1]])) == pytest.approx(2 / 5)
    assert (
        structure("\n".join([H["location"], ".", H["morphology"], "-", H["microvasculature"], "3", PARTS[-1]])) == 2 / 5
    )


def test_it_is_not_fooled_by_headings_that_are_repeated() -> None:
    assert structure("\n".join(PARTS[:2] + PARTS)) < structure("\n".join(PARTS))
    assert structure("\n".join(PARTS[:6] * 3 + PARTS[6:])) < 0.2


def test_it_is_not_fooled_by_another_order() -> None:
    assert structure("\n".join(PARTS[2:4] + PARTS[:2] + PARTS[4:])) == pytest.approx(4 / 5)
    assert structure("\n".join(PARTS[6:] + PARTS[:6])) == pytest.approx(3 / 5)


@pytest.mark.parametrize("line", ["The diagnosis result is Ulcer.", "It may be something else."])
def test_it_is_not_fooled_by_a_second_diagnosis_or_text_after_it(line: str) -> None:
    assert structure(f"{GOOD}\n{line}") <= 4 / 5
    assert structure(f"{GOOD} {line}") <= 4 / 5


@pytest.mark.parametrize("empty", ["", " ", "\n\n", "The diagnosis result is ."])
def test_it_is_not_fooled_by_an_empty_answer(empty: str) -> None:
    assert structure(empty) == 0


@pytest.mark.parametrize(
    "loop", ["red halo. " * 30, "Sessile lesion of the wall. " * 30, "aaaaaaaaaaaaaaaa", "-+" * 40]
)
def test_it_is_not_fooled_by_loops(loop: str) -> None:
    assert structure(GOOD.replace("Villous pits.", loop)) < 0.35


def test_one_repeated_sentence_costs_little_and_many_cost_more() -> None:
    one, two = (GOOD.replace("Villous pits.", "Sessile lesion. " * n) for n in (1, 3))
    assert 1 > structure(one) > structure(two) > 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([*PARTS, "red", "\n", "text of a model"]), max_size=14))
def test_any_text_is_between_zero_and_one(parts: list[str]) -> None:
    assert 0 <= structure("\n".join(parts)) <= 1
    assert 0 <= repeated_share(parts) <= 1


@settings(max_examples=30, deadline=None)
@given(st.permutations(SECTIONS))
def test_only_one_order_earns_all(order: list[str]) -> None:
    text = "\n".join([*(f"{H[name]}\nWords of {name}." for name in order), "The diagnosis result is Polyp."])
    assert (structure(text) == 1) == (tuple(order) == SECTIONS)
