"""The teacher that needs no endpoint: what the annotation supports, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

from cogalign.cognition.keywords import extract
from cogalign.cognition.report import SECTIONS, Report
from cogalign.cognition.templates import template_report
from cogalign.data.annotation.draft import Draft, report_of
from cogalign.data.annotation.facts import Facts
from cogalign.data.annotation.position import Place
from cogalign.data.case import Keywords

TEMPLATE_VERSION = "template-1"
_LIGHT_SILENT = "light mode not annotated"
_PICTURE = "endoscopic image"
_SAID_OF_ALL = ("annotated", _PICTURE)
"""Parts of a section with one of these say nothing of the case and give no keyword."""


def template_draft(facts: Facts) -> Draft:
    """The report of `cogalign.cognition.templates.template_report`, with places, imaging and grade where they are known.

    Keywords come from what is known alone; a section that knows nothing has none. So phrases such as `not annotated`,
    which every template report has, earn a model nothing.
    """
    report = template_report(facts.findings, facts.organ, facts.landmark, paris=facts.paris)
    location = report.location
    if facts.light:
        location = location.replace(_LIGHT_SILENT, facts.light)
    if facts.imaging == "capsule":
        location = location.replace(_PICTURE, "capsule endoscopy image")
    report = replace(report, location=location, morphology=_morphology(facts, report.morphology))
    return Draft({name: getattr(report, name) for name in SECTIONS}, keywords_of(report))


def keywords_of(report: Report) -> Keywords:
    """As `cogalign.cognition.keywords.extract`, without what template reports say of every image."""
    known = {}
    for name in SECTIONS:
        parts = re.split(r"(?<=[,.])\s+", getattr(report, name))
        known[name] = " ".join(part for part in parts if not any(word in part for word in _SAID_OF_ALL))
    found = extract(report_of(known, report.diagnosis))
    # Where little is known, `small` and `bowel` would stand beside `small bowel`, and be found in other things.
    whole = {name: [word for word in words if not any(word in other and word != other for other in words)]
             for name, words in found.items()}  # fmt: skip
    return {name: words for name, words in whole.items() if words}


def _morphology(facts: Facts, plain: str) -> str:
    """The template's morphology with grade and places.

    Of several findings whose places are known each has its own clause, so that counterfactuals can take one out;
    else there is no semicolon, lest something be cut off that belongs to both.
    """
    known = {place.finding for place in facts.places}
    if len(facts.findings) > 1 and facts.grade is None and known <= set(facts.findings):
        clauses = []
        for finding in facts.findings:
            text = template_report((finding,), paris=facts.paris).morphology.rstrip(".")
            places = [_place(place) for place in facts.places if place.finding == finding]
            clauses.append(", ".join([text[0].lower() + text[1:], *places]))
        joined = "; ".join(clauses)
        return f"{joined[0].upper()}{joined[1:]}."
    told = [facts.grade, *(_place(place) for place in facts.places)]
    return " ".join([plain, *(f"{text[0].upper()}{text[1:]}." for text in told if text)])


def _place(place: Place) -> str:
    """One place, e.g. `in the upper left of the image, at about 10 o'clock, about 6 % of the image area`."""
    return f"in the {place.words}, {'in ' if place.boxed else ''}{place.size}"
