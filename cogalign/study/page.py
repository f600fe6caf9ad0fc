"""The results as a page and as Markdown, from the content of `study.json`; the page is one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from cogalign.evaluation.plots import svg
from cogalign.evaluation.report import p_text
from cogalign.study.measures import OWN, SCORE
from cogalign.study.pictures import pictures
from cogalign.study.plots import curves, forest
from cogalign.study.runs import ArmRun, read_curves
from cogalign.study.settings import StudySettings
from cogalign.training.progress import format_seconds

Result = Mapping[str, Any]
HEADLINE = ("accuracy", "originals_kept", "polyp_recall", "normal_recall", "removal_normal_rate", "control_keep_rate",
            "transplant_keep_rate", "background_blur_keep_rate", SCORE)  # fmt: skip
"""Names of the measures of the first plot; of pairs those of the audit sets where there are such."""
TABLE_HEAD = (
    "Difference",
    "95% CI",
    "p",
    "p (Holm)",
    "Each seed: difference, only the first / only the second, McNemar p",
)


def titles(result: Result) -> dict[str, str]:
    """Arm → its title, for the arms that have results."""
    known = {arm for arms in result["table"].values() for arm in arms}
    return {arm: one["title"] for arm, one in result["arms"].items() if arm in known}


def number(value: float | None, points: bool = False) -> str:
    """A share as per cent, or a difference in points; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}" + ("" if points else "%")


def interval(bounds: Sequence[float]) -> str:
    """An interval of shares, in per cent or points."""
    return f"{100 * bounds[0]:.1f} – {100 * bounds[1]:.1f}"


def sections(result: Result) -> dict[str, list[str]]:
    """Heading → keys of its measures."""
    found: dict[str, list[str]] = {}
    for key, one in result["measures"].items():
        if key not in result["table"]:
            continue
        if not one["audit"]:
            heading = "Accuracy"
        else:
            heading = "Causal audit" if one["where"] == OWN else f"Causal audit: {one['where']}"
        found.setdefault(heading, []).append(key)
    return found


def headline(result: Result) -> list[str]:
    """Keys of the measures that say most, the primary one first; where an audit set has a rate, it stands for the own pairs'."""
    chosen = [result["primary"]] if result["primary"] in result["table"] else []
    for name in HEADLINE:
        keys = [key for key, one in result["measures"].items() if one["name"] == name and key in result["table"]]
        foreign = [key for key in keys if result["measures"][key]["audit"] and result["measures"][key]["where"] != OWN]
        chosen += foreign or keys
    return list(dict.fromkeys(chosen))


def plot(result: Result, keys: Sequence[str]) -> Figure:
    """A panel for each measure."""
    panels = []
    for key in keys:
        one = result["measures"][key]
        text = (
            one["title"]
            + (", points" if one["points"] else "")
            + (" (lower is better)" if one["lower_is_better"] else "")
        )
        panels.append((_wrapped(text), result["table"][key], one["points"], f"n = {_count(result, key)}"))
    return forest(panels, titles(result))


def headline_plot(result: Result) -> Figure:
    """The plot of `headline`."""
    return plot(result, headline(result))


def _wrapped(text: str, width: int = 34) -> str:
    """The text in two lines, so that panels of one row start at one height."""
    if len(text) <= width or " " not in text:
        return text
    cut = text.rfind(" ", 0, width + 1)
    return f"{text[:cut]}\n{text[cut + 1 :]}"


def cells(result: Result, key: str) -> list[dict[str, str]]:
    """What the table shows of a measure, an arm each."""
    points, row = result["measures"][key]["points"], result["table"][key]
    found = []
    for arm in titles(result):
        one = row.get(arm)
        seeds = list(one["seeds"].values()) if one else []
        found.append(
            {"value": number(one["value"] if one else None, points), "ci": interval(one["ci"]) if one else "",
             "seeds": " · ".join(number(value, points) for value in seeds) if len(seeds) > 1 else ""}
        )  # fmt: skip
    return found


