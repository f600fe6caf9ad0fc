"""`report.html` of a run: one file that needs nothing else, made again from whatever stages have written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from cogalign import __version__
from cogalign.cognition.taxonomy import FINDINGS, name_of
from cogalign.data.caseset import METADATA, read_case_set
from cogalign.evaluation.audit_section import RATE_NAMES, audit_section
from cogalign.evaluation.cells import Values, percent, with_interval
from cogalign.evaluation.gallery import Pair, gallery
from cogalign.evaluation.metrics import confusion, per_finding, with_findings
from cogalign.evaluation.plots import CURVES, accuracy_plot, interval_plot, reward_plot
from cogalign.evaluation.storage import read_frame, read_json, rows_of
from cogalign.recipe import Recipe
from cogalign.training.atomic import write_text
from cogalign.training.context import StageContext
from cogalign.training.file_lock import LOCKS, locked

METRICS = {
    "accuracy": "Accuracy",
    "accuracy_single_label": "… one finding",
    "accuracy_multi_label": "… several findings",
    "macro_f1": "Macro F1",
    "location_accuracy": "Location",
    "cognition_recall": "Keywords found",
    "format_rate": "Format",
}
"""Metrics of the table of accuracy, and their headings."""
QUESTION_METRICS = {
    "question_accuracy": "Right answers",
    "question_choice_accuracy": "… multiple choice",
    "question_open_accuracy": "… open, same words",
    "question_f1": "Open, F1 of words",
}
"""Metrics of the table of questions, and their headings."""
TESTS = {"mcnemar_exact": "McNemar, exact", "sign_flip_permutation": "sign flips of groups"}
"""Tests of the paired comparison, and how the report calls them."""


def p_text(value: float) -> str:
    """A p-value as text."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def read_curves(folder: Path) -> pd.DataFrame | None:
    """Reward curves of the GRPO stage: all `metrics.csv` below `folder`, one row a step, a later file's row counts.

    Returns:
        Columns `step` and the numbers of `CURVES`, `reward` and `kl` that were logged; None when there is none.
    """
    frames = []
    for path in sorted(folder.rglob("metrics.csv"), key=lambda path: (path.stat().st_mtime_ns, str(path))):
        try:
            frame = pd.read_csv(path)
        except (pd.errors.EmptyDataError, pd.errors.ParserError):
            continue  # a run that was stopped before its first row was whole
        names = [name for name in ("reward", "kl", *CURVES) if name in frame]
        if "step" in frame and names:
            frames.append(frame[["step", *names]].apply(pd.to_numeric, errors="coerce").dropna(how="all", subset=names))
    if not frames:
        return None
    curves = pd.concat(frames, ignore_index=True).dropna(subset=["step"])
    # `last` takes the last value that is not missing, so that rows of one step that were logged apart come together.
    return curves.groupby("step", as_index=False).last() if len(curves) else None


def facts(recipe: Recipe) -> dict[str, str]:
    """What the run was, in a few lines."""
    data = recipe.data
    if data.phantom is not None:
        source = (
            f"phantoms, {data.phantom.size}² pixels, confounding {data.phantom.confounding:g}, seed {data.phantom.seed}"
        )
    elif data.imports:
        source = "photographs: " + ", ".join(dict.fromkeys(item.card for item in data.imports))
    else:
        source = f"case set {Path(data.case_set).name}" if data.case_set else "not stated"
    mix = recipe.grpo.mix
    shares = ", ".join(f"{name} {value:g}" for name, value in vars(mix).items() if value)
    return {
        "Model": recipe.model.name,
        "Data": source,
        "Stages": " → ".join(recipe.stages),
        "GRPO": f"{recipe.grpo.steps} steps, G = {recipe.grpo.num_generations}, prompts: {shares}",
        "Seed": str(recipe.seed),
        "Made by": f"cogalign {__version__}",
    }


