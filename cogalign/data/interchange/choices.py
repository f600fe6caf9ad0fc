"""Multiple choice: the choices of a question, and which of them a text means."""

from __future__ import annotations

import re
from collections.abc import Mapping

Choices = dict[str, str]
"""Letter (`A`, `B`, ...) to text."""

# Texts come from files of others: each pattern takes time in proportion to the text, so no part of one can be read in
# two ways (`++`, `*+` and `?+` give nothing back).
_STANDING = re.compile(r"<([A-Z])>")
_LINES = re.compile(r"^[ \t]*+[(\[]?+([A-Z])[)\].:]++[ \t]++(\S.*)$", re.MULTILINE)
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_ASIDE = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"\b(?i:answer|option|choice)\b(?:[ \t]++(?i:is|would be|should be))?+[ \t]*+[:=]?+[ \t*_]*+[(\[<]?+([A-Z])(?![\w'’])"
)
_MARKED = re.compile(r"^[\s*_#>]*(?:[(\[<{]\s*([A-Z])\s*[)\]>}]|([A-Z])\s*(?:[.):,;]|$|-\s|\n)|\*\*([A-Z])\*\*)")
_COMPARED = 400
"""Characters of a choice by which "answer A ..." is told from the article."""


def tidy(text: str) -> str:
    """The text in lower case, its words alone, one space between them: for comparing choices."""
    return " ".join(re.findall(r"[^\W_]+(?:[.,]\d+)?", text.casefold()))


def choices_in(question: str) -> Choices:
    """Choices that stand in a question: `<A> polyp, <B> ulcer` or a line each, `A. polyp`.

    Fewer than two, or letters that do not run from A on, are no choices: the result is empty.
    """
    for pairs in (_standing(question), _LINES.findall(question)):
        found = {letter: text.strip(" ,;\t\n") for letter, text in pairs}
        if len(found) > 1 and list(found) == [chr(ord("A") + place) for place in range(len(found))]:
            return found
    return {}


def _standing(question: str) -> list[tuple[str, str]]:
    """Letter and text of each `<A> text`: up to the next one or the end of its line."""
    marks = list(_STANDING.finditer(question))
    ends = [*(mark.start() for mark in marks[1:]), len(question)]
    texts = (question[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=False))
    return [
        (mark[1], text.partition("\n")[0].rstrip().rstrip(",; \t").rstrip())
        for mark, text in zip(marks, texts, strict=False)
    ]


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
    own = tidy(choices.get("A", "")[:_COMPARED])
    for phrase in reversed(list(_PHRASE.finditer(said))):
        rest = said[phrase.end() : phrase.end() + 2 * len(own) + 40]
        if phrase[1] in choices and not (phrase[1] == "A" and _is_article(rest, own)):
            return phrase[1]
    return _by_words(words, choices)


def _is_article(rest: str, own: str) -> bool:
    """Whether an A is the article of what follows, as in "the answer is A dyed polyp": words, but not the choice's own.

    Args:
        rest: what follows the A, as far as it is compared.
        own: `tidy` text of the choice A.
    """
    words = rest.partition("\n")[0]
    return words[:1] == " " and words[1:2].isalpha() and not tidy(words).startswith(own)


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
