"""Model and cases of a benchmark: what the run has made, and a stand-in for what it has not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cogalign.data.caseset import METADATA
from cogalign.data.prepare import SETTINGS, prepare
from cogalign.grpo.stage import PairReader, open_cases, prepare_adapter, prepare_model
from cogalign.models.adapt import add_lora, train_all
from cogalign.models.load import LoadedModel, load_model
from cogalign.recipe import DataSettings, MixSettings, Recipe
from cogalign.training.context import StageContext
from cogalign.training.seeding import derive_seed
from cogalign.training.trainer import uses_gpu

SPARE_CASES = 2
"""Imported cases of each finding, over the prompts of a step: some go to other splits."""


def on_one_device(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe for a single process without tables of samples, and what is to be said of it."""
    notes = []
    asked, there = recipe.trainer.devices, torch.cuda.device_count() if uses_gpu(recipe.trainer) else 1
    if asked not in ("auto", 1, "1") or recipe.trainer.num_nodes > 1 or (asked == "auto" and there > 1):
        notes.append(f"one device does the work of all: {recipe.grpo.prompts_per_step} prompts a step")
    trainer = replace(recipe.trainer, devices=1, num_nodes=1, strategy="auto")
    return replace(recipe, trainer=trainer, tracking=replace(recipe.tracking, sample_every=0)), notes


def open_model(context: StageContext) -> tuple[LoadedModel, str]:
    """The run's SFT model, or the base model made trainable as stage 1 would, and which of them it is."""
    recipe = context.recipe
    try:
        checkpoint = context.checkpoint("sft")
    except FileNotFoundError:
        checkpoint = None
    if checkpoint is not None:
        return prepare_model(context), f"SFT model in {checkpoint}"
    loaded = load_model(recipe.model, device="cpu")
    loaded.model.requires_grad_(False)
    base, lora = f"base model {recipe.model.name}, not fine-tuned", recipe.sft.lora
    if lora is None:
        train_all(loaded, recipe.sft.freeze_vision, recipe.sft.freeze_projector)
        return loaded, f"{base}, full weights"
    add_lora(loaded, lora, derive_seed(recipe.seed, "lora"), recipe.sft.freeze_projector)
    prepare_adapter(loaded, recipe.grpo)
    return loaded, f"{base}, with a fresh adapter of rank {lora.r}"


@dataclass(frozen=True)
class FoundCases:
    """Cases for the steps; `recipe` has the mix that they allow."""

    recipe: Recipe
    cases: PairReader
    where: str
    mix: str
    notes: list[str]


def find_cases(recipe: Recipe, steps: int, work: Path) -> FoundCases:
    """The recipe's case set as the run has it, or a small one like it in `work`; counterfactuals if they are there."""
    notes: list[str] = []
    made = recipe.run_dir / "data"
    if recipe.data.case_set is None and not was_made_from(recipe.data, made):
        small = limited(recipe.data, recipe.grpo.prompts_per_step, steps)
        folder, own = prepare(small, work / "data"), False
        where = "made for this benchmark, few, as the recipe says"
    else:
        folder, own = (made if recipe.data.case_set is None else prepare(recipe.data, made)), True
        where = str(folder)
    recipe = replace(recipe, data=replace(recipe.data, case_set=str(folder), phantom=None, imports=None))
    context = StageContext(recipe, recipe.run_dir, "grpo")
    wanted = recipe.grpo.mix.interventions
    lacking = wanted
    if own and (context.counterfactual_dir / METADATA).is_file():
        pools = open_cases(context).pools()
        lacking = [part for part in wanted if not pools[part]]
    if lacking:
        notes.append(f"factual cases only: there are no counterfactuals of {', '.join(lacking)} for these cases")
        recipe = replace(recipe, grpo=replace(recipe.grpo, mix=MixSettings()))
    reader = open_cases(StageContext(recipe, recipe.run_dir, "grpo"))
    said = "as the recipe says" if not lacking else "factual"
    return FoundCases(recipe, reader, where, said, notes)


def was_made_from(settings: DataSettings, folder: Path) -> bool:
    """Whether the case set in `folder` is whole and was made from these settings (`prepared.json`)."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    asked = json.loads(json.dumps(asdict(settings)))
    same = isinstance(found, dict) and bool(found) and all(asked.get(name) == value for name, value in found.items())
    return same and (folder / METADATA).is_file()


def limited(data: DataSettings, prompts: int, steps: int) -> DataSettings:
    """The same data, no more than the steps need."""
    phantom, imports = data.phantom, data.imports
    if phantom is not None:
        phantom = replace(phantom, train=min(phantom.train, prompts * steps), validation=0, test=0)
    if imports is not None:
        most = SPARE_CASES * prompts
        imports = [replace(item, limit=min(item.limit or most, most)) for item in imports]
    return replace(data, phantom=phantom, imports=imports)
