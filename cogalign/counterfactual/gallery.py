"""The contact sheet: sources and their counterfactuals side by side in one HTML file without links."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from numpy.typing import NDArray

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.counterfactual.gallery_table import table
from cogalign.counterfactual.masks import Image, Mask
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import load_mask
from cogalign.data.spread import spread_evenly
from cogalign.recipe import INTERVENTIONS
from cogalign.training.atomic import write_text

SIDE = 256
"""Longest side of a picture on the sheet."""
OUTLINE = (0, 255, 255)
RIM = (0, 0, 0)
TEMPLATE, STYLE, SCRIPT = "gallery.html.j2", "gallery.css.j2", "gallery.js.j2"
NOTHING: Mapping[str, Any] = MappingProxyType({})
MEASURES = {
    "seam": "seam",
    "residual_segmenter": "lesion left (segmenter)",
    "residual_classifier": "lesion left (classifier)",
    "realism": "realism",
}
"""Measures of `attributes["quality"]` and their names on the sheet; the higher, the worse."""
CONFIDENCE = "confidence"


@dataclass(frozen=True)
class Picture:
    """A picture of the sheet.

    Args:
        id: of the case that a verdict on it is about.
        uri: the picture.
        alt: what it shows, for those who do not see it.
        caption: the findings.
        notes: what else there is to say.
        original: what it was made from, shown when pointed at; None for the source itself.
        original_alt: what that shows.
        quality: names and values of the measures.
        failed: why it was rejected; empty if it was not.
        of: id of its source; empty for the source itself.
    """

    id: str
    uri: str
    alt: str
    caption: str
    notes: tuple[str, ...] = ()
    original: str | None = None
    original_alt: str = ""
    quality: tuple[tuple[str, str], ...] = ()
    failed: tuple[str, ...] = ()
    of: str = ""


@dataclass(frozen=True)
class Row:
    """A source case: for each column its pictures, and by what the row is sorted and filtered."""

    id: str
    split: str
    cells: tuple[tuple[Picture, ...], ...]
    measures: Mapping[str, float]
    reasons: tuple[str, ...] = ()


def write_gallery(
    pairs: CaseSet,
    factual: CaseSet,
    path: Path,
    limit: int,
    rejected: Sequence[Case] = (),
    left_out: Mapping[str, int] = NOTHING,
    summary: Mapping[str, Any] | None = None,
    masks: Mapping[str, Path] = NOTHING,
) -> None:
    """Write the contact sheet of a case set of pairs.

    Args:
        pairs: counterfactuals; its folder holds the pictures of the rejected ones too.
        factual: the case set that they were made from.
        path: the HTML file.
        limit: number of source cases, spread evenly; 0 writes a sheet without pictures.
        rejected: counterfactuals that failed the quality gate, with the reasons in `attributes["quality"]["failed"]`.
        left_out: why cases have no counterfactual, with counts.
        summary: the quality summary, plain values in any depth of mappings.
        masks: by id of the source case the file of a mask that was found; without one it is the case's own.

    Raises:
        FileNotFoundError, ValueError: a picture or a mask is missing or damaged.
    """
    bad = {case.id for case in rejected}
    groups: dict[str, list[Case]] = {}
    for case in (*pairs.cases, *rejected):
        if case.counterfactual_of is not None:
            groups.setdefault(case.counterfactual_of, []).append(case)
    made = [case for group in groups.values() for case in group]
    columns = [name for name in INTERVENTIONS if name in {case.intervention for case in made}]
    order = {case.id: position for position, case in enumerate(factual.cases)}
    chosen = spread_evenly(sorted(groups, key=lambda source: order[source]), limit)
    sheet = _Sheet(pairs, factual, masks, bad, columns)
    rows = [sheet.row(factual.by_id[source], groups[source]) for source in chosen]
    context = {
        "columns": ["original", "mask", *columns],
        "interventions": _options(columns),
        "rows": rows,
        "splits": _options(sorted({row.split for row in rows})),
        "reasons": _options(sorted({reason for row in rows for reason in row.reasons})),
        "sorts": {**MEASURES, CONFIDENCE: "mask confidence"},
        "made": len(made),
        "rejected": len(bad),
        "sources": len(groups),
        "fills": sorted({case.fill for case in made if case.fill}),
        "yields": [(name, *_yield(made, bad, name)) for name in columns],
        "failures": Counter(reason for case in rejected for reason in _failed(case)).most_common(),
        "left_out": sorted(left_out.items(), key=lambda item: -item[1]),
        "summary": table(summary) if summary else None,
        "key": hashlib.sha256("\n".join(sorted(case.id for case in made)).encode()).hexdigest()[:16],
    }
    write_text(path, _render(context))


def _render(context: Mapping[str, Any]) -> str:
    """The page. Its policy allows its own style and script, inline pictures, and nothing else."""
    environment = Environment(
        loader=PackageLoader("cogalign.counterfactual", "."),
        autoescape=select_autoescape(["j2", "html"]),
        undefined=StrictUndefined,
    )
    # Both are this package's own fixed texts.
    style = Markup(environment.get_template(STYLE).render())
    script = Markup(environment.get_template(SCRIPT).render())
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    return environment.get_template(TEMPLATE).render(**context, style=style, script=script, policy=Markup(policy))


def _digest(text: str) -> str:
    """The hash by which a content security policy knows an inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _options(values: Sequence[str]) -> list[tuple[str, str]]:
    """Values of a choice with their texts, which are the same."""
    return [(value, value) for value in values]


