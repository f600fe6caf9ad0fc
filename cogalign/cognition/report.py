"""The report: hierarchical clinical cognition in the paper's plain-heading template, rendered and parsed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from cogalign.cognition.taxonomy import lookup, name_of

SECTIONS = ("location", "morphology", "microvasculature")
"""The three levels, coarse to fine."""

HEADINGS: dict[str, str] = {
    "location": "1. Location & Imaging Environment",
    "morphology": "2. Mucosal Morphology & Focal Lesions",
    "microvasculature": "3. Surface Texture & Microvascular Architecture",
}
"""The paper's plain headings, with their numbers."""

DIAGNOSIS_PREFIX = "The diagnosis result is "


@dataclass(frozen=True)
class Report:
    """What is seen, level by level, and what it means. An empty text is a section that is missing."""

    location: str
    morphology: str
    microvasculature: str
    diagnosis: tuple[str, ...]
    """Ids of the taxonomy, each once, in the order of the text."""
    unknown: tuple[str, ...] = ()
    """Names of the diagnosis line that the taxonomy does not have, as they were written."""

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not there: some of `SECTIONS`, and `diagnosis` when no name stands in the diagnosis line."""
        sections = tuple(name for name in SECTIONS if not getattr(self, name))
        return sections if self.diagnosis or self.unknown else (*sections, "diagnosis")

    def agrees_with(self, findings: Iterable[str]) -> bool:
        """Whether the diagnosis is exactly this set of findings, with no unknown name beside it."""
        return not self.unknown and set(self.diagnosis) == set(findings)


def render(report: Report) -> str:
    """The report as text: three headings with their sections, then the diagnosis line (left out if it is missing).

    Raises:
        ValueError: an id in `diagnosis` is not in the taxonomy.
    """
    lines = []
    for section in SECTIONS:
        lines += [HEADINGS[section], getattr(report, section)]
    names = [*map(name_of, report.diagnosis), *report.unknown]
    if names:
        lines.append(f"{DIAGNOSIS_PREFIX}{', '.join(names)}.")
    return "\n".join(lines)


# Runs are bounded ({0,12}) so that a model which repeats one character for ever costs linear time.
_MARKUP = r"[ \t#>*_]{0,12}"
_NUMBER = r"(?:(?<![\w.])\(?\d[ \t]{0,3}[.):][ \t*_]{0,6})?"
_GAP = r"\s{1,8}"
_AND = r"\s{0,8}(?:&amp;|&|\+|and\b)\s{0,8}"
_FULL = {
    "location": rf"location{_AND}imaging{_GAP}environments?",
    "morphology": rf"mucosal{_GAP}morphology{_AND}focal{_GAP}lesions?",
    "microvasculature": rf"surface{_GAP}textures?{_AND}microvascular{_GAP}architectures?",
}
_SHORT = {
    "location": r"(?:anatomical[ \t]{1,8})?location|imaging[ \t]{1,8}environment",
    "morphology": r"(?:mucosal[ \t]{1,8})?morphology|focal[ \t]{1,8}lesions?",
    "microvasculature": r"surface[ \t]{1,8}texture|microvascular[ \t]{1,8}architecture|microvasculature",
}
_ENDING = r"[ \t]{0,12}[*_#:]{0,6}[ \t]{0,12}"


def _compiled(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in patterns)


def _headings(section: str) -> tuple[re.Pattern[str], ...]:
    """The full heading anywhere; failing that, a short one at the start of a line, with a colon or nothing after it."""
    return _compiled(
        rf"{_MARKUP}{_NUMBER}{_FULL[section]}{_ENDING}",
        rf"^{_MARKUP}{_NUMBER}(?:{_SHORT[section]})[ \t*_]{{0,12}}(?::[ \t*_]{{0,12}}|$)",
    )


_DIAGNOSIS = _compiled(
    rf"{_MARKUP}{_NUMBER}the{_GAP}diagnosis{_GAP}result{_GAP}is\b[ \t]{{0,12}}[*_:]{{0,6}}",
    rf"{_MARKUP}{_NUMBER}(?:the{_GAP})?(?:final{_GAP})?diagnosis(?:{_GAP}result)?{_GAP}is\b[ \t]{{0,12}}[*_:]{{0,6}}",
    rf"^{_MARKUP}{_NUMBER}(?:final[ \t]{{1,8}})?diagnosis(?:[ \t]{{1,8}}result)?[ \t*_]{{0,12}}(?::|$)[ \t*_]{{0,12}}",
)
_MARKS = {**{section: _headings(section) for section in SECTIONS}, "diagnosis": _DIAGNOSIS}
_BULLET = re.compile(r"[ \t]{0,12}(?:[-*•]|\d{1,2}[.)])[ \t]{1,12}(?=\S)")
_SENTENCE_END = re.compile(r"[.!?。](?=[\s*_\"')\]]|$)")
_LIST = re.compile(r"[,;\n|、，；]|/")
_CONJUNCTION = re.compile(r"\s+(?:and|with|plus)\s+|\s*[&+]\s*", re.IGNORECASE)
_TAG = re.compile(r"<[^<>\n]*>")
_REMARK = re.compile(r"(?<=\w) ?[(\[][^)\]]*[)\]]?")
_ARTICLE = re.compile(r"^(?:and|a|an|the)\s+", re.IGNORECASE)
_WRAPPING = " \t\r\n*_`\"'“”‘’[](){}<>:.!?-•"


def parse(text: str) -> Report:
    """The report that a text holds. Total: any text gives a report, and what it lacks is in `missing`.

    Headings may come in any order, case and markdown, with or without number, also within a line; of a
    heading that is repeated the first with any text counts. Text before the first heading and after the sentence
    of the diagnosis is dropped. Diagnoses are split at commas, semicolons, slashes, bullets, `and` and `with`;
    remarks in brackets and tags are dropped; names that the taxonomy does not have go to `unknown`.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    marks = sorted(mark for name, patterns in _MARKS.items() for mark in _marks(text, name, patterns))
    found: dict[str, str] = {}
    for (_, end, name), (following, _, _) in pairwise([*marks, (len(text), len(text), "")]):
        content = text[end:following].strip()
        if not found.get(name):
            found[name] = content
    diagnosis, unknown = _read_diagnosis(found.get("diagnosis", ""))
    location, morphology, microvasculature = (found.get(section, "") for section in SECTIONS)
    return Report(location, morphology, microvasculature, diagnosis, unknown)


