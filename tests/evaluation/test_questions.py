from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSetWriter
from cogalign.evaluation import audit_stage, stage
from cogalign.evaluation.questions import (
    categories_of,
    choices_of,
    judged,
    normalized,
    summarize_questions,
    token_f1,
    verdict,
)
from cogalign.generation.hf import Completion
from cogalign.recipe import EvaluateSettings
from cogalign.training.context import StageContext
from tests.evaluation.conftest import SIDE, case_of, predictions

Make = Callable[..., StageContext]
texts = st.text(alphabet=st.sampled_from("ab the.,AN 1"), max_size=20)


def ask(name: str, question: str, answer: str, split: str = "test", **attributes: Any) -> Case:
    return Case(name, f"images/{name}.png", (), split, question=question, answer=answer, attributes=attributes)


CHOICE = ask("c", "What is it? <A> polyp, <B> ulcer, <C> dyed lifted polyp", "<C> dyed lifted polyp", category="lesion")
OPEN = ask("o", "Where is it?", "in the cecum, near the valve", question_class=["place", "landmark"])


def test_normalization_is_squads() -> None:
    """Examples worked out by hand from its four steps."""
    assert normalized("The Polyp, an  adenoma (A)!") == "polyp adenoma"
    assert normalized("a-b") == "ab" and normalized("theatre anthem") == "theatre anthem"


def test_token_f1_by_hand() -> None:
    assert token_f1("the cecum", "cecum") == 1
    assert token_f1("in cecum", "in the cecum near valve") == pytest.approx(2 * 2 / (2 + 4))
    assert token_f1("red red", "red") == pytest.approx(2 / 3)  # a word counts as often as it occurs
    assert token_f1("", "the") == 1 and token_f1("", "cecum") == 0 and token_f1("polyp", "ulcer") == 0


@settings(max_examples=80, deadline=None)
@given(one=texts, other=texts)
def test_f1_is_a_symmetric_share_and_one_for_equal_words(one: str, other: str) -> None:
    assert 0 <= token_f1(one, other) <= 1 and token_f1(one, other) == token_f1(other, one)
    assert token_f1(one, one) == 1 and normalized(normalized(one)) == normalized(one)
    case = replace(OPEN, answer=other or "x")
    found = verdict(one, case)
    assert found.f1 is not None and found.correct <= (found.f1 == 1)  # an exact match has all words


def test_choices_and_open_answers_are_judged() -> None:
    assert [
        verdict(text, CHOICE).correct
        for text in ("C", "<C> dyed lifted polyp", "The answer is (C).", "dyed lifted polyp")
    ] == [True] * 4
    assert [verdict(text, CHOICE).correct for text in ("A", "polyp", "", "polyp or ulcer", "cecum")] == [False] * 5
    assert verdict("C", CHOICE).choice and verdict("C", CHOICE).f1 is None
    assert verdict("<answer>In cecum near the valve.</answer>", OPEN).correct
    half = verdict("cecum", OPEN)
    assert not half.choice and not half.correct and half.f1 == pytest.approx(2 / 5)


def test_choices_come_from_the_attributes_first_and_an_answer_that_is_none_of_them_is_open() -> None:
    told = ask("x", "Which? <A> x, <B> y", "lesion", choices={"A": "lesion", "B": "no lesion"})
    assert choices_of(told) == {"A": "lesion", "B": "no lesion"}
    assert verdict("A.", told).correct and not verdict("B", told).correct
    other = replace(told, answer="something else")
    assert not verdict("A", other).choice and verdict("Something else!", other).correct


def test_categories_are_texts_or_lists() -> None:
    assert categories_of(CHOICE) == ["lesion"] and categories_of(OPEN) == ["place", "landmark"]
    assert categories_of(ask("x", "q", "a", category="")) == [] == categories_of(ask("x", "q", "a", category=3))


