"""Pictures of a case set's counts, as SVG."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LONGEST = 34  # characters of a name


def class_histogram(by_source: Mapping[str, Counter[str]]) -> bytes:
    """How many cases have each finding, as bars with one colour for each data set (SVG).

    Args:
        by_source: for each data set the cases of each finding; without any finding the picture says so.
    """
    from matplotlib.figure import Figure

    findings = _ordered(by_source)
    if not findings:
        return _nothing(by_source)
    figure = Figure(figsize=(9, 1.4 + 0.3 * len(findings) + 0.18 * len(by_source)), layout="constrained")
    axes = figure.add_subplot()
    start = np.zeros(len(findings))
    places = np.arange(len(findings))
    for colour, (source, counts) in zip(_colours(len(by_source)), by_source.items(), strict=True):
        values = np.array([counts[name] for name in findings], dtype=float)
        axes.barh(places, values, left=start, color=colour, label=_short(source), height=0.75)
        start += values
    for place, total in zip(places.tolist(), start.tolist(), strict=True):
        axes.text(total, place, f" {total:.0f}", va="center", fontsize=8)
    axes.set_yticks(places, [_short(name) for name in findings], fontsize=9)
    axes.set_ylim(len(findings) - 0.5, -0.5)
    axes.set_xlim(0, max(1.0, float(start.max(initial=0)) * 1.1))
    axes.set_xlabel("cases")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(3, len(by_source)), fontsize=8, frameon=False)
    return _svg(figure)


def cooccurrence_plot(together: Mapping[tuple[str, str], int], by_source: Mapping[str, Counter[str]]) -> bytes:
    """Two tables as pictures (SVG): findings that stand together, and the findings of each data set.

    Args:
        together: cases with two findings; (a, a) holds the cases in which a stands alone.
        by_source: for each data set the cases of each finding; without any finding the picture says so.
    """
    from matplotlib.figure import Figure

    findings = _ordered(by_source)
    if not findings:
        return _nothing(by_source)
    pairs = np.array([[together.get((one, other), 0) for other in findings] for one in findings])
    sources = np.array([[counts[name] for name in findings] for counts in by_source.values()])
    side = 1.8 + 0.34 * len(findings)
    low = 0.9 + 0.34 * len(by_source)
    figure = Figure(figsize=(max(7.0, side + 2.2), side + low + 2.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[max(1, len(findings)), max(1, len(by_source))])
    _heat(upper, pairs, findings, findings, "Findings in one image (diagonal: alone)")
    _heat(lower, sources, list(by_source), findings, "Findings of each data set")
    return _svg(figure)


def _nothing(by_source: Mapping[str, Counter[str]]) -> bytes:
    """What is drawn where no case has a finding: that, in words, and the data sets (SVG)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.0 + 0.25 * len(by_source)), layout="constrained")
    told = "No case has a finding: there is nothing to count."
    figure.text(0.02, 0.5, "\n".join([told, *map(_short, by_source)]), va="center", fontsize=9)
    return _svg(figure)


def _heat(axes: Axes, counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """A table of counts, darker on a logarithmic scale; 0 is left white."""
    from matplotlib.colors import LogNorm

    peak = max(2, int(counts.max(initial=0)))
    axes.imshow(np.ma.masked_equal(counts, 0), cmap="YlGnBu", norm=LogNorm(1, peak), aspect="equal")
    for row, column in np.argwhere(counts > 0).tolist():
        dark = np.log(counts[row, column]) > 0.6 * np.log(peak)
        number = _number(int(counts[row, column]))
        axes.text(column, row, number, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=60, ha="right",
                    rotation_mode="anchor", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows], fontsize=8)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_title(title, fontsize=10, loc="left")


def _number(count: int) -> str:
    """A count in at most four characters: 950, 1.2k, 23k."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"


def _ordered(by_source: Mapping[str, Counter[str]]) -> list[str]:
    """Findings, the most frequent first."""
    totals: Counter[str] = Counter()
    for counts in by_source.values():
        totals.update(counts)
    return [name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]


def _short(name: str) -> str:
    """A name that fits beside an axis; `$` would begin a formula."""
    name = " ".join(name.replace("_", " ").split()).replace("$", "\\$")
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _colours(number: int) -> list[tuple[float, float, float, float]]:
    """Colours that differ."""
    from matplotlib import colormaps

    table = colormaps["tab20" if number > 10 else "tab10"]
    return [table(index % table.N) for index in range(number)]


def _svg(figure: Figure) -> bytes:
    """The figure as SVG: the same counts give the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "cogalign", "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
