"""Multiple choice: the choices of a question, and which of them a text means."""

from __future__ import annotations

import re
from collections.abc import Mapping

Choices = dict[str, str]
"""Letter (`A`, `B`, ...) to text."""

_STANDING = re.compile(r"<([A-Z])>\s*(.*?)\s*(?=[,;]?\s*<[A-Z]>|\n|$)", re.DOTALL)
_LINES = re.compile(r"^[ \t]*[(\[]?([A-Z])[)\].:]+[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_ASIDE = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"\b(?i:answer|option|choice)\b(?:[ \t]+(?i:is|would be|should be))?[ \t]*[:=]?[ \t*_]*[(\[<]?([A-Z])(?![\w'’])(?=(.*))"
)
_MARKED = re.compile(r"^[\s*_#>]*(?:[(\[<{]\s*([A-Z])\s*[)\]>}]|([A-Z])\s*(?:[.):,;]|$|-\s|\n)|\*\*([A-Z])\*\*)")


def tidy(text: str) -> str:
    """The text in lower case, its words alone, one space between them: for comparing choices."""
    return " ".join(re.findall(r"[^\W_]+(?:[.,]\d+)?", text.casefold()))


def choices_in(question: str) -> Choices:
    """Choices that stand in a question: `<A> polyp, <B> ulcer` or a line each, `A. polyp`.

    Fewer than two, or letters that do not run from A on, are no choices: the result is empty.
    """
    for pattern in (_STANDING, _LINES):
        found = {letter: text.strip(" ,;\t\n") for letter, text in pattern.findall(question)}
        if len(found) > 1 and list(found) == [chr(ord("A") + place) for place in range(len(found))]:
            return found
    return {}


def final_answer(text: str) -> str:
    """What a text gives as its answer: inside `<answer>`, else what is left without `<think>`."""
    tagged = _ANSWER_TAG.findall(text)
    return str(tagged[-1] if tagged else _ASIDE.sub("", text)).strip()


def letter_of(text: str, choices: Mapping[str, str]) -> str | None:
    """The choice that a text means; None if it means none, or several.

    Read in this order: the whole text is a choice's letter or its words; it begins with a marked letter (`<D>`, `(D)`,
    `D.`, `D:`); it says "the answer is D" (the last time counts); it holds the words of exactly one choice, where a
    choice inside a longer one that is there too does not count.
    """
    said = final_answer(text)
    words = tidy(said)
    if said.strip(" .()[]<>*_").upper() in choices:
        return said.strip(" .()[]<>*_").upper()
    same = [letter for letter, choice in choices.items() if words and tidy(choice) == words]
    if len(same) == 1:
        return same[0]
    if (marked := _MARKED.match(said)) and (letter := next(filter(None, marked.groups()))) in choices:
        return letter
    named = [
        letter for letter, rest in _PHRASE.findall(said) if letter in choices and not _is_article(letter, rest, choices)
    ]
    if named:
        return str(named[-1])
    return _by_words(words, choices)


def _is_article(letter: str, rest: str, choices: Mapping[str, str]) -> bool:
    """Whether an A is the article of what follows, as in "the answer is A dyed polyp": words, but not the choice's own."""
    return letter == "A" and rest[:1] == " " and rest[1:2].isalpha() and not tidy(rest).startswith(tidy(choices["A"]))


def _by_words(words: str, choices: Mapping[str, str]) -> str | None:
    """The one choice whose words stand in `words`, the longest first: `no polyp` hides `polyp`."""
    rest, found = f" {words} ", []
    for letter, choice in sorted(choices.items(), key=lambda item: -len(tidy(item[1]))):
        phrase = tidy(choice)
        if phrase and f" {phrase} " in rest:
            found.append(letter)
            rest = rest.replace(f" {phrase} ", " | ")
    return found[0] if len(found) == 1 else None


def with_choices(question: str, choices: Mapping[str, str]) -> str:
    """The question with its choices, a line each, and how to answer."""
    lines = [
        question,
        *(f"{letter}. {text}" for letter, text in choices.items()),
        "Answer with the letter of one choice.",
    ]
    return "\n".join(lines)
