"""From the text of an answer to three sections and their keywords."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogalign.cognition.keywords import PER_SECTION, extract, is_content
from cogalign.cognition.negation import NegatedText, says
from cogalign.cognition.report import HEADINGS, SECTIONS, Report
from cogalign.data.annotation.remarks import Remark
from cogalign.data.case import Keywords

LEAST_WORDS, MOST_WORDS = 4, 120
"""Words of a section."""
KEYWORD_WORDS = 5
LONGEST = 20_000
"""More characters of an answer are not read."""
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_OBJECTS = 20  # opening braces that are tried
_BOILERPLATE = ("annotated",)
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


@dataclass(frozen=True)
class Draft:
    """An answer that has the wanted form."""

    sections: dict[str, str]
    keywords: Keywords
    """Three for each section."""
    flags: tuple[Remark, ...] = ()

    def report(self, findings: tuple[str, ...]) -> Report:
        """The report with a diagnosis, which is never the teacher's."""
        return report_of(self.sections, findings)


def read_draft(text: str, cut: bool = False) -> Draft | list[Remark]:
    """The draft in an answer, or what is wrong with it; checks `json`, `sections`, `language` and `keywords`.

    JSON may stand in a code fence or in prose, after thoughts in `<think>`. Keywords that fail are replaced by
    those which `cogalign.cognition.keywords.extract` finds; the flag `keywords_extracted` says so. Only where there are
    too few is that a failure.

    Args:
        text: what the model wrote.
        cut: the answer ended at the token limit.
    """
    found = _object(text)
    if found is None:
        end = ", which ended at the token limit: be shorter" if cut else ""
        return [Remark("json", f"Found no JSON object with the keys {', '.join(SECTIONS)} and keywords{end}.")]
    sections: dict[str, str] = {}
    failures = []
    for name in SECTIONS:
        section = _plain(found.get(name), name)
        words = len(_WORD.findall(section))
        if not LEAST_WORDS <= words <= MOST_WORDS:
            failures.append(Remark("sections", f'"{name}" has {words} words, wanted {LEAST_WORDS} to {MOST_WORDS}.'))
        elif not _is_english(section):
            failures.append(Remark("language", f'"{name}" is not in English.'))
        sections[name] = section
    return failures or _with_keywords(sections, found.get("keywords"))


def report_of(sections: Mapping[str, str], findings: tuple[str, ...]) -> Report:
    """The report of three sections and a diagnosis."""
    return Report(sections["location"], sections["morphology"], sections["microvasculature"], findings)


def usable_keyword(keyword: str, section: str) -> str | None:
    """What speaks against a keyword of a section, or None.

    It must stand literally in the section (case aside), say something (no stop words alone), be short, and be said
    there with the same sign: `ulcer` is no keyword where the text says `no ulcer`.
    """
    words = _WORD.findall(keyword)
    if keyword.casefold() not in section.casefold():
        return "is not in the section"
    if not any(is_content(word) for word in words) or any(word in keyword.lower() for word in _BOILERPLATE):
        return "says nothing"
    if len(words) > KEYWORD_WORDS or re.search(r"[,;:()]|\.(?=\s|$)", keyword):
        return "is no short phrase"
    read = NegatedText(section)
    return None if says(read, keyword, read) else "is said with the other sign"


def _with_keywords(sections: dict[str, str], told: Any) -> Draft | list[Remark]:
    """Sections with the teacher's keywords, or with extracted ones where those fail."""
    extracted = extract(report_of(sections, ()))
    keywords: Keywords = {}
    wrong, failures = [], []
    for name in SECTIONS:
        given = told.get(name) if isinstance(told, dict) else None
        offered = [word for word in given if isinstance(word, str)] if isinstance(given, list) else []
        good, bad = _sorted(offered, sections[name])
        if len(good) != PER_SECTION or bad or len(offered) != PER_SECTION:
            wrong.append(f"{name}: {'; '.join(bad) or f'found {len(offered)}, wanted {PER_SECTION}'}")
            spare = [word for word in extracted[name] if usable_keyword(word, sections[name]) is None]
            good = list(dict.fromkeys([*good[:PER_SECTION], *spare]))[:PER_SECTION]
        if len(good) < PER_SECTION:
            failures.append(Remark("keywords", f'"{name}" needs three keywords that stand in its text; {wrong[-1]}.'))
        place = sections[name].casefold().find
        keywords[name] = sorted(good, key=place)
    if failures:
        return failures
    flags = (Remark("keywords_extracted", " | ".join(wrong)),) if wrong else ()
    return Draft(sections, keywords, flags)


def _sorted(offered: list[str], section: str) -> tuple[list[str], list[str]]:
    """Keywords that can be used, and what is wrong with the others."""
    good: dict[str, None] = {}
    bad = []
    for word in offered:
        keyword = " ".join(word.split()).strip(" .").casefold()
        reason = "comes twice" if keyword in good else usable_keyword(keyword, section)
        if reason is None:
            good[keyword] = None
        else:
            bad.append(f'"{keyword[:60]}" {reason}')
    return list(good), bad


def _object(text: str) -> dict[str, Any] | None:
    """The first JSON object with any of the wanted keys."""
    plain = _THOUGHT.sub(" ", text[:LONGEST])
    decoder = json.JSONDecoder(strict=False)
    for match in list(re.finditer(r"\{", plain))[:_OBJECTS]:
        try:
            value, _ = decoder.raw_decode(plain, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and any(name in value for name in SECTIONS):
            return value
    return None


def _plain(value: Any, name: str) -> str:
    """A section in one line, without markdown and a repeated heading, with a full stop; empty if it is no text."""
    if not isinstance(value, str):
        return ""
    clean = value.encode("utf-8", "replace").decode()  # half a character of JSON (\ud800) cannot be written to a file
    text = (
        " ".join(re.sub(r"[*_#`]+", "", re.sub(r"[\x00-\x1f\x7f]", " ", clean)).split())
        .removeprefix(HEADINGS[name])
        .strip(" :-")
    )
    return f"{text}." if text and text[-1] not in ".!?" else text


def _is_english(text: str) -> bool:
    """Whether nearly all letters are Latin ones without accents; a rough check against other languages."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter.isascii() for letter in letters) >= 0.9 * len(letters)
