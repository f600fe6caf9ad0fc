"""The reward `structure`: the report's parts once each, in order, with text, and no loops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cogalign.cognition.report import DIAGNOSIS_PREFIX, HEADINGS, parse
from cogalign.grpo.rewards.protocol import Completion, completion_text

N_GRAM = 4
"""Words in a row that are to occur once."""

_WORD = re.compile(r"[^\W_]+")
_TELLING = re.compile(r"[^\W\d_]{3,}")
_SENTENCE_END = re.compile(r"[.!?;\n]+")
_LOOP = re.compile(r"(\S{1,8}?)\1{7,}")
_MARKUP = " \t#*_:"


def structure_reward(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """How well the completion keeps the form of a report, in [0, 1]: (s / 5) (1 - r).

    s counts five things: each heading stands once, on a line of its own, with text below it (one each); all three come
    in order, before the diagnosis; one line with the diagnosis ends the text. r is the larger of two shares: that of
    sentences which were there before, and that of `N_GRAM` words in a row which were there before; it is 1 when the
    same characters follow each other eight times.
    """
    return [structure(completion_text(completion)) for completion in completions]


def structure(text: str) -> float:
    """The reward of one text."""
    lines = [line.strip(_MARKUP) for line in text.splitlines() if line.strip(_MARKUP)]
    places = {name: [i for i, line in enumerate(lines) if line == head] for name, head in HEADINGS.items()}
    said = [i for i, line in enumerate(lines) if DIAGNOSIS_PREFIX.strip() in line]
    starts = sorted([*(i for found in places.values() for i in found), *said, len(lines)])
    good = sum(len(found) == 1 and _has_text(lines, found[0], starts) for found in places.values())
    order = [found[0] for found in places.values() if len(found) == 1] + said[:1]
    ordered = len(order) == len(places) + 1 and order == sorted(order)
    return (good + ordered + _ends_with_diagnosis(text, lines, said)) / 5 * (1 - repeated_share(lines))


def repeated_share(lines: Sequence[str]) -> float:
    """Share of the text that repeats what was there before, in [0, 1]; headings are left out."""
    body = [line for line in lines if line not in HEADINGS.values()]
    if any(_LOOP.search(line) for line in body):
        return 1.0
    sentences = [" ".join(_WORD.findall(part)).casefold() for line in body for part in _SENTENCE_END.split(line)]
    words = [word for line in body for word in _WORD.findall(line.casefold())]
    grams = [tuple(words[i : i + N_GRAM]) for i in range(len(words) - N_GRAM + 1)]
    return max(_repeats([sentence for sentence in sentences if sentence]), _repeats(grams))


def _repeats(items: Sequence[object]) -> float:
    return 1 - len(Counter(items)) / len(items) if items else 0.0


def _has_text(lines: Sequence[str], heading: int, starts: Sequence[int]) -> bool:
    """Whether a word stands between a heading and what comes next."""
    following = next(start for start in starts if start > heading)
    return any(_TELLING.search(line) for line in lines[heading + 1 : following])


def _ends_with_diagnosis(text: str, lines: Sequence[str], said: Sequence[int]) -> bool:
    """Whether there is one diagnosis line, the last one, that names something and nothing follows."""
    if said != [len(lines) - 1] or not lines[-1].startswith(DIAGNOSIS_PREFIX):
        return False
    report = parse(text)
    return "diagnosis" not in report.missing and not _SENTENCE_END.split(lines[-1].rstrip(".!"))[1:]
