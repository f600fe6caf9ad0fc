"""The report's part on the causal audit: plots and tables of the run's own pairs and of other sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogalign.evaluation.audit import BLUR_KEPT, LESION_READ, LOWER_IS_BETTER, RATES
from cogalign.evaluation.cells import Values, percent, with_interval
from cogalign.evaluation.plots import interval_plot

RATE_NAMES = {
    "removal_normal_rate": "Lesion removed → says normal",
    "control_keep_rate": "Same edit off the lesion → diagnosis kept",
    "transplant_keep_rate": "New background → diagnosis follows the lesion",
    "background_flip_rate": "Background cue changed → diagnosis changes",
}
"""Rates of the audit, and how the report calls them."""
LESION_READ_NAME = "Image, removal, control and transplant all right"
BLUR_NAME = "All but the lesion blurred → diagnosis kept"


def audit_section(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Plot and table of `audit/metrics.json`; `sets`: those of each audit set; `blur`: whether there is its column."""
    models = metrics["models"]
    blur = any(BLUR_KEPT in values for values in models.values())
    names = list(dict.fromkeys(name for values in models.values() for name in values.get("sets", {})))
    sets = []
    for name in names:
        of_set = {role: values["sets"][name] for role, values in models.items() if name in values.get("sets", {})}
        rows = [
            [role, *_rate_cells(values), _score_cell(values), _cell(values, LESION_READ)]
            for role, values in of_set.items()
        ]
        sets.append({"name": name, "plot": interval_plot(_lines(of_set, RATE_NAMES)), "rows": rows})
    rows = []
    for role, values in models.items():
        drop = with_interval(values["spot_drop"], values["spot_drop_ci"], scale=1, unit=" points")
        cells = [
            *_rate_cells(values),
            *([_cell(values, BLUR_KEPT)] if blur else []),
            f"{drop}\nn = {values['spot_drop_n']}",
        ]
        rows.append([role, *cells, _score_cell(values), _cell(values, LESION_READ)])
    rates = RATE_NAMES | ({BLUR_KEPT: BLUR_NAME} if blur else {})
    return {"plot": interval_plot(_lines(models, rates)), "rows": rows, "sets": sets, "blur": BLUR_NAME if blur else ""}


def _lines(models: Mapping[str, Mapping[str, Any]], rates: Mapping[str, str]) -> dict[str, dict[str, Values]]:
    """The lines of a plot: those rates that a model has, and the causal score."""
    named = {
        name: label.replace("→ ", "→\n") + (" (lower is better)" if name in LOWER_IS_BETTER else "")
        for name, label in rates.items()
    }
    named["causal_score"] = "Causal score\n(mean of the four)"
    named[LESION_READ] = LESION_READ_NAME.replace(" control", "\ncontrol")
    return {
        label: {role: (values.get(name), values.get(f"{name}_ci")) for role, values in models.items()}
        for name, label in named.items()
        if any(name in values for values in models.values())
    }


def _cell(values: Mapping[str, Any], name: str) -> str:
    """A rate, its interval and the number of images; a dash where the kind was not asked."""
    if name not in values:
        return "–"
    return f"{with_interval(values[name], values[f'{name}_ci'])}\nn = {values[f'{name}_n']}"


def _rate_cells(values: Mapping[str, Any]) -> list[str]:
    """The four rates, and after the first what it is of the cases seen right before."""
    cells = [_cell(values, name) for name in RATES.values()]
    given = values.get("removal_normal_rate_given_correct")
    cells.insert(1, f"{percent(given)}\nn = {values.get('removal_normal_rate_given_correct_n', 0)}")
    return cells


def _score_cell(values: Mapping[str, Any]) -> str:
    return with_interval(values.get("causal_score"), values.get("causal_score_ci"))
