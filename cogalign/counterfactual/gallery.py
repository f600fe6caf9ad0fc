"""The contact sheet: sources and their counterfactuals side by side in one HTML file without links."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.counterfactual.masks import Image, Mask
from cogalign.counterfactual.plan import spread_evenly
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, load_rgb
from cogalign.recipe import INTERVENTIONS
from cogalign.training.atomic import write_text

SIDE = 256
"""Longest side of a picture on the sheet."""
OUTLINE = (0, 255, 255)
TEMPLATE = "gallery.html.j2"


@dataclass(frozen=True)
class Picture:
    """A picture of the sheet: its column, a data URI, what it shows and what lies beneath it when pointed at."""

    column: str
    uri: str
    caption: str
    note: str = ""
    original: str | None = None


@dataclass(frozen=True)
class Row:
    """A source case with its pictures; None where there is no counterfactual of that kind."""

    id: str
    split: str
    pictures: list[Picture | None]


def write_gallery(pairs: CaseSet, factual: CaseSet, path: Path, limit: int) -> None:
    """Write the contact sheet of a case set of pairs.

    Args:
        pairs: counterfactuals.
        factual: the case set that they were made from, for its masks.
        path: the HTML file.
        limit: number of source cases, spread evenly; 0 writes a sheet without pictures.
    """
    groups: dict[str, list[Case]] = {}
    for case in pairs.cases:
        if case.counterfactual_of is not None:
            groups.setdefault(case.counterfactual_of, []).append(case)
    present = {case.intervention for case in pairs.cases}
    columns = [name for name in INTERVENTIONS if name in present]
    order = {case.id: position for position, case in enumerate(factual.cases)}
    chosen = spread_evenly(sorted(groups, key=lambda source: order[source]), limit)
    rows = [_row(pairs, factual, factual.by_id[source], groups[source], columns) for source in chosen]
    environment = Environment(
        loader=PackageLoader("cogalign.counterfactual", "."), autoescape=select_autoescape(["j2", "html"])
    )
    page = environment.get_template(TEMPLATE).render(
        columns=["source", "mask", *columns],
        rows=rows,
        total=len(pairs.cases),
        sources=len(groups),
        fills=sorted({case.fill for case in pairs.cases if case.fill}),
    )
    write_text(path, page)


def _row(pairs: CaseSet, factual: CaseSet, source: Case, made: list[Case], columns: Sequence[str]) -> Row:
    """The pictures of one source case."""
    image = np.asarray(factual.image(source))
    mask = factual.mask(source)
    original = data_uri(image)
    findings = names(source)
    pictures: list[Picture | None] = [
        Picture("source", original, findings, source.organ.replace("_", " ")),
        Picture("mask", data_uri(outlined(image, mask)) if mask is not None else original, "outline"),
    ]
    for column in columns:
        case = next((case for case in made if case.intervention == column), None)
        pictures.append(None if case is None else _picture(pairs, factual, case, column, original))
    return Row(source.id, source.split, pictures)


def _picture(pairs: CaseSet, factual: CaseSet, case: Case, column: str, original: str) -> Picture:
    """The picture of a counterfactual; pointed at, it shows what it was made from (a transplant: its background)."""
    note = case.organ.replace("_", " ")
    if case.background_of is not None:
        background = factual.by_id[case.background_of]
        note = f"on {case.background_of} ({names(background)}, {note})"
        original = data_uri(np.asarray(factual.image(background)))
    elif "changed" in case.attributes:
        note = "changed: " + ", ".join(case.attributes["changed"])
    return Picture(column, data_uri(np.asarray(load_rgb(pairs.path(case.file_name)))), names(case), note, original)


def names(case: Case) -> str:
    """Display names of a case's findings."""
    return ", ".join(FINDINGS[finding].name if finding in FINDINGS else finding for finding in case.findings)


def outlined(image: Image, mask: Mask) -> Image:
    """The image with the outline of the mask drawn on it."""
    drawn = image.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, OUTLINE, max(1, round(max(image.shape[:2]) / 200)))
    return drawn


def data_uri(image: Image) -> str:
    """The image, reduced to `SIDE` pixels, as an inline JPEG."""
    scale = SIDE / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
