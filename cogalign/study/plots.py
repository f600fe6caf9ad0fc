"""Plots of a study: a panel for each measure with a line for each arm, and curves of the training."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cogalign.evaluation.plots import GRID, SETTINGS

COLOURS = ("#767676", "#d98200", "#007a5a", "#b0428f", "#c8443a", "#0069aa", "#5b4bb5", "#8a6d00", "#2e8fb8", "#444444")
"""Colours of the arms in the study's order, after Okabe and Ito, darkened for contrast on white; then they repeat."""
MARKERS = ("s", "o", "^", "v", "P", "D", "X", "<", ">", "h")
PANELS = {
    "loss": "SFT: loss",
    "reward": "GRPO: reward",
    "rewards/diagnosis/mean": "GRPO: diagnosis reward",
    "kl": "GRPO: KL divergence",
}
_SETTINGS: Any = {**SETTINGS, "font.size": 9.5}


Panel = tuple[str, Mapping[str, Mapping[str, Any]], bool, str]
"""Title; arm → `table.summarize`; whether the values are points that may be negative (else shares); number of images."""
SOFT = "#57606a"


def _style(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def _panel(axis: Any, panel: Panel, arms: Sequence[str]) -> None:
    """Points with intervals, an arm a line; small ticks below them are the seeds."""
    title, values, points, count = panel
    low, high = (0.0, 0.0) if points else (0.0, 1.0)
    scale = 100.0 if points else 1.0
    for number, arm in enumerate(arms):
        found = values.get(arm)
        if found is None:
            continue
        colour, marker = _style(number)
        value, interval = found["value"] * scale, [bound * scale for bound in found["ci"]]
        errors = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
        axis.errorbar(
            value, number, xerr=errors, fmt=marker, color=colour, ms=6, capsize=3, lw=1.6, clip_on=False, zorder=3
        )
        seeds = [one * scale for one in found["seeds"].values()]
        if len(seeds) > 1:
            axis.plot(seeds, [number + 0.28] * len(seeds), "|", color=colour, ms=5, mew=1.2, clip_on=False, zorder=3)
        low, high = min(low, *interval), max(high, *interval)
    axis.set_title(title, fontsize=9.5, loc="left")
    axis.set_xlabel(count, fontsize=8.5, loc="right", color=SOFT)
    axis.set_xlim(low, high if high > low else low + 0.01)
    if not points:
        axis.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100%"])
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.grid(axis="x", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0, pad=9)


def forest(panels: Sequence[Panel], titles: Mapping[str, str]) -> Figure:
    """A panel for each measure, on it a line for each arm: the mean over seeds, its 95 % interval, and ticks for the seeds.

    Args:
        panels: see `Panel`.
        titles: arm → its name; the lines are in this order.
    """
    arms = list(titles)
    columns = min(3, max(1, len(panels)))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(2.6 + 2.9 * columns, rows * (0.75 + 0.3 * max(2, len(arms)))), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for place, axis in enumerate(axes):
            if place >= len(panels):
                axis.set_visible(False)
                continue
            _panel(axis, panels[place], arms)
            names = list(titles.values()) if place % columns == 0 else []
            axis.set_yticks(range(len(arms)), names or [""] * len(arms))
    return figure


def curves(frames: Mapping[str, Sequence[pd.DataFrame]], titles: Mapping[str, str]) -> Figure | None:
    """Curves of the training over optimizer steps: an arm a colour, seeds thin, their mean thick; None without any.

    Args:
        frames: arm → `runs.read_curves` of each seed.
        titles: arm → its name, all arms of the study, which give the colours.
    """
    logged = {name for parts in frames.values() for frame in parts for name in frame if frame[name].notna().any()}
    names = [name for name in PANELS if name in logged]
    if not names:
        return None
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(max(5.0, 3.2 * len(names)), 3.3), layout="constrained")
        shown: dict[str, Any] = {}
        for axis, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
            for number, arm in enumerate(titles):
                seeds = [frame.set_index("step")[name].dropna() for frame in frames.get(arm, ()) if name in frame]
                seeds = [series for series in seeds if len(series)]
                if not seeds:
                    continue
                window = max(1, max(map(len, seeds)) // 10)
                smooth = [series.rolling(window, min_periods=1, center=True).mean() for series in seeds]
                for series in smooth:
                    axis.plot(series.index, series, color=_style(number)[0], alpha=0.35, lw=0.9)
                mean = pd.concat(smooth, axis=1).mean(axis=1)
                shown[arm] = axis.plot(mean.index, mean, color=_style(number)[0], lw=1.9)[0]
            axis.set_title(PANELS[name], fontsize=10)
            axis.set_xlabel("optimizer step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.grid(axis="y", color=GRID, linewidth=0.8)
        figure.legend(list(shown.values()), [titles[arm] for arm in shown], loc="outside lower center",
                      ncols=min(3, len(shown)), frameon=False)  # fmt: skip
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, 150 dots an inch."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
