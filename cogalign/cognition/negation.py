"""Whether a text says that something is there or that it is not: mentions of a term, with negation.

Rules in the manner of NegEx (Chapman et al., J. Biomed. Inform. 34, 2001), our own lists, English:

- A negation (`no`, `without`, `absence of`, ...) reaches forward to the end of its clause: punctuation, `but`, `with`,
  another negation. A comma ends it too, unless a list with `or` goes on (`no ulcer, erosion or bleeding`); `and` ends
  it unless a single word follows (`no ulcer and erosion`).
- `non` reaches over one word. `absent`, `lacking` and the like reach forward too, or back over their clause if nothing
  follows or a form of `be` comes before (`ulcer is absent`). `not seen`, `ruled out`, `none`, `-free` reach back.
- Two negations in a row (`not without`, `not absent`) and `not only` are none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cogalign.cognition.anatomy import american

_TOKEN = re.compile(r"[a-z0-9+]+(?:'[a-z]+)?|[.,;:()\n!?/<>@]")
_NUMBER_POINT = re.compile(r"(?<=\d)[.,](?=\d)")
_SEEN = r"(?:seen|visible|present|identified|detected|observed|found|noted|evident|recognized|apparent|demonstrated)"
_EXCLUDED = r"(?:excluded|ruled out)"
_PHRASES = tuple((re.compile(rf"\b(?:{'|'.join(phrases)})\b"), mark) for mark, phrases in {
    "@": (rf"(?:not|never|no) (?:only|just|merely|without|free of|absent|lacking|{_EXCLUDED})",
          rf"(?:cannot|can not|could not) be {_EXCLUDED}", "cannot exclude", "not possible to exclude"),
    "<": (rf"(?:not|never|cannot be) (?:clearly |definitely |be ){{0,3}}{_SEEN}", _EXCLUDED, "none"),
    ">": ("(?:absence|lack|free|devoid|instead) of", "negative for", "rather than", "fails? to show", "lacks",
          "no evidence of", "no signs? of"),
}.items())  # fmt: skip
"""Phrases that deny nothing, what comes before them, and what comes after them."""
_AHEAD = 24  # tokens in which a list must come to its `or`
_FORWARD = frozenset(("no", "not", "without", "neither", "nor", "never", ">"))
_EITHER = frozenset(("absent", "lacking", "missing", "lack"))
_BACK = frozenset(("<", "free"))
_BE = frozenset(("is", "are", "was", "were", "be", "being", "remain", "remains"))
_STOPS = frozenset((".", ";", ":", "(", ")", "\n", "!", "?"))
_TURNS = frozenset(("but", "however", "although", "though", "except", "with", "which", "while", "whereas", "yet",
                    "instead", "despite", "beside", "besides", "shows", "showing", "there"))  # fmt: skip
_NEGATORS = _FORWARD | _EITHER | _BACK | {"non"}


@dataclass(frozen=True)
class Mentions:
    """How often a text mentions a term."""

    affirmed: int
    negated: int

    @property
    def total(self) -> int:
        """All mentions."""
        return self.affirmed + self.negated


class NegatedText:
    """A text, read once, in which terms can be looked up."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._negated = _negated(self._tokens)
        self._stems = [_stem(token) for token in self._tokens]

    def mentions(self, term: str) -> Mentions:
        """Mentions of a term as whole words, in any case, singular or plural, British or American.

        A mention is negated when any of its words is.
        """
        wanted = [_stem(token) for token in _tokens(term) if token[0].isalnum() or token in "<>@"]
        size = len(wanted)
        if not size:
            return Mentions(0, 0)
        found = [i for i in range(len(self._stems) - size + 1) if self._stems[i : i + size] == wanted]
        negated = sum(any(self._negated[i : i + size]) for i in found)
        return Mentions(len(found) - negated, negated)


def split_negation(keyword: str) -> tuple[str, bool]:
    """The term of a keyword, and whether the keyword says that it is absent: `no ulcer` gives `ulcer` and True."""
    tokens = _tokens(keyword)
    terms = [token for token in tokens if token not in _NEGATORS and token != "@"]
    return " ".join(terms), len(terms) < len(tokens) and "@" not in tokens


