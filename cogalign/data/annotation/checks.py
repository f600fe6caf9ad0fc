"""Whether a report agrees with what is known of its case: label, organ, place, imaging.

Each check has a name. Failures refuse the report and are told to the teacher; flags are only noted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from cogalign.cognition.anatomy import ORGANS, american, organ_in
from cogalign.cognition.report import SECTIONS, parse, render
from cogalign.cognition.taxonomy import FINDINGS, name_of
from cogalign.data.annotation.draft import Draft
from cogalign.data.annotation.facts import Facts
from cogalign.data.annotation.mentions import mentions
from cogalign.data.annotation.remarks import Remark
from cogalign.data.annotation.stated import contradicts, stated_positions
from cogalign.data.annotation.vocabulary import ENVIRONMENT, SIGNS, TERMS, allowed_beside

Check = Callable[[Draft, Facts], Iterator[str]]

_NOTHING = re.compile(
    r"\b(?:no|without(?: any)?) (?:(?:definite|obvious|focal|mucosal|visible|discrete|suspicious) ){0,3}"
    r"(?:lesions?|abnormalit(?:y|ies)|findings?)\b(?! (?:else|beyond|elsewhere|other|apart))"
)
_SOURCE = re.compile(
    r"\b(?:annotat(?:ed|ion|ions)|ground truth|gold (?:standard|label|finding)|(?:given|told|provided|supplied|stated|known) "
    r"(?:diagnos[ie]s|findings?|labels?|information|grade)|labell?ed as|according to the (?:label|annot|diagnos|finding|information|ground|mask|box|data)|as (?:told|given|provided)|the mask\b|"
    r"bounding box|the expert)", re.IGNORECASE,
)  # fmt: skip
_PARIS = re.compile(r"\bparis\s+(?:type\s+|class(?:ification)?\s+)?(?:0-)?(i(?:sp|s|p|i[abc](?:\+i{1,2}[abc])?|ii))\b",
                    re.IGNORECASE)  # fmt: skip
_SIZE = re.compile(r"\b\d+(?:[.,]\d+)?\s?(?:to\s\d+\s?|-\s?\d+\s?)?(?:mm|cm|millimet|centimet)", re.IGNORECASE)
_DEVICE = re.compile(r"\b(?:pillcam|olympus|fuji(?:film|non)|pentax|medtronic|given imaging|mirocam|evis|exera|eluxeo|"
                     r"(?:gif|cf|pcf)-\w+|sb\s?[123]\b)", re.IGNORECASE)  # fmt: skip
_LIGHT = re.compile(
    r"\b(?:nbi|narrow[- ]band|blue light|bli|lci|linked colou?r|i-scan|fice|chromoendoscopy)\b", re.IGNORECASE
)
_GRADE = re.compile(r"\b(?:mayo|los angeles|la grade|nice type|kudo|jnet|forrest|grade [a-d0-4])\b", re.IGNORECASE)


def failures(draft: Draft, facts: Facts) -> list[Remark]:
    """What refuses a report; see `FAILURES` for the checks."""
    return [Remark(name, text) for name, check in FAILURES.items() for text in check(draft, facts)]


def flags(draft: Draft, facts: Facts) -> list[Remark]:
    """What is doubtful in a report, but no reason to refuse it; see `FLAGS`."""
    return [*draft.flags, *(Remark(name, text) for name, check in FLAGS.items() for text in check(draft, facts))]


def _joined(draft: Draft) -> str:
    return "\n".join(draft.sections[name] for name in SECTIONS)


def _template(draft: Draft, facts: Facts) -> Iterator[str]:
    """The rendered report must be read as it was written."""
    report = draft.report(facts.findings)
    if parse(render(report)) != report:
        yield "A section holds a heading or a diagnosis sentence of the report; leave those out."


def _negated(draft: Draft, facts: Facts) -> Iterator[str]:
    """A gold finding must not be said to be absent."""
    text = _joined(draft)
    for finding in facts.findings:
        found = mentions(text, TERMS.get(finding, ()))
        if found.negated and not found.affirmed:
            yield f"The text says that there is no {name_of(finding).lower()}, but there is one: describe it."
    focal = [finding for finding in facts.findings if FINDINGS[finding].focal]
    said = any(mentions(text, TERMS[finding]).affirmed for finding in focal) or mentions(text, SIGNS).affirmed
    if focal and not said and _NOTHING.search(american(text)):
        yield f"The text says that there is no lesion, but there is: {', '.join(map(name_of, focal))}."


def _added(draft: Draft, facts: Facts) -> Iterator[str]:
    """No finding beside the gold ones may be said to be there."""
    text = _joined(draft)
    allowed = allowed_beside(facts.findings)
    # A name inside a longer one that is allowed is no finding of its own: `submucosal tumor` is no tumor.
    for finding in facts.findings:
        for term in TERMS.get(finding, ()):
            text = re.sub(rf"\b{re.escape(term)}(?:s|es)?\b", "lesion", text, flags=re.IGNORECASE)
    for finding, terms in TERMS.items():
        if finding not in allowed and (named := [term for term in terms if mentions(text, (term,)).affirmed]):
            yield (
                f'The text says that there is "{named[0]}", which is not among the findings. If it is absent write '
                f'"no {named[0]}", else do not name it.'
            )
    if facts.is_normal and (named := [term for term in SIGNS if mentions(text, (term,)).affirmed]):
        yield f'The mucosa is normal, but the text says that there is "{named[0]}"; each negative needs its own "no".'


def _organ(draft: Draft, facts: Facts) -> Iterator[str]:
    """The organ that the location names first must be the case's."""
    named = organ_in(draft.sections["location"])
    if named is not None and facts.organ in ORGANS and named != facts.organ:
        yield f'"location" names the {ORGANS[named].lower()} first, but this is the {ORGANS[facts.organ].lower()}.'