def _marks(text: str, name: str, patterns: tuple[re.Pattern[str], ...]) -> list[tuple[int, int, str]]:
    """Start, end and name of the marks of one kind: those of the strictest pattern that occurs."""
    for pattern in patterns:
        if marks := [(match.start(), match.end(), name) for match in pattern.finditer(text)]:
            return marks
    return []


def _read_diagnosis(content: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and unknown names in the text after the diagnosis prefix."""
    known: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for name in _names(_first_sentence(content)):
        finding = _named(name)
        if finding is None:
            unknown[name] = None
        else:
            known[finding] = None
    return tuple(known), tuple(unknown)


def _first_sentence(content: str) -> str:
    """The first line up to the end of its sentence; of a bullet list all items, one a line."""
    lines = content.split("\n")
    if not _BULLET.match(lines[0]):
        return _SENTENCE_END.split(lines[0], maxsplit=1)[0]
    items = []
    for line in lines:
        if not _BULLET.match(line):
            break
        items.append(_SENTENCE_END.split(_BULLET.sub("", line, count=1), maxsplit=1)[0])
    return "\n".join(items)


def _names(sentence: str) -> list[str]:
    """The names of a diagnosis sentence. A name that the taxonomy has whole is not split (`... mucosa and ...`)."""
    sentence = _REMARK.sub("", re.sub(r"[^\S\n]+", " ", _TAG.sub(" ", sentence)))
    if _named(_clean(sentence)) is not None:
        return [_clean(sentence)]
    names = []
    for part in map(_clean, _LIST.split(sentence)):
        pieces = [part] if _named(part) is not None else list(map(_clean, _CONJUNCTION.split(part)))
        names += [piece for piece in pieces if piece]
    return names


def _clean(name: str) -> str:
    """The name without markdown, brackets, quotes and a leading article."""
    return _ARTICLE.sub("", name.strip(_WRAPPING)).strip(_WRAPPING)


def _named(name: str) -> str | None:
    """Id of the finding. One letter is no diagnosis: it is only the code of a data set."""
    finding = lookup(name) if len(name) > 1 else None
    return finding.id if finding else None