def tested(result: Result, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Comparisons as text, by pair of arms: `pair` and `rows` of a label and the cells of `TABLE_HEAD`."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        first, second = (result["arms"][row[name]]["title"] for name in ("arm", "against"))
        pair = found.setdefault(f"{first} against {second}", {"pair": f"{first} against {second}", "rows": []})
        one = result["measures"][row["measure"]]
        label = one["title"] + (" (lower is better)" if one["lower_is_better"] else "")
        low, high = row["ci"]
        seeds = []
        for name, part in row["seeds"].items():
            text = f"{name}: {100 * part['difference']:+.1f}"
            if "only_arm" in part:
                text += f", {part['only_arm']} / {part['only_against']}, {p_text(part['p_mcnemar'])}"
            seeds.append(text)
        pair["rows"].append(
            [label, f"{100 * row['difference']:+.1f}", f"{100 * low:+.1f} – {100 * high:+.1f}", p_text(row["p"]),
             p_text(row["p_holm"]), "\n".join(seeds)]
        )  # fmt: skip
    return list(found.values())


def primary(result: Result) -> list[list[str]]:
    """The tests of the primary measure as text: the pair, then the cells of `TABLE_HEAD`; those of the study's pairs first."""
    both = [
        row for name in ("comparisons", "differences") for row in result[name] if row["measure"] == result["primary"]
    ]
    return [[f"{part['pair']}", *part["rows"][0][1:]] for part in tested(result, both)]


def primary_title(result: Result) -> str:
    """The primary measure as the page calls it."""
    one = result["measures"].get(result["primary"])
    return one["title"] if one else result["primary"]


def arm_rows(result: Result) -> list[list[str]]:
    """What each arm is: title, stage, after which arm, optimizer steps and training time."""
    rows = []
    for arm, title in titles(result).items():
        one = result["arms"][arm]
        steps = list(dict.fromkeys("–" if value is None else str(value) for value in one["steps"].values()))
        after = result["arms"][one["after"]]["title"] if one["after"] else "the base model"
        time = "–" if one["mean_seconds"] is None else format_seconds(one["mean_seconds"])
        rows.append([title, one["trains"].upper(), after, ", ".join(steps), time, ", ".join(one["steps"])])
    return rows


ARM_HEAD = (
    "Arm",
    "Trains",
    "Starts from",
    "Optimizer steps, with those before",
    "Training time, with that before",
    "Seeds",
)


def markdown(result: Result) -> str:
    """`study.md`: the arms, a table for each section, and the comparisons."""
    names = list(titles(result).values())
    lines = [f"# {result['name']}", "", f"Seeds {', '.join(map(str, result['seeds']))}. In each cell the mean over seeds, the 95 % "
             "interval (groups of images resampled, all seeds together) and the value of each seed. Primary measure: "
             f"{primary_title(result)}. Holm corrects over the pairs of one measure, not over measures.", ""]  # fmt: skip
    lines += [f"- Missing: {line}" for line in result["missing"]] + [f"- Note: {line}" for line in result["notes"]]
    lines += ["", *_rows(ARM_HEAD, arm_rows(result))]
    decisive = primary(result)
    if decisive:
        lines += ["", f"## Primary measure: {primary_title(result)}", "", *_rows(("", *TABLE_HEAD), decisive)]
    for heading, keys in sections(result).items():
        body = [
            [_label(result, key), *(_joined(cell) for cell in cells(result, key)), _count(result, key)] for key in keys
        ]
        lines += ["", f"## {heading}", "", *_rows(("", *names, "Images"), body)]
    for heading, name in (("Arm against arm", "comparisons"), ("Against the reference", "differences")):
        for pair in tested(result, result[name]):
            lines += ["", f"## {heading}: {pair['pair']}", "", *_rows(("", *TABLE_HEAD), pair["rows"])]
    return "\n".join(lines) + "\n"


def _label(result: Result, key: str) -> str:
    one = result["measures"][key]
    text = one["label"] if one["audit"] else one["title"]
    return text + (" (lower is better)" if one["lower_is_better"] else "") + (", points" if one["points"] else "")


def _count(result: Result, key: str) -> str:
    """Number of images, and of groups where that is smaller, over the arms."""
    counts = {(one["n"], one["groups"]) for one in result["table"][key].values()}
    return " or ".join(
        dict.fromkeys(f"{n}" if n <= groups else f"{n} in {groups} groups" for n, groups in sorted(counts)[:2])
    )


def _joined(cell: Mapping[str, str]) -> str:
    return "<br>".join(text for text in (cell["value"], cell["ci"], cell["seeds"] and f"({cell['seeds']})") if text)


def _rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    clean = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in (head, *body)]
    return ["| " + " | ".join(row) + " |" for row in (clean[0], ["---"] * len(head), *clean[1:])]


def html(out: Path, settings: StudySettings, result: Result, runs: Sequence[ArmRun]) -> str:
    """`study.html`.

    Args:
        out: the study's folder, for the pictures.
        settings: the study.
        result: the content of `study.json`.
        runs: the judged runs, for the curves and the answers beside the pictures.
    """
    shown, known = titles(result), sections(result)
    seed = runs[0].seed
    said = {run.arm: run.predictions("audit") for run in runs if run.seed == seed}
    logged = {arm: [frame for run in runs if run.arm == arm
                    and (frame := read_curves(run, settings.arms[arm].trains)) is not None] for arm in shown}  # fmt: skip
    figure = curves(logged, shown)
    environment = Environment(
        loader=PackageLoader("cogalign.study", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("study.html.j2").render(
        result=result,
        reference=result["arms"][result["reference"]]["title"],
        arms=list(shown.values()),
        arm_head=ARM_HEAD,
        arm_rows=arm_rows(result),
        primary=primary(result),
        primary_title=primary_title(result),
        headline=svg(headline_plot(result)),
        sections=[_section(result, heading, keys) for heading, keys in known.items()],
        table_head=TABLE_HEAD,
        comparisons=tested(result, result["comparisons"]),
        differences=tested(result, result["differences"]),
        curves=svg(figure) if figure is not None else None,
        pairs=pictures(out, list(settings.sets), said, {arm: one.title for arm, one in settings.arms.items()}),
        picture_seed=seed,
    )


def _section(result: Result, heading: str, keys: Sequence[str]) -> dict[str, Any]:
    rows = [{"label": _label(result, key), "cells": cells(result, key), "n": _count(result, key)} for key in keys]
    return {"heading": heading, "rows": rows, "plot": svg(plot(result, keys))}
