"""What a stage depends on, as one digest: its settings, the model, the seed, and the digests of the stages it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cogalign.recipe import STAGES, MixSettings, Recipe
from cogalign.training.context import STAGE_OF_ROLE
from cogalign.training.file_digest import sha256_of
from cogalign.training.given import checkpoint_digest, given_checkpoint
from cogalign.training.stage_file import digest_of, read_stage_file

DATA = "data"
SEGMENTER = "segmenter"
WITHOUT_EFFECT = ("checkpoint_every", "workers", "quality.batch_size", "cache_gb",
                  *(f"masks.grounding.{name}" for name in ("api_key_env", "concurrency", "timeout", "retries")),
                  # where the server runs; with `cogalign submit` its address changes with every restart
                  *(f"vllm.{name}" for name in ("url", "python", "port", "start_timeout", "request_timeout", "retries")))  # fmt: skip
"""Settings that do not change a result, and so are in no digest."""
AFTERWARDS = {
    "segmenter": ("worst", "bootstrap"),
    "counterfactual": ("gallery", "quality"),
}
"""Settings that come in after a stage's long work: with another value it runs again where that work lies."""
OF_MODEL = ("sft", "grpo", "evaluate", "audit", "export")
"""Stages that depend on the model and on the run's seed."""


def inputs_of(recipe: Recipe, stage: str) -> list[str]:
    """Stages whose results a stage reads; `?` at the end marks one that it can do without."""
    if stage in (DATA,):
        return []
    if stage == "counterfactual":
        own = recipe.counterfactual.masks.segmenter == "run" and recipe.counterfactual.pairs is None
        return [DATA, *([SEGMENTER] if own else [])]
    if stage == SEGMENTER:
        return [DATA]
    if stage == "sft":
        settings = recipe.sft
        return [] if settings.checkpoint is not None else [DATA, *_pairs_of(settings.mix)]
    if stage == "grpo":
        return [DATA, "sft", *_pairs_of(recipe.grpo.mix)]
    if stage == "export":
        return [STAGE_OF_ROLE[recipe.export.model]] if recipe.export.model != "base" else []
    roles = recipe.evaluate.models if stage == "evaluate" else recipe.audit.models
    models = [f"{STAGE_OF_ROLE[role]}?" for role in roles if role != "base"]
    return [DATA, *(["counterfactual"] if stage == "audit" else []), *models]


def _pairs_of(mix: MixSettings) -> list[str]:
    """The stage that makes the counterfactuals, if a mix has any."""
    return ["counterfactual"] if mix.interventions else []


def made_before(recipe: Recipe) -> list[str]:
    """Stages that only check what was made before, elsewhere: they run when another stage needs them, nobody has to ask."""
    found = {"sft": recipe.sft.checkpoint, "counterfactual": recipe.counterfactual.pairs}
    return [stage for stage, folder in found.items() if folder is not None]


