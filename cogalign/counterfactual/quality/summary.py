"""The result of the gate for people and machines: `quality.json`, `quality.csv`, `quality.md` and `quality.svg`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogalign.counterfactual.quality.gate import limits
from cogalign.data.case import Case
from cogalign.recipe import INTERVENTIONS, CounterfactualSettings
from cogalign.training.atomic import write_json, write_text

MEASURES = (
    "seam",
    "residual_segmenter",
    "lesion_before",
    "residual_classifier",
    "lesion_seen",
    "realism_image",
    "realism_patch",
    "realism",
)
"""The measures of a counterfactual, in the order of the tables."""
NAMES = {
    "leakage_auc_image": "leakage AUC, images against real normals",
    "leakage_auc_image_same": "the same, normals of the sources' data sets only",
    "leakage_auc_patch": "leakage AUC, filled against untouched patches",
    "leakage_auc_patch_control": "the same, patches of controls",
    "leakage_auc_transplant": "leakage AUC, transplanted lesions against lesions where they grew",
    "leakage_auc_paired": "leakage AUC, normals with and without the fill, images",
    "leakage_auc_paired_patch": "the same, patches",
    "kid_image": "KID, removals against normals",
    "kid_patch": "KID, filled against untouched patches",
}
"""The measures of a set, as tables call them."""
COLOURS = ("#0069aa", "#d98200", "#007a5a", "#767676")


def values_of(cases: Sequence[Case], measure: str) -> list[float]:
    """The values of a measure, of the cases that have it."""
    found = (case.attributes.get("quality", {}).get(measure) for case in cases)
    return [float(value) for value in found if value is not None]


def summarise(
    accepted: Sequence[Case], rejected: Sequence[tuple[Case, list[str]]], settings: CounterfactualSettings
) -> dict[str, Any]:
    """Yield, reasons and quantiles of each measure, by fill and intervention.

    `background` paints nothing over mucosa and comes under the fill `none`.

    Returns:
        `limits`, and `yield`: by fill, then intervention, `n`, `accepted`, `share`, `reasons` and `measures` (each
        with `n`, `q05`, `median`, `mean`, `q95`).
    """
    every: list[tuple[Case, list[str]]] = [(case, []) for case in accepted] + [
        (case, reasons) for case, reasons in rejected
    ]
    table: dict[str, dict[str, Any]] = {}
    for fill in sorted({case.fill or "none" for case, _ in every}):
        for intervention in INTERVENTIONS:
            chosen = [(c, r) for c, r in every if (c.fill or "none") == fill and c.intervention == intervention]
            if not chosen:
                continue
            passed = sum(not reasons for _, reasons in chosen)
            measures = {name: _quantiles(values_of([case for case, _ in chosen], name)) for name in MEASURES}
            table.setdefault(fill, {})[intervention] = {
                "n": len(chosen),
                "accepted": passed,
                "share": round(passed / len(chosen), 4),
                "reasons": dict(Counter(reason for _, reasons in chosen for reason in reasons).most_common()),
                "measures": {name: found for name, found in measures.items() if found is not None},
            }
    return {"limits": limits(settings.quality), "yield": table}


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    found = {"q05": low, "median": middle, "mean": np.mean(values), "q95": high}
    return {"n": len(values), **{name: round(float(value), 4) for name, value in found.items()}}


def write_summary(
    summary: dict[str, Any], cases: Sequence[Case], settings: CounterfactualSettings, folder: Path
) -> None:
    """Write the four files into a folder.

    Args:
        summary: of `summarise`, with `set` (by fill, then measure).
        cases: all counterfactuals with their measures, for the distributions.
        settings: for the limits.
        folder: of the stage.
    """
    write_json(folder / "quality.json", summary)
    write_text(folder / "quality.csv", as_csv(summary))
    write_text(folder / "quality.md", as_markdown(summary))
    write_text(folder / "quality.svg", draw(summary, cases, settings))


def as_csv(summary: dict[str, Any]) -> str:
    """A row for each fill and intervention."""
    buffer = io.StringIO()
    names = [f"{measure}_{part}" for measure in MEASURES for part in ("median", "mean", "q95")]
    writer = csv.DictWriter(buffer, ["fill", "intervention", "n", "accepted", "share", *names], lineterminator="\n")
    writer.writeheader()
    for fill, rows in summary["yield"].items():
        for intervention, row in rows.items():
            flat = {f"{m}_{part}": value for m, found in row["measures"].items() for part, value in found.items()}
            plain = {name: row[name] for name in ("n", "accepted", "share")}
            kept = {name: value for name, value in flat.items() if name in names}
            writer.writerow({"fill": fill, "intervention": intervention, **plain, **kept})
    return buffer.getvalue()


def as_markdown(summary: dict[str, Any]) -> str:
    """Tables of the yield and of the set's measures."""
    lines = ["| fill | intervention | made | kept | seam | lesion left (segmenter) | lesion left (classifier) | realism | rejected for |",
             "|---|---|---:|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    for fill, rows in summary["yield"].items():
        for intervention, row in rows.items():
            shown = [_median(row["measures"], name) for name in ("seam", "residual_segmenter", "residual_classifier", "realism")]  # fmt: skip
            reasons = ", ".join(f"{reason} {count}" for reason, count in row["reasons"].items()) or "–"
            lines.append(f"| {fill} | {intervention} | {row['n']} | {row['accepted']} ({100 * row['share']:.0f} %) | "
                         f"{' | '.join(shown)} | {reasons} |")  # fmt: skip
    lines += ["", "Measures are medians.", "", "| fill | measure of the set | value | 95 % interval | n |", "|---|---|---:|---|---:|"]  # fmt: skip
    for fill, measures in summary.get("set", {}).items():
        for name, found in measures.items():
            if found is not None:
                low, high = found["ci"]
                lines.append(
                    f"| {fill} | {NAMES[name]} | {found['value']:.3f} | {low:.3f} to {high:.3f} | {found['n']} |"
                )
    return "\n".join(lines) + "\n"


def _median(measures: dict[str, Any], name: str) -> str:
    return f"{measures[name]['median']:.2f}" if name in measures else "–"


def draw(summary: dict[str, Any], cases: Sequence[Case], settings: CounterfactualSettings) -> str:
    """The yield of each fill and intervention, and the distributions of the judged measures with their limits, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "path", "svg.hashsalt": "cogalign", "font.size": 9,
                  "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 6.2), layout="constrained")
        axes = figure.subplots(2, 3).ravel()
        _draw_yield(axes[0], summary)
        for axis, (measure, limit) in zip(axes[1:], limits(settings.quality).items(), strict=False):
            _draw_measure(axis, cases, measure, limit)
        _draw_set(axes[5], summary)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw_yield(axis: Any, summary: dict[str, Any]) -> None:
    bars = [(f"{name}\n{fill}", row["share"]) for fill, rows in summary["yield"].items() for name, row in rows.items()]
    axis.barh(range(len(bars)), [share for _, share in bars], color=COLOURS[0])
    for place, (_, share) in enumerate(bars):
        axis.text(min(share, 0.97), place, f" {100 * share:.0f} %", va="center", ha="left", fontsize=8)
    axis.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    axis.set(xlim=(0, 1.12), xlabel="share kept", title="Yield")
    axis.invert_yaxis()


def _draw_measure(axis: Any, cases: Sequence[Case], measure: str, limit: float | None) -> None:
    shown = False
    for colour, intervention in zip(COLOURS, INTERVENTIONS, strict=True):
        values = values_of([case for case in cases if case.intervention == intervention], measure)
        if values:
            shown = True
            top = max(float(np.quantile(values, 0.99)), 1.2 * (limit or 0.0), 1e-3)
            axis.hist(
                np.minimum(values, top), bins=30, range=(0, top), histtype="step", color=colour, label=intervention
            )
    if limit is not None:
        axis.axvline(limit, color="#b00020", linestyle="--", linewidth=1, label=f"limit {limit:g}")
    axis.set(title=measure.replace("_", " "), ylabel="counterfactuals")
    if shown:
        axis.legend(fontsize=7, frameon=False)
    else:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)


def _draw_set(axis: Any, summary: dict[str, Any]) -> None:
    rows = [(name, found) for measures in summary.get("set", {}).values() for name, found in measures.items()
            if found is not None and name.startswith("leakage")]  # fmt: skip
    for place, (_, found) in enumerate(rows):
        axis.plot(found["ci"], [place, place], color=COLOURS[0], linewidth=1.5)
        axis.plot(found["value"], place, "o", color=COLOURS[0])
    axis.axvline(0.5, color="#767676", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(rows)), [name.removeprefix("leakage_auc_").replace("_", " ") for name, _ in rows])
    axis.set(xlim=(0.4, 1.02), title="Fill leakage (0.5 is ideal)", xlabel="AUC")
    axis.invert_yaxis()