def accuracy_section(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Plot and tables of `evaluate/metrics.json`; None if no split has a case with findings."""
    known = {
        role: {name: one for name, one in splits.items() if one["n"]} for role, splits in metrics["models"].items()
    }
    models = {role: splits for role, splits in known.items() if splits}
    if not models:
        return None
    rows = [
        [role, split, *(with_interval(values.get(name), values.get(f"{name}_ci")) for name in METRICS), values["n"]]
        for split in dict.fromkeys(split for splits in models.values() for split in splits)
        for role, splits in models.items()
        if (values := splits.get(split)) is not None
    ]
    comparisons = [
        [
            key.replace("_vs_", " against "),
            split,
            with_interval(one["difference"], one["difference_ci"], unit=" points"),
            one["only_second"],
            one["only_first"],
            p_text(one["p_value"]),
            TESTS[one["test"]],
        ]
        for key, splits in metrics.get("comparisons", {}).items()
        for split, one in splits.items()
    ]
    return {"plot": accuracy_plot(models), "rows": rows, "headings": list(METRICS.values()), "comparisons": comparisons}


def questions_section(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tables of the question cases of `evaluate/metrics.json`, one of them by category; None if there are none."""
    found = [
        (role, split, values)
        for role, splits in metrics["models"].items()
        for split, values in splits.items()
        if values.get("question_n")
    ]
    rows = [
        [
            role,
            split,
            *(with_interval(values[name], values[f"{name}_ci"]) for name in QUESTION_METRICS),
            values["question_n"],
        ]
        for role, split, values in found
    ]
    categories = [
        [role, split, name, with_interval(one["accuracy"], one["accuracy_ci"]), one["n"]]
        for role, split, values in found
        for name, one in values.get("question_categories", {}).items()
    ]
    return {"rows": rows, "headings": list(QUESTION_METRICS.values()), "categories": categories} if rows else None


def findings_section(predictions: pd.DataFrame, split: str) -> dict[str, Any]:
    """Recall of each finding by model and, for the last model, what was said of what, on one split."""
    frame = predictions[predictions["split"] == split]
    roles = list(dict.fromkeys(frame["model"]))
    lines: dict[str, dict[str, Values]] = {}
    for role in roles:
        for row in rows_of(per_finding(frame[frame["model"] == role])):
            label = f"{display(row.finding)} (n = {row.n})"
            lines.setdefault(label, {})[role] = (row.recall, (row.recall_low, row.recall_high))
    table = confusion(frame[frame["model"] == roles[-1]])
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    cells = [
        [
            display(name),
            [(n, share, said == name) for n, share, said in zip(counts, parts, table.columns, strict=True)],
        ]
        for name, counts, parts in zip(table.index, table.to_numpy().tolist(), shares.to_numpy().tolist(), strict=True)
    ]
    return {"split": split, "plot": interval_plot(lines, "recall"), "model": roles[-1], "rows": cells,
            "headings": [display(str(name)) for name in table]}  # fmt: skip


def display(finding: str) -> str:
    """Display name of a finding; a name that is none stays."""
    return name_of(finding) if finding in FINDINGS else finding


def tiles(evaluate: Mapping[str, Any] | None, audit: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The figures to see first: those of the last model, and how far the model before it was."""
    found: list[tuple[str, list[tuple[str, Any, Any]]]] = []
    if evaluate and evaluate["models"]:
        for split in list(evaluate["models"].values())[-1]:
            found.append((f"accuracy on {split}", [
                (role, splits[split]["accuracy"], splits[split]["accuracy_ci"])
                for role, splits in evaluate["models"].items() if split in splits
            ]))  # fmt: skip
    if audit and audit["models"]:
        for name, label in (("removal_normal_rate", "lesion removed → normal"), ("causal_score", "causal score")):
            found.append((label, [(role, v.get(name), v.get(f"{name}_ci")) for role, v in audit["models"].items()]))
    result = []
    for label, values in found:
        role, value, interval = values[-1]
        if value is None:
            continue
        before = f"{values[-2][0]}: {percent(values[-2][1])}" if len(values) > 1 else ""
        between = f"95% CI {100 * interval[0]:.1f} – {100 * interval[1]:.1f}" if interval else ""
        result.append({"label": label, "model": role, "value": percent(value), "interval": between, "before": before})
    return result


def _gallery(context: StageContext) -> list[Pair]:
    predictions = context.run_dir / "audit" / "predictions.parquet"
    folders = (context.case_set_dir, context.counterfactual_dir)
    if not predictions.exists() or not all((folder / METADATA).exists() for folder in folders):
        return []
    sets = {item.name: Path(item.pairs) for item in context.recipe.audit.sets}
    there = {name: read_case_set(folder) for name, folder in sets.items() if (folder / METADATA).exists()}
    return gallery(read_frame(predictions), read_case_set(folders[0]), read_case_set(folders[1]), sets=there)


def render(context: StageContext) -> str:
    """The report as HTML, from what lies in the run folder; a part whose stage has not run says so."""
    run_dir = context.run_dir
    paths = {stage: run_dir / stage / "metrics.json" for stage in ("evaluate", "audit")}
    metrics = {stage: read_json(path) if path.exists() else None for stage, path in paths.items()}
    evaluate, audit = metrics["evaluate"], metrics["audit"]
    predictions_path = run_dir / "evaluate" / "predictions.parquet"
    predictions = with_findings(read_frame(predictions_path)) if evaluate and predictions_path.exists() else None
    curves = read_curves(run_dir / "grpo")
    has_audit = bool(audit and audit["models"])
    environment = Environment(
        loader=PackageLoader("cogalign.evaluation", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        title=context.recipe.name,
        facts=facts(context.recipe),
        tiles=tiles(evaluate, audit),
        accuracy=accuracy_section(evaluate) if evaluate and evaluate["models"] else None,
        questions=questions_section(evaluate) if evaluate else None,
        audit=audit_section(audit) if audit and has_audit else None,
        rate_names=RATE_NAMES,
        findings=[findings_section(predictions, split) for split in predictions["split"].unique()]
        if predictions is not None
        else [],
        curves=reward_plot(curves) if curves is not None else None,
        pairs=_gallery(context) if has_audit else [],
        audit_split=context.recipe.audit.split,
        phantom=context.recipe.data.phantom is not None,
        notes=[note for part in metrics.values() if part for note in part.get("notes", [])],
    )


def write_report(context: StageContext) -> Path:
    """Write `report.html` in the run folder (by rename) and return its path."""
    path = context.run_dir / "report.html"
    # `evaluate` and `audit` may run at the same time: whoever writes last has read what the other wrote before.
    with locked(context.run_dir / LOCKS / "report"):
        write_text(path, render(context))
    return path