def says(text: NegatedText, keyword: str, reference: NegatedText | None = None) -> bool:
    """Whether the text says what a keyword says, and not also the opposite.

    `ulcer` wants a mention that is not negated, `no ulcer` one that is. The opposite may be said as often as in a
    reference, which may speak of two lesions.
    """
    term, absent = split_negation(keyword)
    found = text.mentions(term)
    allowed = Mentions(0, 0) if reference is None else reference.mentions(term)
    if absent:
        return found.negated > 0 and found.affirmed <= allowed.affirmed
    return found.affirmed > 0 and found.negated <= allowed.negated


def _tokens(text: str) -> list[str]:
    """Words in lower case without hyphens, punctuation, and `<`, `>`, `@` for phrases of negation."""
    plain = american(text.replace("’", "'").replace("–", "-").replace("—", "; "))
    plain = re.sub(r"[<>@]", " ", _NUMBER_POINT.sub("p", plain)).replace("-", " ")
    for phrase, mark in _PHRASES:
        plain = phrase.sub(f" {mark} ", plain)
    return _TOKEN.findall(plain)


def _stem(word: str) -> str:
    """The word without a plural's `s`."""
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _negated(tokens: Sequence[str]) -> list[bool]:
    """Whether each token is in the reach of a negation."""
    negated = [False] * len(tokens)
    for index, token in enumerate(tokens):
        answers = _answers(tokens, index)
        if answers or token in _BACK or (token in _EITHER and _reaches_back(tokens, index)):
            reach = range(_clause_start(tokens, index - answers), index)
        elif token in _FORWARD or token in _EITHER:
            reach = range(index + 1, _clause_end(tokens, index + 1))
        elif token == "non":
            reach = range(index + 1, min(index + 2, len(tokens)))
        else:
            continue
        for place in reach:
            negated[place] = True
    return negated


def _reaches_back(tokens: Sequence[str], index: int) -> bool:
    """Whether `absent` ends its clause or follows a form of `be`."""
    after = tokens[index + 1] if index + 1 < len(tokens) else "."
    return after in _STOPS or after == "," or after in _TURNS or (index > 0 and tokens[index - 1] in _BE)


def _answers(tokens: Sequence[str], index: int) -> bool:
    """Whether a negation stands alone after a colon: `ulcer: no`."""
    if not (index > 0 and tokens[index - 1] == ":" and tokens[index] in _BACK | _EITHER | {"no"}):
        return False
    return index + 1 == len(tokens) or tokens[index + 1] in _STOPS or tokens[index + 1] == ","


def _clause_start(tokens: Sequence[str], index: int) -> int:
    """Where the clause begins that a token ends."""
    while index > 0:
        before = tokens[index - 1]
        if before in _STOPS or before == "," or before in _TURNS or before in _NEGATORS or before == "and":
            break
        index -= 1
    return index


def _clause_end(tokens: Sequence[str], start: int) -> int:
    """First token after `start` that a negation before it does not reach."""
    end = start
    while end < len(tokens):
        token = tokens[end]
        if token in _STOPS or token in _TURNS or token in _NEGATORS or token == "@":
            break
        if token == "," and not _list_goes_on(tokens, end + 1):
            break
        if token == "and" and not _ends_within(tokens, end + 1, 1):
            break
        end += 1
    return end


def _list_goes_on(tokens: Sequence[str], start: int) -> bool:
    """Whether short items lead to an `or` in this clause: `, erosion or bleeding`, `, or bleeding`."""
    words = 0
    for token in tokens[start : start + _AHEAD]:
        if token in ("or", "nor"):
            return True
        if token in _STOPS or token in _TURNS or token in _NEGATORS or token in ("and", "@"):
            return False
        words = 0 if token == "," else words + 1
        if words > 2:
            return False
    return False


def _ends_within(tokens: Sequence[str], start: int, words: int) -> bool:
    """Whether the clause ends after at most so many words."""
    rest = tokens[start : start + words + 1]
    return any(token in _STOPS or token == "," for token in rest) or len(rest) <= words
