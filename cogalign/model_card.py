"""The model card of an export: recipe, data, metrics and limits, rendered from `model_card.md.j2`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cogalign import __version__
from cogalign.recipe import Recipe
from cogalign.training.context import StageContext

ACCURACY = ("accuracy", "accuracy_multi_label", "macro_f1", "cognition_recall", "format_rate", "n")
AUDIT = (
    "removal_normal_rate", "control_keep_rate", "transplant_keep_rate", "background_flip_rate", "lesion_read_rate",
    "causal_score", "spot_drop",
)  # fmt: skip


def render_card(context: StageContext, check: Mapping[str, Any], parameters: int, dtype: str) -> str:
    """The text of the export's `README.md`.

    Args:
        context: The stage; data are read from the case set, metrics from the run's finished stages.
        check: `max_abs_difference` and `mean_abs_difference` of the reloaded export.
        parameters: Number of weights.
        dtype: Their type.
    """
    recipe = context.recipe
    name = recipe.model.name
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    is_tiny = name.startswith("tiny")
    is_folder = not is_tiny and Path(name).expanduser().is_dir()
    return environment.get_template("model_card.md.j2").render(
        name=recipe.name,
        version=__version__,
        role=recipe.export.model,
        base_model="the tiny base of cogalign" if is_tiny else Path(name).name if is_folder else name,
        base_model_id=None if is_tiny or is_folder else name,
        # The weights are a derived work: only for those that are known is the licence.
        licence="apache-2.0" if is_tiny or name.startswith("Qwen/Qwen3-VL") else "other",
        method=list(_method(recipe)),
        data=_data(context.case_set_dir / "metadata.jsonl"),
        phantom=recipe.data.phantom is not None,
        metrics=_metric_tables(context.run_dir),
        check=check,
        parameters=parameters,
        dtype=dtype,
        question=recipe.data.question,
        max_new_tokens=recipe.grpo.max_completion_length,
    )


def _method(recipe: Recipe) -> Iterator[str]:
    """One line for each stage that made the exported model."""
    role = recipe.export.model
    if role == "base":
        yield "Nothing: this is the base model."
        return
    sft = recipe.sft
    kind = f"LoRA of rank {sft.lora.r} (alpha {sft.lora.alpha})" if sft.lora else "all weights that are not frozen"
    yield (
        f"Supervised fine-tuning on reports: {sft.steps} steps of {sft.batch_size * sft.accumulate} samples a device, "
        f"learning rate {sft.learning_rate:g}, {kind}."
    )
    if role == "aligned":
        grpo, counterfactual = recipe.grpo, recipe.counterfactual
        yield f"Counterfactuals: {', '.join(counterfactual.interventions)}; fill {counterfactual.fill}."
        yield (
            f"GRPO: {grpo.steps} steps of {grpo.prompts_per_step} prompts with {grpo.num_generations} completions, "
            f"shares {grpo.mix}; learning rate {grpo.learning_rate:g}, beta {grpo.beta:g}; rewards for format, cognition "
            f"and diagnosis with the weights {grpo.reward_weights.format:g}, {grpo.reward_weights.cognition:g}, "
            f"{grpo.reward_weights.diagnosis:g}."
        )
    yield f"Seed {recipe.seed}."


def _data(metadata: Path) -> list[dict[str, Any]]:
    """Number of cases for each data set, split and licence; empty when the case set is not there."""
    if not metadata.is_file():
        return []
    counts: Counter[tuple[str, str, str]] = Counter()
    with open(metadata, encoding="utf-8") as lines:
        for row in map(json.loads, filter(str.strip, lines)):
            counts[(row.get("dataset") or "not named", row["split"], row.get("licence") or "not stated")] += 1
    return [
        {"dataset": dataset, "split": split, "licence": licence, "cases": cases}
        for (dataset, split, licence), cases in sorted(counts.items())
    ]


def _metric_tables(run_dir: Path) -> list[dict[str, Any]]:
    """Tables of accuracy and of the audit for all models of the run that were judged."""
    tables = []
    accuracy = [
        [role, split, *(_figure(metrics, name) for name in ACCURACY)]
        for role, splits in _models(run_dir, "evaluate").items()
        for split, metrics in splits.items()
    ]
    if accuracy:
        tables.append({"title": "Accuracy", "columns": ["model", "split", *ACCURACY], "rows": accuracy})
    audit = [[role, *(_figure(rates, name) for name in AUDIT)] for role, rates in _models(run_dir, "audit").items()]
    if audit:
        tables.append({"title": "Causal audit", "columns": ["model", *AUDIT], "rows": audit})
    return tables


def _models(run_dir: Path, stage: str) -> dict[str, Any]:
    """A finished stage's metrics by model; empty when it has not run."""
    path = run_dir / stage / "stage.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    finished = content.get("status") == "finished"
    models: dict[str, Any] = content.get("metrics", {}).get("models", {}) if finished else {}
    return models


def _figure(metrics: Mapping[str, Any], name: str) -> str:
    """A figure with its interval as text; a dash when it is not known."""
    value, interval = metrics.get(name), metrics.get(f"{name}_ci")
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    bounds = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval and None not in interval else ""
    return f"{value:.3f}{bounds}"
