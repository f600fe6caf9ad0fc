"""ColonR1's JSON for reinforcement learning: `image`, `problem` and `solution`, the latter `<think>` and `<answer>`.

Of a report the sections are the thought and the diagnosis is the answer; any other answer stands in `<answer>` alone.
A case is held whole; an answer that the tags cannot give back stands beside. Med-R1 and MedVLM-R1 have the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogalign.cognition.report import DIAGNOSIS_PREFIX, parse
from cogalign.data.case import Case
from cogalign.data.interchange.choices import choices_in
from cogalign.data.interchange.llava import SUFFIX
from cogalign.data.interchange.ms_swift import pictures_of
from cogalign.data.interchange.sample import (
    DEFAULT_QUESTION,
    Sample,
    asked,
    beside,
    divided,
    json_entries,
    tagged_sample,
    wanted,
)

__all__ = ["SUFFIX", "read", "row", "solution", "understood"]

_SOLUTION = re.compile(r"\s*(?:<think>(?P<think>.*?)</think>\s*)?<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)


def solution(answer: str, thought: str = "") -> str:
    """An answer in tags: a report's sections in `<think>` and its diagnosis in `<answer>`; `thought` for other answers."""
    sections, mark, diagnosis = answer.rpartition(f"\n{DIAGNOSIS_PREFIX}")
    if mark and diagnosis.endswith(".") and parse(sections).missing == ("diagnosis",):
        thought, answer = sections, diagnosis.removesuffix(".")
    return (f"<think>{thought}</think>" if thought else "") + f"<answer>{answer}</answer>"


def understood(text: str) -> tuple[str, str]:
    """Answer and thought of a solution; thoughts that are a report's sections become a report with its diagnosis.

    A text without tags is an answer.
    """
    found = _SOLUTION.fullmatch(text)
    if found is None:
        return text, ""
    thought, answer = (found["think"] or "").strip(), found["answer"].strip()
    if parse(thought).missing == ("diagnosis",):
        return f"{thought}\n{DIAGNOSIS_PREFIX}{answer}.", ""
    return answer, thought


def row(case: Case) -> dict[str, Any]:
    """The object of a case; raises ValueError if question or answer hold the tag of images."""
    problem = asked(case, DEFAULT_QUESTION)
    thought = case.attributes.get("think")
    written = solution(case.answer, thought if isinstance(thought, str) else "")
    without = ("answer",) if understood(written)[0] == case.answer else ()
    return {"image": case.file_name, "problem": problem, "solution": written, **beside(case, without=without)}


def read(path: Path) -> Iterator[Sample]:
    """The entries of a file.

    Raises:
        ValueError: the file is no list of objects, or `problem` or `solution` is missing; names entry and key.
    """
    for place, found in json_entries(path):
        question = wanted(path, place, found, "problem", str, "the question")
        answer, thought = understood(
            wanted(path, place, found, "solution", str, "<think>...</think><answer>...</answer>")
        )
        own, extra = divided(found, ("image", "problem", "solution"))
        if isinstance(own.get("answer"), str):
            answer = own["answer"]
        if "attributes" not in own:
            extra |= {"think": thought} if thought else {}
            extra |= {"choices": choices} if (choices := choices_in(question)) else {}
        yield tagged_sample(place, pictures_of(found.get("image")), [(question, answer)], own, extra, "")