def _yield(made: Sequence[Case], bad: set[str], intervention: str) -> tuple[int, int]:
    """Accepted and all counterfactuals of an intervention."""
    ids = [case.id for case in made if case.intervention == intervention]
    return sum(name not in bad for name in ids), len(ids)


@dataclass(frozen=True)
class _Sheet:
    """What all rows share."""

    pairs: CaseSet
    factual: CaseSet
    masks: Mapping[str, Path]
    bad: set[str]
    columns: Sequence[str]

    def row(self, source: Case, made: Sequence[Case]) -> Row:
        """The pictures of a source case."""
        image = np.asarray(self.factual.image(source))
        shown = data_uri(image)
        findings = names(source)
        first = Picture(source.id, shown, f"original {source.id}: {findings}", findings, (_organ(source),))
        known = next((case.attributes["mask"] for case in (*made, source) if "mask" in case.attributes), None)
        cells: list[tuple[Picture, ...]] = [(first,), (self._mask(source, image, shown, known),)]
        cells += [
            tuple(self._picture(case, shown, source) for case in made if case.intervention == column)
            for column in self.columns
        ]
        measures = {name: max(values) for name in MEASURES if (values := _values(made, name))}
        confidence = _number((known or {}).get("confidence"))
        if confidence is not None:
            measures[CONFIDENCE] = confidence
        reasons = dict.fromkeys(reason for case in made if case.id in self.bad for reason in _failed(case))
        return Row(
            source.id,
            source.split,
            tuple(cells),
            measures,
            tuple(reasons),
        )

    def _mask(self, source: Case, image: Image, shown: str, known: Mapping[str, Any] | None) -> Picture:
        """The outline of the mask; whence it is known and how surely."""
        found = self.masks.get(source.id)
        mask = load_mask(found) if found is not None else self.factual.mask(source)
        notes = []
        if known is not None:
            confidence = _number(known.get("confidence"))
            notes = [str(known.get("provenance", ""))] if known.get("provenance") else []
            notes += [f"confidence {confidence:.2f}"] if confidence is not None else []
        if mask is None:
            return Picture(source.id, shown, f"{source.id}: no mask", "no mask", tuple(notes))
        share = f"{100 * float(mask.mean()):.1f} % of the image"
        alt = f"outline of the mask of {source.id}, {share}"
        drawn = data_uri(outlined(_reduced(image), _reduced(mask.astype(np.uint8)) > 0))
        return Picture(source.id, drawn, alt, share, tuple(notes), shown, f"original {source.id}")

    def _picture(self, case: Case, original: str, source: Case) -> Picture:
        """The picture of a counterfactual; pointed at, it shows what it was made from (a transplant: its background)."""
        notes = []
        original_alt = f"original {source.id}"
        if case.background_of is not None:
            background = self.factual.by_id[case.background_of]
            notes.append(f"on {background.id} ({names(background)}, {_organ(case)})")
            original, original_alt = data_uri(np.asarray(self.factual.image(background))), f"background {background.id}"
        for key in ("changed", "removed"):
            if key in case.attributes:
                notes.append(f"{key}: {', '.join(map(str, case.attributes[key]))}")
        failed = _failed(case) if case.id in self.bad else ()
        quality = case.attributes.get("quality") or {}
        values = {MEASURES[name]: _number(quality.get(name)) for name in MEASURES}
        alt = f"{case.intervention} of {source.id}: {names(case)}" + (
            f"; rejected: {', '.join(failed)}" if failed else ""
        )
        return Picture(
            case.id,
            data_uri(np.asarray(self.pairs.image(case))),
            alt,
            names(case),
            tuple(notes),
            original,
            original_alt,
            tuple((label, f"{value:.2f}") for label, value in values.items() if value is not None),
            failed,
            source.id,
        )


def _failed(case: Case) -> tuple[str, ...]:
    """Why a rejected counterfactual was rejected; at least one reason."""
    reasons = (case.attributes.get("quality") or {}).get("failed") or ["no reason told"]
    return tuple(str(reason) for reason in reasons)


def _values(cases: Sequence[Case], name: str) -> list[float]:
    """What is known of a measure among some counterfactuals."""
    values = (_number((case.attributes.get("quality") or {}).get(name)) for case in cases)
    return [value for value in values if value is not None]


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return float(value)


def _organ(case: Case) -> str:
    return case.organ.replace("_", " ")


def names(case: Case) -> str:
    """Display names of a case's findings."""
    return ", ".join(FINDINGS[finding].name if finding in FINDINGS else finding for finding in case.findings)


def outlined(image: Image, mask: Mask) -> Image:
    """The image with the outline of the mask drawn on it."""
    drawn = image.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(image.shape[:2]) / 150))
    # A dark rim keeps the line legible on bright mucosa.
    cv2.drawContours(drawn, contours, -1, RIM, width + 2)
    cv2.drawContours(drawn, contours, -1, OUTLINE, width)
    return drawn


def data_uri(image: Image) -> str:
    """The image, reduced to `SIDE` pixels, as an inline JPEG."""
    shown = cv2.cvtColor(_reduced(image), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image, or a mask of 0 and 1, of at most `SIDE` pixels a side."""
    scale = SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    # A mask's pixel counts where at least half of it is covered: OpenCV rounds.
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
