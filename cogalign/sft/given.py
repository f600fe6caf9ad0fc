"""Checkpoints of stage 1 made before, opened and checked; with `sft.checkpoint` nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogalign.models.adapt import POLICY
from cogalign.models.load import LoadedModel, load_model, resolve_name
from cogalign.recipe import ModelSettings, Recipe
from cogalign.training.given import checkpoint_digest, given_checkpoint, is_adapter
from cogalign.training.progress import say
from cogalign.training.stage_file import read_stage_file

KEY = "sft.checkpoint"


def check_given(recipe: Recipe) -> dict[str, Any]:
    """Check the checkpoint that the recipe names, and tell where it is from.

    Returns:
        what `origin_of` tells, and `trained_parameters` (of an adapter) or `parameters` (of a model).

    Raises:
        FileNotFoundError: it is not there, or has no weights.
        ValueError: it is damaged, not finite, or of another model than `model.name`.
    """
    folder = given_checkpoint(KEY, str(recipe.sft.checkpoint))
    origin = origin_of(folder)
    numbers = check_weights(KEY, folder, load_model(recipe.model, folder, device="cpu"), recipe.model)
    say(f"sft: {origin['kind']} {folder} was made before and is used as it is; nothing is trained")
    return {**origin, "trained_parameters" if is_adapter(folder) else "parameters": numbers}


def origin_of(folder: Path) -> dict[str, Any]:
    """Where a checkpoint is from.

    Returns:
        `checkpoint` (its folder), `kind` (`adapter` or `model`), `sha256` (of its weights and config), and, where the
        `stage.json` beside it tells, `made_by`: `stage`, `digest`, `seeds`, `versions`, `steps`, `loss`.
    """
    kind = "adapter" if is_adapter(folder) else "model"
    found: dict[str, Any] = {"checkpoint": str(folder.resolve()), "kind": kind, "sha256": checkpoint_digest(folder)}
    record = read_stage_file(folder.parent)
    if record is None or record.status != "finished":
        return found
    told = {name: record.metrics[name] for name in ("steps", "loss") if name in record.metrics}
    made = {name: getattr(record, name) for name in ("stage", "digest", "seeds", "versions")}
    return {**found, "made_by": {**made, **told}}


def check_weights(key: str, folder: Path, loaded: LoadedModel, model: ModelSettings) -> int:
    """The numbers that a checkpoint holds.

    Args:
        key: the recipe's key that names it, for messages.
        folder: the checkpoint.
        loaded: the model opened from it.
        model: the recipe's model.

    Raises:
        ValueError: it is damaged, not finite, or of another model.
    """
    weights = _of_adapter(key, folder, loaded) if is_adapter(folder) else _of_model(key, folder, loaded, model)
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{key}: {folder}: the weight {name!r} is not finite; wanted a checkpoint of a sound training"
            )
    return sum(value.numel() for value in weights.values())


def _of_adapter(key: str, folder: Path, loaded: LoadedModel) -> Mapping[str, Tensor]:
    """The weights in an adapter's folder.

    PEFT leaves weights that fit nowhere aside, and fills those that are missing with the start of a training.

    Raises:
        ValueError: they are not those that this model's adapter has.
    """
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    given: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    wanted = get_peft_model_state_dict(loaded.model, adapter_name=POLICY)
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unknown:
        parts = [f"{len(names)} {what}, first {names[0]!r}"
                 for names, what in ((missing, "are missing"), (unknown, "fit nowhere")) if names]  # fmt: skip
        raise ValueError(
            f"{key}: of the weights of {folder}, {' and '.join(parts)}; wanted the {len(wanted)} of an adapter on "
            f"{type(loaded.core).__name__}: it is damaged, or was trained on another model than model.name"
        )
    return given


def _of_model(key: str, folder: Path, loaded: LoadedModel, model: ModelSettings) -> Mapping[str, Tensor]:
    """The weights of a whole model.

    Raises:
        ValueError: it is of another type than the recipe's.
    """
    from transformers import AutoConfig

    found = loaded.core.config.model_type
    base = resolve_name("tiny" if model.name == "tiny-random" else model.name)
    wanted = AutoConfig.from_pretrained(base, revision=model.revision).model_type
    if found != wanted:
        raise ValueError(
            f"{key}: {folder} is a model of type {found!r}, wanted {wanted!r} as model.name ({model.name}) is"
        )
    return dict(loaded.model.named_parameters())
