"""Plots of the report as SVG data addresses: three colours that colour-blind readers tell apart, and markers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STYLE = {"base": ("#767676", "s"), "sft": ("#d98200", "o"), "aligned": ("#0069aa", "D")}
"""Colour and marker of each model; blue and orange of Okabe and Ito's palette, darkened for contrast on white."""
INK, GRID = "#222222", "#e3e3e3"
CURVES = {
    "rewards/format/mean": ("format", "#767676", ":"),
    "rewards/cognition/mean": ("cognition", "#007a5a", "--"),
    "rewards/diagnosis/mean": ("diagnosis", "#0069aa", "-"),
}
SETTINGS: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"], "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#999999", "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "svg.fonttype": "path", "svg.hashsalt": "cogalign",
}  # fmt: skip

Interval = Sequence[float] | None


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> str:
    """The figure as an SVG data address."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _errors(value: float, interval: Interval) -> list[list[float]]:
    low, high = interval or (value, value)
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _style(role: str) -> tuple[str, str]:
    return STYLE.get(role, ("#444444", "^"))


def _percent_axis(axis: Any, which: str) -> None:
    getattr(axis, f"set_{which}lim")(0, 1.0)
    getattr(axis, f"set_{which}ticks")(np.linspace(0, 1, 6), [f"{value}%" for value in range(0, 101, 20)])
    axis.grid(axis=which, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)


def accuracy_plot(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Bars of accuracy with 95 % intervals: a group for each split, a bar for each model.

    Args:
        models: role → split → metrics, as in `evaluate/metrics.json`.
    """
    splits = list(dict.fromkeys(split for metrics in models.values() for split in metrics))
    width = 0.8 / max(1, len(models))
    with matplotlib.rc_context(SETTINGS):
        figure = _figure(max(4.8, 1.6 + 1.15 * len(splits) * len(models) ** 0.8), 3.5)
        axis = figure.subplots()
        for number, (role, metrics) in enumerate(models.items()):
            shift = (number - (len(models) - 1) / 2) * width
            for place, split in enumerate(splits):
                value = metrics.get(split, {}).get("accuracy")
                if value is None:
                    continue
                interval = metrics[split].get("accuracy_ci")
                axis.bar(place + shift, value, 0.9 * width, color=_style(role)[0], label=role if place == 0 else None)
                axis.errorbar(place + shift, value, _errors(value, interval), fmt="none", ecolor=INK, capsize=3, lw=1.2)
                top = max(value, interval[1] if interval else value)
                axis.annotate(
                    f"{100 * value:.0f}", (place + shift, top), (0, 3), textcoords="offset points", ha="center"
                )
        axis.set_xticks(range(len(splits)), splits)
        _percent_axis(axis, "y")
        axis.set_ylim(0, 1.08)
        axis.set_ylabel("accuracy (exact set match)")
        figure.legend(loc="outside upper center", ncols=len(models), frameon=False)
        return svg(figure)


def interval_plot(rows: Mapping[str, Mapping[str, tuple[float | None, Interval]]], xlabel: str = "") -> str:
    """Points with 95 % intervals on one scale from 0 to 100 %.

    Args:
        rows: label of a line → role → (value, interval).
        xlabel: what the scale means.
    """
    roles = list(dict.fromkeys(role for values in rows.values() for role in values))
    step = 0.7 / max(1, len(roles))
    with matplotlib.rc_context(SETTINGS):
        figure = _figure(7.6, 0.9 + (0.18 + 0.17 * max(1.6, len(roles))) * len(rows))
        axis = figure.subplots()
        for number, role in enumerate(roles):
            colour, marker = _style(role)
            shown = False
            for place, values in enumerate(rows.values()):
                value, interval = values.get(role, (None, None))
                if value is None:
                    continue
                y = place + (number - (len(roles) - 1) / 2) * step
                axis.errorbar(
                    value, y, xerr=_errors(value, interval), fmt=marker, color=colour, markersize=6, capsize=3, lw=1.6,
                    label=None if shown else role, clip_on=False, zorder=3,
                )  # fmt: skip
                shown = True
        for place in range(1, len(rows)):
            axis.axhline(place - 0.5, color=GRID, linewidth=0.8)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        _percent_axis(axis, "x")
        axis.set_xlabel(xlabel)
        axis.tick_params(axis="y", length=0, pad=9)  # markers at 0 stay clear of the labels
        figure.legend(loc="outside upper center", ncols=max(1, len(roles)), frameon=False)
        return svg(figure)


def reward_plot(curves: pd.DataFrame) -> str:
    """Reward curves over optimizer steps: the parts (smoothed over the single steps), the sum and the KL divergence.

    Args:
        curves: columns `step` and those of TRL's names that were logged: `reward`, `rewards/<name>/mean`, `kl`.
    """
    parts = [name for name in CURVES if name in curves and curves[name].notna().any()]
    alone = [name for name in ("reward", "kl") if name in curves and curves[name].notna().any()]
    panels = ([parts] if parts else []) + [[name] for name in alone]
    window = max(1, len(curves) // 20)
    with matplotlib.rc_context(SETTINGS):
        figure = _figure(3.5 * len(panels), 2.9)
        for axis, names in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for name in names:
                label, colour, line = CURVES.get(name, (name, "#0069aa", "-"))
                data = curves[["step", name]].dropna()
                axis.plot(data["step"], data[name], color=colour, alpha=0.22, lw=0.8)
                smooth = data[name].rolling(window, min_periods=1, center=True).mean()
                axis.plot(data["step"], smooth, line, color=colour, lw=1.9, label=label)
            axis.set_title("rewards" if names == parts else names[0], fontsize=10)
            axis.set_xlabel("optimizer step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.grid(axis="y", color=GRID, linewidth=0.8)
            if names == parts:
                axis.set_ylim(-0.03, 1.05)
                axis.legend(frameon=False, fontsize=9)
        return svg(figure)
