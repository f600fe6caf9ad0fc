"""The nine keywords of a report, three a section, and how many of them a text holds (the paper's R_cog)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from cogalign.cognition.report import SECTIONS, Report

Keywords = dict[str, list[str]]
"""Keywords for each of `SECTIONS`, in the order of the text, lower case."""

PER_SECTION = 3

_STOP = frozenset((
    "a", "about", "above", "across", "after", "all", "along", "also", "although", "among", "an", "and", "any", "appear", "appears", "are",
    "area", "areas", "around", "as", "at", "be", "because", "been", "before", "being", "below", "beneath", "between",
    "both", "but", "by", "can", "case", "cannot", "consist", "consists", "could", "did", "do", "does", "due", "during", "each", "either",
    "evident", "every", "extend", "extends", "few", "for", "found", "from", "further", "had", "has", "have", "having", "here", "how",
    "however", "if", "image", "images", "in", "into", "is", "it", "its", "itself", "just", "lie", "lies", "like", "likely", "may", "might",
    "more", "most", "much", "must", "near", "nor", "of", "off", "on", "one", "only", "onto", "or", "other", "others",
    "our", "out", "over", "own", "per", "photograph", "present", "rather", "same", "seen", "several", "shall", "she",
    "should", "show", "showing", "shown", "shows", "since", "slightly", "so", "some", "such", "than", "that", "the", "their",
    "them", "then", "there", "these", "they", "this", "those", "through", "throughout", "to", "together", "too",
    "toward", "towards", "two", "under", "until", "up", "upon", "very", "view", "visible", "was", "we", "were", "what",
    "when", "where", "whether", "which", "while", "whose", "will", "with", "within", "would", "yet", "you", "your",
))  # fmt: skip
_NEGATORS = frozenset(("no", "not", "without", "absent", "lack", "neither", "nor", "non"))
_GENERIC = frozenset((
    "annotated", "appearance", "architecture", "aspect", "background", "bowel", "change", "changes", "colour", "color",
    "detail", "endoscopic", "endoscopy", "environment", "feature", "features", "finding", "findings", "focal", "form",
    "general", "imaging", "lesion", "lesions", "light", "location", "lumen", "mm", "mode", "morphology", "mucosa",
    "mucosal", "normal", "pattern", "patterns", "quality", "region", "section", "shape", "size", "structure",
    "surface", "texture", "tissue", "vascular", "vessel", "vessels", "wall", "well",
))  # fmt: skip
# Terms that mean less when they are cut in two ("small" of "small bowel" would be found in "small polyp").
_TERMS = (
    r"paris\s(?:type\s|class\s)?(?:0-)?i(?:sp?|p|i[abc](?:\+i{1,2}[abc])?|ii)", r"\d+(?:\s?-\s?\d+)?\s?(?:mm|cm)", r"white[ -]light",
    r"narrow[ -]band(?:\simaging)?", r"small\sbowel", r"large\sbowel", r"terminal\sileum", r"ileocecal\svalve",
    r"demarcation\sline", r"pit\spattern",
)  # fmt: skip
_TOKEN = re.compile(rf"\b(?:{'|'.join(_TERMS)})\b|[^\W_]+(?:[-'’][^\W_]+)*|[.,;:()\n]", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_RUN = 3  # a negation reaches over as many content words


class _Candidate(NamedTuple):
    rank: int
    """0 informative, 1 a word that most reports have, 2 a piece of another candidate, 3 two neighbours together."""
    start: int
    end: int


def extract(report: Report) -> Keywords:
    """Three distinct words or short phrases for each section, which literally occur in that section's text.

    Informative words come before words that most reports have (`mucosa`, `lesion`), and words that no earlier section
    gave before repeated ones. A negated word keeps its negation (`no ulcer`), fixed terms stay whole
    (`white light`, `Paris Is`). Stop words are never keywords. A section of two content words side by side gives
    both and the pair; one of fewer gives fewer than three: one for a single word, none for an empty section.
    The same report always gives the same keywords.
    """
    used: set[str] = set()
    keywords: Keywords = {}
    for section in SECTIONS:
        keywords[section] = _choose(getattr(report, section), used)
        used.update(keywords[section])
    return keywords


def count_found(text: str, keywords: Mapping[str, Sequence[str]]) -> int:
    """How many keywords occur anywhere in the text: plain containment without regard to case (paper, eq. 13).

    As in the paper, `regular` is found in `irregular` and no section is checked.
    """
    folded = text.casefold()
    return sum(keyword.casefold() in folded for section in keywords.values() for keyword in section)


def _choose(text: str, used: set[str]) -> list[str]:
    """The section's keywords in the order of the text."""
    first: dict[str, _Candidate] = {}
    for candidate in _candidates(text):
        keyword = text[candidate.start : candidate.end].casefold()
        first[keyword] = min(candidate, first.get(keyword, candidate))
    # A keyword that an earlier section gave is worse than a new one, but better than a piece of another candidate.
    order = sorted(first, key=lambda k: (first[k].rank >= 2, k in used, first[k]))
    return sorted(order[:PER_SECTION], key=lambda k: (first[k].start, first[k].end))


def _candidates(text: str) -> Iterator[_Candidate]:
    """All words and phrases that may be keywords; every content word is among them."""
    negator: re.Match[str] | None = None
    run: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text):
        if token.group().casefold() in _NEGATORS:
            yield from _from_run(text, negator, run)
            negator, run = token, []
        elif is_content(token.group()):
            run.append(token)
        else:
            yield from _from_run(text, negator, run)
            negator, run = None, []
    yield from _from_run(text, negator, run)


def _from_run(text: str, negator: re.Match[str] | None, run: list[re.Match[str]]) -> Iterator[_Candidate]:
    """Candidates of content words that stand side by side, after a negation or not."""
    negated = run[:_RUN] if negator else []
    if negator and negated:
        yield _Candidate(0, negator.start(), negated[-1].end())
    for token in run:
        words = [word for word in _WORD.finditer(text, token.start(), token.end()) if is_content(word.group())]
        if len(words) != 1 or words[0].span() != token.span():
            yield from (_Candidate(2, word.start(), word.end()) for word in words)
        yield _Candidate(2 if token in negated else int(is_generic(token.group())), token.start(), token.end())
    for left, right in pairwise(run):
        yield _Candidate(3, left.start(), right.end())


def is_content(token: str) -> bool:
    """A word that says something: no stop word, no punctuation, no bare number, at least three characters or a code."""
    folded = token.casefold()
    if folded in _STOP or folded in _NEGATORS or not any(map(str.isalpha, token)):
        return False
    return len(token) >= 3 or any(map(str.isdigit, token)) or (len(token) == 2 and token.isupper())


def is_generic(word: str) -> bool:
    """A word that most reports have (`mucosa`, `surface`)."""
    return word.casefold() in _GENERIC