def _location(draft: Draft, facts: Facts) -> Iterator[str]:
    """The location must hold for the same place without its lesions: counterfactuals keep it."""
    for finding in facts.findings:
        terms = TERMS.get(finding, ()) if FINDINGS[finding].focal and finding not in ENVIRONMENT else ()
        if mentions(draft.sections["location"], terms).total:
            yield f'"location" speaks of the {name_of(finding).lower()}; lesions belong into "morphology".'


def _position(draft: Draft, facts: Facts) -> Iterator[str]:
    """A stated position must fit at least one known lesion."""
    names = [term for finding in facts.findings for term in TERMS.get(finding, ())]
    text = "\n".join(draft.sections[name] for name in SECTIONS)
    for stated in stated_positions(text, names):
        if contradicts(stated, facts.places):
            known = "; ".join(dict.fromkeys(place.words for place in facts.places))
            yield f'The text places a lesion at "{stated.words}", but it lies in the {known}.'


def _source(draft: Draft, _facts: Facts) -> Iterator[str]:
    """The report must not refer to what the teacher was told."""
    if match := _SOURCE.search(_joined(draft)):
        yield f'"{match.group()}" refers to what you were told; write only what the photograph shows.'


def _paris(draft: Draft, facts: Facts) -> Iterator[str]:
    """A Paris class must be the annotated one, where one is annotated."""
    for stated in _PARIS.findall(_joined(draft)):
        if facts.paris is not None and stated.lower() != facts.paris.lower():
            yield f"The text says Paris {stated}, but the shape is Paris {facts.paris}."


def _paris_invented(draft: Draft, facts: Facts) -> Iterator[str]:
    if facts.paris is None and (match := _PARIS.search(_joined(draft))):
        yield match.group()


def _matches(pattern: re.Pattern[str]) -> Check:
    """A check that finds what no annotation supports."""

    def check(draft: Draft, _facts: Facts) -> Iterator[str]:
        if match := pattern.search(_joined(draft)):
            yield match.group()

    return check


def _light(draft: Draft, facts: Facts) -> Iterator[str]:
    match = _LIGHT.search(_joined(draft))
    if match and not (facts.light and _LIGHT.search(facts.light)):
        yield match.group()


def _grade(draft: Draft, facts: Facts) -> Iterator[str]:
    match = _GRADE.search(_joined(draft))
    if match and facts.grade is None:
        yield match.group()


def _organ_unnamed(draft: Draft, facts: Facts) -> Iterator[str]:
    if facts.organ in ORGANS and organ_in(draft.sections["location"]) is None:
        yield ORGANS[facts.organ]


def _clauses(draft: Draft, facts: Facts) -> Iterator[str]:
    """Counterfactuals that take out one of several findings cut sections at their semicolons."""
    if len(facts.findings) > 1:
        for name in ("morphology", "microvasculature"):
            count = draft.sections[name].rstrip(". ").count(";") + 1
            if count != len(facts.findings):
                yield f"{name}: {count} clauses for {len(facts.findings)} findings"


FAILURES: dict[str, Check] = {
    "template": _template,
    "finding_negated": _negated,
    "finding_added": _added,
    "organ": _organ,
    "location": _location,
    "position": _position,
    "source": _source,
    "paris": _paris,
}
"""Checks that refuse a report, by name. `json`, `sections`, `language` and `keywords` come before (`draft`)."""
FLAGS: dict[str, Check] = {
    "paris_invented": _paris_invented,
    "size_invented": _matches(_SIZE),
    "device_invented": _matches(_DEVICE),
    "light_invented": _light,
    "grade_invented": _grade,
    "organ_unnamed": _organ_unnamed,
    "clauses": _clauses,
}
"""Checks that only note something, by name; beside them `keywords_extracted`."""
