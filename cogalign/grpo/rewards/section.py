"""The reward `section_cognition`: keywords in their own section, negation understood, stuffing punished."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any

from cogalign.cognition.keywords import is_content, is_generic
from cogalign.cognition.negation import NegatedText, says, split_negation
from cogalign.cognition.report import SECTIONS, parse
from cogalign.grpo.rewards.protocol import Completion, completion_text

SLACK = 1.5
"""A section may have so many times the words and the parts of the reference's before it loses."""
LEAST_WORDS = 6
"""Content words for which the reference is taken to have room, however short it is."""
LEAST_PARTS = 3
"""Comma-separated parts for which it is taken to have room."""
UNKNOWN_WORDS, UNKNOWN_PARTS = 12, 4
"""Room of a section without a reference."""
MENTIONS = 2
"""A keyword's term may be mentioned so often, or as often as in the reference."""
BOILERPLATE = ("annotated", "endoscopic image")
"""What template reports say of every image; a part of a reference with one of these gives no keyword."""

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_PART = re.compile(r"[,;:.!?\n()/]+")


@dataclass(frozen=True)
class _Size:
    words: int
    """Content words, repetitions included."""
    parts: int
    """Pieces between punctuation."""
    bare: bool
    """Three or more pieces of at most two words, and no others: a list, no description."""


def section_cognition_reward(
    completions: Sequence[Completion],
    keywords: Sequence[Mapping[str, Sequence[str] | None] | None],
    answer: Sequence[str | None] | None = None,
    **_: Any,
) -> list[float | None]:
    """Share of the case's keywords that the completion says in their own section, less for stuffing, in [0, 1].

    R = sum_s f_s n_s / sum_s N_s over the sections s, with N_s keywords of which n_s are found. A keyword is found when
    the section says the same with the same sign, not the opposite too (`cogalign.cognition.negation.says`), and mentions
    it at most `MENTIONS` times, or as often as the reference. f_s is the square of the smallest of: room for
    words (`SLACK` times the reference's) over words; room for parts over parts; words over half of the reference's; and
    0.7 for a bare list where the reference is none; each at most 1.

    Template phrases (`BOILERPLATE`) are not judged. A case with no other keywords is not judged at all (None).

    Args:
        completions: What the model wrote.
        keywords: The case's keywords by section.
        answer: The reference reports; without them room and boilerplate are judged by constants.
    """
    references = repeat(None, len(completions)) if answer is None else answer
    rows = zip(completions, keywords, references, strict=True)
    return [section_cognition(completion_text(text), words or {}, gold or "") for text, words, gold in rows]


def section_cognition(text: str, keywords: Mapping[str, Sequence[str] | None], reference: str = "") -> float | None:
    """The reward of one text; None if no keyword can be judged."""
    report, gold = parse(text), parse(reference)
    judged, earned = 0, 0.0
    for section in SECTIONS:
        gold_text: str = getattr(gold, section)
        wanted = informative(keywords.get(section) or (), gold_text)
        if wanted:
            judged += len(wanted)
            said: str = getattr(report, section)
            earned += _found(said, wanted, gold_text) * _plainness(said, gold_text)
    return earned / judged if judged else None


def informative(keywords: Sequence[str], reference: str) -> list[str]:
    """The keywords of a section that say something of the case: those of a template's fixed phrases are left out.

    With a reference a keyword counts if it stands in a part of it that is no fixed phrase. Without one, keywords with
    such a phrase go, and beside them words that most reports have.
    """
    kept = [word for word in keywords if split_negation(word)[0] and not _is_fixed(word)]
    if reference:
        fixed = [part for part in _PART.split(reference) if _is_fixed(part)]
        free = _read("\n".join(part for part in _PART.split(reference) if not _is_fixed(part)))
        return [word for word in kept if not fixed or free.mentions(split_negation(word)[0]).total]
    if len(kept) < len(keywords):
        return [word for word in kept if not all(map(is_generic, _WORD.findall(word)))]
    return kept


_read = lru_cache(maxsize=1024)(NegatedText)
"""References, which all completions of a group share."""


def _is_fixed(text: str) -> bool:
    return any(phrase in text.casefold() for phrase in BOILERPLATE)


def _found(text: str, keywords: Sequence[str], reference: str) -> int:
    """How many keywords the section says, not counting those that it repeats."""
    said, gold = NegatedText(text), _read(reference)
    found = 0
    for keyword in keywords:
        term = split_negation(keyword)[0]
        limit = max(MENTIONS, gold.mentions(term).total)
        found += says(said, keyword, gold) and said.mentions(term).total <= limit
    return found


def _plainness(text: str, reference: str) -> float:
    """Factor in [0, 1] that falls when a section says far more, or far less, than the reference."""
    said, gold = _size(text), _size(reference)
    if not said.words:
        return 0.0
    words = SLACK * max(LEAST_WORDS, gold.words) if reference else UNKNOWN_WORDS
    parts = SLACK * max(LEAST_PARTS, gold.parts) if reference else UNKNOWN_PARTS
    factors = (
        words / said.words,
        parts / said.parts,
        said.words / max(1.0, gold.words / 2),
        0.7 if said.bare and reference and not gold.bare else 1.0,
    )
    return min(1.0, *factors) ** 2


def _size(text: str) -> _Size:
    parts = [words for part in _PART.split(text) if (words := _WORD.findall(part))]
    content = sum(is_content(word) for words in parts for word in words)
    return _Size(content, len(parts), len(parts) >= 3 and all(len(words) <= 2 for words in parts))
