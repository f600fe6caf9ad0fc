"""Where the cases of a case set come from, and what their licences allow: `sources.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.data.side_files import side_file
from cogalign.training.atomic import write_json

SOURCES = "sources.json"
ANSWERS = ("yes", "no", "ask", "unknown")
"""What a licence says of a use: allowed, forbidden, allowed by the owner on request, or not known."""


@dataclass(frozen=True)
class Licence:
    """The terms of a data set."""

    name: str
    redistribution: str
    """Whether the images may be passed on: one of `ANSWERS`."""
    commercial: str
    """Whether commercial use is allowed: one of `ANSWERS`."""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("redistribution", "commercial"):
            if getattr(self, name) not in ANSWERS:
                raise ValueError(f"licence.{name}: found {getattr(self, name)!r}, wanted one of {', '.join(ANSWERS)}")


@dataclass(frozen=True)
class Source:
    """One public data set and how many cases came from it."""

    card: str
    """Id of the card, as in `datasets/<id>.yaml`."""
    title: str
    """As in `Case.dataset`."""
    licence: Licence
    citation: str
    homepage: str
    cases: int


def read_sources(root: Path) -> list[Source]:
    """The sources of a case set; an empty list if it has no `sources.json`.

    Raises:
        ValueError: the file is not JSON, or a field is missing, unknown or of the wrong type; names file and field. Or it
            is a symbolic link out of the case set.
    """
    path = side_file(root, SOURCES)
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("sources"), list):
        raise ValueError(f'{path}: found {str(content)[:60]!r}, wanted an object {{"sources": [...]}}')
    found = []
    for number, entry in enumerate(content["sources"]):
        try:
            found.append(_source(entry))
        except ValueError as error:
            raise ValueError(f"{path}: sources[{number}].{error}") from None
    return found


def write_sources(root: Path, sources: Sequence[Source]) -> None:
    """Write `sources.json` as a whole or not at all."""
    write_json(Path(root) / SOURCES, {"sources": [asdict(source) for source in sources]})


def _source(entry: Any) -> Source:
    """One source of plain values; raises ValueError which begins with the field."""
    values = _object(entry, Source, {"cases": int, "licence": dict}, "source")
    if values["cases"] < 0:
        raise ValueError(f"cases: found {values['cases']}, wanted a whole number from 0")
    licence = Licence(**_object({"note": "", **values.pop("licence")}, Licence, {}, "licence"))
    return Source(licence=licence, **values)


def _object(entry: Any, kind: type, types: dict[str, type], what: str) -> dict[str, Any]:
    """The entry, once it has exactly the fields of `kind`: texts, where `types` names no other type."""
    names = [field.name for field in fields(kind)]
    if not isinstance(entry, dict):
        raise ValueError(f"{what}: found {type(entry).__name__}, wanted an object with {', '.join(names)}")
    other = sorted(set(entry) ^ set(names))
    if other:
        state = "unknown" if other[0] in entry else "missing"
        raise ValueError(f"{what}: field {other[0]!r} is {state}, wanted {', '.join(names)}")
    for name in names:
        wanted = types.get(name, str)
        if not isinstance(entry[name], wanted) or isinstance(entry[name], bool):
            raise ValueError(f"{name}: found {entry[name]!r}, wanted {wanted.__name__}")
    return dict(entry)


BACKGROUND_DATASET = "background_dataset"
"""Key of `Case.attributes`: the data set of a transplant's background, where it is another than `Case.dataset`."""

OVERLAYS_DATASET = "overlays_dataset"
"""Key of `Case.attributes`: the data set of the image whose overlays were drawn into this one, where it is another; a list
of them where lesion and background of a transplant have overlays of different ones."""


def all_licences(*texts: str) -> str:
    """The licence of an image that shows several: each of theirs once, since all bind."""
    return "; ".join(dict.fromkeys(part for text in texts for part in text.split("; ") if part))


def datasets_of(case: Case) -> tuple[str, ...]:
    """The data sets whose images are in a case's image, its own first: a transplant may show two, drawn overlays one more."""
    background, lenders = (case.attributes.get(key) for key in (BACKGROUND_DATASET, OVERLAYS_DATASET))
    others = (background, *(lenders if isinstance(lenders, list) else (lenders,)))
    return tuple(dict.fromkeys((case.dataset, *(other for other in others if isinstance(other, str)))))


def allows(case: Case, sources: Mapping[str, Source], use: str) -> str:
    """What the licences of all data sets in a case say of a use, the strictest answer: one of `ANSWERS`.

    Args:
        case: any case.
        sources: by title; a data set that is not in it is `unknown`.
        use: `redistribution` or `commercial`.
    """
    answers = (getattr(sources[title].licence, use) if title in sources else "unknown" for title in datasets_of(case))
    return strictest(answers)


def sources_of(case_set_sources: Sequence[Source], cases: Sequence[Case]) -> list[Source]:
    """One source for each data set of the cases, with their number; what no source is given for is `unknown`.

    A transplant onto the image of another data set counts for both.

    Where two sources of a data set disagree on a use, the stricter answer counts.
    """
    counts = Counter(title for case in cases for title in datasets_of(case))
    given: dict[str, Source] = {}
    for source in case_set_sources:
        known = given.get(source.title)
        given[source.title] = source if known is None else replace(known, licence=_stricter(known, source))
    found = []
    for title, number in sorted(counts.items()):
        if title in given:
            found.append(replace(given[title], cases=number))
        else:
            names = sorted({case.licence for case in cases if case.dataset == title and case.licence})
            licence = Licence("; ".join(names) or "unknown", "unknown", "unknown")
            found.append(Source("", title, licence, "", "", number))
    return found


def strictest(answers: Iterable[str]) -> str:
    """The strictest of answers: `no`, then `unknown`, `ask`, `yes`; `unknown` for none."""
    return max(answers, key=_STRICT.index, default="unknown")


_STRICT = ("yes", "ask", "unknown", "no")


def _stricter(one: Source, other: Source) -> Licence:
    """The licence of the first source with the stricter answers of both."""
    if one.licence == other.licence:
        return one.licence
    note = "; ".join(dict.fromkeys(filter(None, (one.licence.note, other.licence.note))))
    return replace(
        one.licence,
        redistribution=strictest((one.licence.redistribution, other.licence.redistribution)),
        commercial=strictest((one.licence.commercial, other.licence.commercial)),
        note=note,
    )