def test_metrics_with_intervals_and_categories() -> None:
    cases = [replace(CHOICE, id=f"c{n}") for n in range(8)] + [replace(OPEN, id=f"o{n}") for n in range(4)]
    said = ["C"] * 6 + ["A"] * 2 + ["in cecum near valve", "cecum", "", "x"]
    seen = case_of("p", ("polyp",))
    frame = predictions([*zip(cases, said, strict=True), (seen, "The diagnosis result is Polyp.")])
    rows = judged(frame, [*cases, seen])
    assert len(rows) == 12  # the case with findings is judged elsewhere
    found = summarize_questions(rows, resamples=200)
    assert found["question_n"] == 12 and found["question_accuracy"] == pytest.approx(7 / 12)
    assert found["question_choice_accuracy"] == 0.75 and found["question_choice_n"] == 8
    assert found["question_open_accuracy"] == 0.25 and found["question_f1"] == pytest.approx((1 + 2 / 5) / 4)
    low, high = found["question_accuracy_ci"]
    assert 0 < low < 7 / 12 < high < 1
    assert {name: (one["n"], one["accuracy"]) for name, one in found["question_categories"].items()} == {
        "landmark": (4, 0.25), "lesion": (8, 0.75), "place": (4, 0.25)
    }  # fmt: skip
    assert summarize_questions(rows[:0]) == {} and summarize_questions(judged(frame, [seen])) == {}
    alone = summarize_questions(rows[rows["choice"]], resamples=50)
    assert alone["question_f1"] is None and alone["question_open_n"] == 0 and not math.isnan(alone["question_accuracy"])


def add_questions(folder: Path, cases: list[Case], others: Path | None = None) -> None:
    """A case set of questions; with `others` the rows and images of that case set too."""
    with CaseSetWriter(folder) as writer:
        for case in cases:
            writer.add(case, np.zeros((SIDE, SIDE, 3), np.uint8))
    if others is not None:
        (folder / "more").symlink_to(others)
        rows = [json.loads(line) for line in (others / "metadata.jsonl").read_text().splitlines()]
        for row in rows:
            row["file_name"] = f"more/{row['file_name']}"
            row["mask_file_name"] = None
        with (folder / "metadata.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def answers(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The painted models, which answer C to the multiple choice and nothing to other questions."""
    from cogalign.evaluation import predict

    painted = predict.generate

    def generate(loaded: str, images: Any, questions: Any, **options: Any) -> list[Any]:
        found = painted(loaded, images, questions, **options)
        return [
            [Completion("The answer is C", (1,), True)] if question == CHOICE.question else one
            for one, question in zip(found, questions, strict=True)
        ]

    monkeypatch.setattr(predict, "generate", generate)
    return asked


def test_a_case_set_with_questions_too_has_both_kinds_of_metrics(
    make_context: Make, answers: list[str], painted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGALIGN_DATA_ROOTS", str(painted))
    context = make_context()
    (context.run_dir / "data").unlink()
    add_questions(
        context.run_dir / "data",
        [replace(CHOICE, id=f"c{n}", file_name=f"c{n}.png") for n in range(3)],
        painted / "data",
    )
    found = stage.run(context)["models"]["aligned"]
    assert found["test"]["n"] == 30 and found["test_shifted"]["accuracy"] == 1  # as without the questions
    assert found["test"]["question_n"] == 3 and found["test"]["question_accuracy"] == 1
    assert "question_n" not in found["test_shifted"]
    page = (context.run_dir / "report.html").read_text()
    assert "<h2>Questions</h2>" in page and "<h3>By category</h3>" in page and "lesion" in page
    frame = pd.read_parquet(context.folder / "predictions.parquet")
    assert len(frame) == 3 * 63


def test_a_split_of_questions_only_is_evaluated(make_context: Make, answers: list[str]) -> None:
    context = make_context(evaluate=EvaluateSettings(splits=["test"], batch_size=8, bootstrap=50))
    (context.run_dir / "data").unlink()
    add_questions(context.run_dir / "data", [CHOICE, OPEN])
    result = stage.run(context)
    found = result["models"]["aligned"]["test"]
    assert found["question_n"] == 2 and found["question_accuracy"] == 0.5 and found["question_choice_accuracy"] == 1
    assert found["n"] == 0 and found["accuracy"] is None and found["macro_f1"] is None
    assert result["comparisons"]["aligned_vs_sft"] == {}
    page = (context.run_dir / "report.html").read_text()
    assert "<h2>Questions</h2>" in page and "No case of these splits has findings" in page


def test_the_audit_leaves_questions_out_and_says_so(
    make_context: Make, answers: list[str], painted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGALIGN_DATA_ROOTS", str(painted))
    monkeypatch.setattr(audit_stage, "write_report", lambda context: None)
    context = make_context("audit")
    (context.run_dir / "data").unlink()
    add_questions(context.run_dir / "data", [replace(CHOICE, id="c0", file_name="c0.png")], painted / "data")
    result = audit_stage.run(context)
    assert any("1 question cases have no findings" in note for note in result["notes"])
    assert result["models"]["aligned"]["spot_drop_n"] == 30  # the split's cases with findings
