"""How often a text mentions any of many terms: `cogalign.cognition.negation`, with what cannot be there left out first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from cogalign.cognition.anatomy import american
from cogalign.cognition.negation import Mentions, NegatedText

_BLOOD_VESSEL = re.compile(r"\bblood[- ]vessel", re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9]+")


def mentions(text: str, terms: Iterable[str]) -> Mentions:
    """Mentions of any of the terms, affirmed and negated; a blood vessel is no blood."""
    folded, read = _read(text)
    found = [read.mentions(term) for term in terms if _stem(term) in folded]
    return Mentions(sum(mention.affirmed for mention in found), sum(mention.negated for mention in found))


@lru_cache(maxsize=64)
def _read(text: str) -> tuple[str, NegatedText]:
    """The text in the letters of `_stem`, and with its negations read."""
    text = _BLOOD_VESSEL.sub("vessel", text)
    return american(text), NegatedText(text)


@lru_cache(maxsize=1024)
def _stem(term: str) -> str:
    """The first word of a term without a plural's `s`: a text without these letters does not mention it."""
    word = _WORD.search(american(term))
    return word.group().rstrip("s") if word else ""
