"""The files of a comparison of fills: tables, a plot of points with intervals, and a contact sheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cogalign.counterfactual.masks import Image
from cogalign.training.atomic import write_bytes, write_json, write_text

COLUMNS: tuple[tuple[str, str, float | None], ...] = (
    ("leakage_auc_paired_patch", "leakage AUC\npaired, patch", 0.5),
    ("leakage_auc_paired", "leakage AUC\npaired, image", 0.5),
    ("leakage_auc_patch", "leakage AUC\nfilled vs. untouched", 0.5),
    ("leakage_auc_image", "leakage AUC\nremovals vs. normals", 0.5),
    ("leakage_auc_image_same", "the same,\nsame data set", 0.5),
    ("residual_classifier", "P(lesion) left\n(classifier)", None),
    ("cleared", "share cleared\n(classifier)", None),
    ("residual_segmenter", "lesion left\n(segmenter)", None),
    ("seam", "seam\n(median)", 1.0),
    ("realism", "realism\n(median)", 1.0),
    ("kid_patch", "KID, patches", 0.0),
    ("kid_image", "KID, images", 0.0),
    ("yield", "yield", None),
)
"""Measure, its heading, and the value that is ideal or usual (a dotted line)."""
TILE = 160
"""Side of a picture on the contact sheet."""


def write_comparison(
    result: dict[str, Any], shown: Sequence[tuple[str, Sequence[Image]]], fills: Sequence[str], out: Path
) -> None:
    """Write `fills.json`, `fills.csv`, `fills.md`, `fills.svg` and, if there are pictures, `fills.png`.

    Args:
        result: of `compare_fills`.
        shown: for some cases their id, and source and counterfactuals in the order of the fills.
        fills: names in order.
        out: folder.
    """
    write_json(out / "fills.json", result)
    write_text(out / "fills.csv", as_csv(result))
    write_text(out / "fills.md", as_markdown(result))
    write_text(out / "fills.svg", draw(result))
    if shown:
        write_bytes(out / "fills.png", contact_sheet(shown, fills))


def as_csv(result: dict[str, Any]) -> str:
    """A row for each fill and measure: value, interval and n."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fill", "measure", "value", "low", "high", "n"])
    for fill, measures in result["fills"].items():
        for name, _, _ in COLUMNS:
            found = measures.get(name)
            if found is not None:
                writer.writerow([fill, name, found["value"], *found["ci"], found["n"]])
        writer.writerow([fill, "ms_an_image", measures.get("ms_an_image", ""), "", "", measures["n"]])
    return buffer.getvalue()


def as_markdown(result: dict[str, Any]) -> str:
    """One row a fill, one column a measure that was taken, with intervals."""
    columns = _taken(result)
    heads = [heading.replace("\n", " ") for _, heading, _ in columns]
    lines = [f"| fill | {' | '.join(heads)} | ms |", "|---|" + "---|" * len(columns) + "---:|"]
    for fill, measures in result["fills"].items():
        cells = [_cell(measures.get(name)) for name, _, _ in columns]
        lines.append(f"| {fill} | {' | '.join(cells)} | {measures.get('ms_an_image', '–')} |")
    before, auc = result.get("lesion_before"), result.get("lesion_classifier_auc")
    notes = [
        f"{result.get('cases', '?')} cases ({', '.join(result.get('case_set', []))}), {result.get('normals', 0)} normals; "
        f"95 % intervals in brackets.",
        f"P(lesion) before the removal {_cell(before)}; AUC of the classifier of lesions {_cell(auc)}.",
        f"Realism is that of the {result.get('realism_judged')}.",
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"


def _taken(result: dict[str, Any]) -> list[tuple[str, str, float | None]]:
    rows = result["fills"].values()
    return [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    low, high = found["ci"]
    return f"{found['value']:.2f} [{low:.2f}, {high:.2f}]"


def draw(result: dict[str, Any]) -> str:
    """Points with 95 % intervals, a panel for each measure, a line for each fill; SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "path", "svg.hashsalt": "cogalign", "font.size": 8,
                  "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
    columns, fills = _taken(result), list(result["fills"])
    across = 5
    down = -(-len(columns) // across)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(2.3 * across + 1, (0.24 * len(fills) + 0.9) * down), layout="constrained")
        axes = np.atleast_2d(figure.subplots(down, across, sharey=True))
        for axis in axes.ravel()[len(columns) :]:
            axis.set_visible(False)
        for axis, (name, heading, ideal) in zip(axes.ravel(), columns, strict=False):
            for place, fill in enumerate(fills):
                found = result["fills"][fill].get(name)
                if found is not None:
                    axis.plot(found["ci"], [place, place], color="#0069aa", linewidth=1.6)
                    axis.plot(found["value"], place, "o", color="#0069aa", markersize=4)
            if ideal is not None:
                axis.axvline(ideal, color="#767676", linestyle=":", linewidth=1)
            axis.set_title(heading, fontsize=8)
            axis.set_yticks(range(len(fills)), fills)
            axis.grid(axis="x", color="#e3e3e3", linewidth=0.6)
        axes[0, 0].invert_yaxis()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def contact_sheet(shown: Sequence[tuple[str, Sequence[Image]]], fills: Sequence[str]) -> bytes:
    """A PNG: a row for each case, the source first, then the fills, with their names on top."""
    head = 22
    heading = np.full((head, TILE * (len(fills) + 1), 3), 255, dtype=np.uint8)
    for column, name in enumerate(["source", *fills]):
        cv2.putText(
            heading, name, (column * TILE + 4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA
        )
    rows = [
        np.hstack([cv2.resize(picture, (TILE, TILE), interpolation=cv2.INTER_AREA) for picture in pictures])
        for _, pictures in shown
    ]
    sheet = np.vstack([heading, *rows])
    _, encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return encoded.tobytes()
