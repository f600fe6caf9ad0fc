"""Questions with an answer but no findings: multiple choice and open answers, judged without a model.

Choices come from the case's attribute `choices` (letter to text) or stand in the question (`<A> polyp, <B> ulcer`). Open
answers are compared as in SQuAD (Rajpurkar et al. 2016, section 6.1 and its evaluation script): lower case, without
punctuation and the articles a, an and the, one space between words; then exact match, and F1 of the words.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cogalign.data.case import Case
from cogalign.data.interchange.choices import choices_in, final_answer, letter_of
from cogalign.evaluation.statistics import mean_interval
from cogalign.evaluation.storage import rows_of

COLUMNS = ("model", "split", "id", "group", "choice", "correct", "f1", "categories")
"""Columns of a frame of judged questions; `f1` is NaN where there are choices."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Verdict:
    """How good one answer is."""

    choice: bool
    """Whether it was a multiple choice."""
    correct: bool
    """The right letter, or an exact match of the normalised words."""
    f1: float | None
    """F1 of the words of an open answer; None for a choice."""


def normalized(text: str) -> str:
    """The text as SQuAD compares it: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(said: str, answer: str) -> float:
    """F1 of the normalised words of two texts, each word as often as it occurs: 2 |common| / (|said| + |answer|).

    1 where neither has a word, 0 where only one has none (as in SQuAD 2.0).
    """
    words, gold = Counter(normalized(said).split()), Counter(normalized(answer).split())
    total = words.total() + gold.total()
    return 2 * (words & gold).total() / total if total else 1.0


def choices_of(case: Case) -> dict[str, str]:
    """The choices of a case by letter: its attribute `choices`, else those that stand in its question; empty if none."""
    told = case.attributes.get("choices")
    if isinstance(told, Mapping) and len(told) > 1:
        return {str(letter): str(text) for letter, text in told.items()}
    return choices_in(case.question)


def categories_of(case: Case) -> list[str]:
    """The categories of a question: its attribute `category`, else `question_class`; a text or a list of them."""
    for name in ("category", "question_class"):
        value = case.attributes.get(name)
        if isinstance(value, str) and value:
            return [value]
        if isinstance(value, list) and value:
            return list(dict.fromkeys(map(str, value)))
    return []


def verdict(completion: str, case: Case) -> Verdict:
    """Whether a completion answers the question of a case.

    A completion that means no choice, or several, is wrong. Where the case's own answer is none of its choices, the
    question is judged as an open one.
    """
    choices = choices_of(case)
    gold = letter_of(case.answer, choices) if choices else None
    if gold is not None:
        return Verdict(True, letter_of(completion, choices) == gold, None)
    said, answer = final_answer(completion), final_answer(case.answer)
    return Verdict(False, normalized(said) == normalized(answer), token_f1(said, answer))


def judged(predictions: pd.DataFrame, cases: Iterable[Case]) -> pd.DataFrame:
    """One row for each prediction on a question case, with `COLUMNS`; other predictions are left out.

    Args:
        predictions: rows of `cogalign.evaluation.predict.COLUMNS`.
        cases: the cases that were asked about, at least the question cases.
    """
    known = {case.id: case for case in cases if case.is_question}
    rows = []
    for row in rows_of(predictions[predictions["id"].isin(known)]):
        case = known[row.id]
        found = verdict(row.completion, case)
        rows.append(
            (row.model, row.split, row.id, row.group, found.choice, found.correct, found.f1, categories_of(case))
        )
    types = {"choice": "bool", "correct": "bool", "f1": "float64"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)


def summarize_questions(frame: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The metrics of one model's questions on one split, each with its 95 % interval under `<name>_ci`.

    Returns:
        `question_accuracy` (all questions) and `question_n`; `question_choice_accuracy`, `question_open_accuracy` and
        `question_f1` (open answers) with `question_choice_n` and `question_open_n`; `question_categories`: accuracy, its
        interval and n by category, where the cases tell one. Empty for no questions.
    """
    if frame.empty:
        return {}
    choice, free = frame[frame["choice"]], frame[~frame["choice"]]
    result: dict[str, Any] = {}
    for name, part, column in (
        ("question_accuracy", frame, "correct"),
        ("question_choice_accuracy", choice, "correct"),
        ("question_open_accuracy", free, "correct"),
        ("question_f1", free, "f1"),
    ):
        result[name], result[f"{name}_ci"] = _mean(part, column, resamples, seed)
    result |= {"question_n": len(frame), "question_choice_n": len(choice), "question_open_n": len(free)}
    names = sorted({name for several in frame["categories"] for name in several})
    table = {}
    for name in names:
        part = frame[[name in several for several in frame["categories"]]]
        value, interval = _mean(part, "correct", resamples, seed)
        table[name] = {"accuracy": value, "accuracy_ci": interval, "n": len(part)}
    return result | ({"question_categories": table} if table else {})


def _mean(frame: pd.DataFrame, column: str, resamples: int, seed: int) -> tuple[float | None, Any]:
    """Mean of a column and its interval over groups; (None, None) for no rows."""
    if frame.empty:
        return None, None
    values = frame[column].astype(float).to_numpy()
    groups = frame["group"].astype(str).tolist()
    return float(values.mean()), mean_interval(values, groups, resamples=resamples, seed=seed)