def in_order(recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """Stages in the order in which they run: the usual one, but that each comes after those whose results it reads."""
    found: list[str] = []
    for stage in sorted(stages, key=STAGES.index):
        before = {name.rstrip("?") for name in inputs_of(recipe, stage)}
        found += [name for name in STAGES if name in stages and name in before and name not in found]
        found += [stage] if stage not in found else []
    return found


def stage_digest(recipe: Recipe, stage: str, work_only: bool = False) -> str:
    """Digest of all that a stage's results depend on; input stages are taken as they lie in the run folder.

    Args:
        recipe: the resolved recipe.
        stage: name of the stage.
        work_only: leave out the settings that come in after the stage's long work.

    Raises:
        FileNotFoundError: an input stage has not finished; the message names the command that runs it. Or a checkpoint
            or pairs that the recipe names are not there.
    """
    run_dir = recipe.run_dir
    inputs: dict[str, str] = {}
    for name in inputs_of(recipe, stage):
        needed, name = not name.endswith("?"), name.rstrip("?")
        found = read_stage_file(run_dir / name)
        if found is not None and found.status == "finished":
            inputs[name] = found.digest
        elif needed:
            command = "prepare" if name == DATA else name
            raise FileNotFoundError(
                f"{stage} needs the results of {name}, which is not finished in {run_dir}; "
                f"run `cogalign {command} RECIPE` first, or `cogalign run RECIPE`"
            )
    settings = asdict(getattr(recipe, stage))
    for name in (*WITHOUT_EFFECT, *(AFTERWARDS.get(stage, ()) if work_only else ())):
        _drop(settings, name)
    if stage == "sft":
        settings = _of_sft(recipe, settings)
    whole: dict[str, Any] = {"stage": stage, "settings": settings}
    if stage == SEGMENTER:
        whole |= {"seed": recipe.seed}
    if stage == "counterfactual":
        whole |= _of_pairs(recipe)
    if stage == "audit" and recipe.audit.sets:
        from cogalign.data.prepare import case_set_digest

        whole["sets"] = {item.name: case_set_digest(item.pairs) for item in recipe.audit.sets}
    if stage in OF_MODEL:
        whole |= {"model": asdict(recipe.model), "seed": recipe.seed, "question": recipe.data.question}
    if stage == DATA and recipe.data.case_set is not None:
        from cogalign.data.prepare import case_set_digest

        whole["case_set"] = case_set_digest(recipe.data.case_set)
    if stage == DATA and recipe.data.imports:
        from cogalign.data.cards.digest import cards_digest

        whole["cards"] = cards_digest(recipe.data.imports)
    return digest_of(whole, inputs)


def _drop(settings: dict[str, Any], key: str) -> None:
    """Remove a dotted key, if it is there."""
    *sections, name = key.split(".")
    for section in sections:
        settings = settings.get(section, {})
    settings.pop(name, None)


def _of_sft(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of stage 1 with checkpoints made before by their content, not their place.

    Where one takes the place of the training, nothing but what stage 3 trains of it is left of the other settings.
    """
    found = dict(settings)
    for name in ("checkpoint", "start"):
        folder = getattr(recipe.sft, name)
        if folder is not None:
            found[name] = checkpoint_digest(given_checkpoint(f"sft.{name}", folder))
    if recipe.sft.checkpoint is None:
        return found
    return {name: found[name] for name in ("checkpoint", "freeze_vision", "freeze_projector")}


def _of_pairs(recipe: Recipe) -> dict[str, Any]:
    """What the pairs depend on beside the case set: a segmenter in a folder, the recipe's own model, pairs made before."""
    masks = recipe.counterfactual.masks
    found: dict[str, Any] = {}
    if recipe.counterfactual.pairs is not None:
        from cogalign.data.prepare import case_set_digest

        return {"pairs": case_set_digest(recipe.counterfactual.pairs)}
    if masks.segmenter not in (None, "run"):
        folder = Path(str(masks.segmenter)).expanduser()
        files = [folder / name for name in ("config.json", "model.safetensors")]
        found["segmenter"] = [sha256_of(path) for path in files if path.is_file()]
    if "grounding" in masks.evidence and masks.grounding.url is None:
        found |= {"model": asdict(recipe.model)}
    return found


def is_finished(recipe: Recipe, stage: str) -> bool:
    """Whether a stage has finished with these settings and inputs.

    Raises:
        FileNotFoundError: an input stage has not finished.
    """
    found = read_stage_file(recipe.run_dir / stage)
    return found is not None and found.status == "finished" and found.digest == stage_digest(recipe, stage)


def digest_if_ready(recipe: Recipe, stage: str) -> str | None:
    """The stage's digest, or None while its inputs are not finished."""
    try:
        return stage_digest(recipe, stage)
    except FileNotFoundError:
        return None


def seeds_of(recipe: Recipe, stage: str) -> dict[str, int]:
    """The seeds that a stage uses."""
    if stage == DATA:
        phantom = recipe.data.phantom
        return {"phantom": phantom.seed} if phantom is not None else {"split": recipe.data.seed}
    if stage == "counterfactual":
        return {"counterfactual": recipe.counterfactual.seed}
    return {"run": recipe.seed}
