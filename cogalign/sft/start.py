"""Stage 1 that goes on from a checkpoint: its adapter, or all its weights, are trained further."""

from __future__ import annotations

from pathlib import Path

from cogalign.models.adapt import POLICY, set_trainable, train_all
from cogalign.models.load import LoadedModel, load_model
from cogalign.recipe import ModelSettings, SftSettings
from cogalign.sft.given import check_weights
from cogalign.training.given import given_checkpoint, is_adapter

KEY = "sft.start"


def open_start(model: ModelSettings, settings: SftSettings) -> LoadedModel:
    """The model of `sft.start` with what the recipe trains of it.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: it is damaged, of another model, or of another form than the recipe's; names the settings that fit.
    """
    folder = given_checkpoint(KEY, str(settings.start))
    _check_form(folder, settings)
    loaded = load_model(model, folder, device="cpu")
    check_weights(KEY, folder, loaded, model)
    loaded.model.requires_grad_(False)
    if settings.lora is None:
        return train_all(loaded, settings.freeze_vision, settings.freeze_projector)
    _check_adapter(folder, loaded, settings)
    set_trainable(loaded, settings.freeze_projector)
    return loaded


def _check_form(folder: Path, settings: SftSettings) -> None:
    """Raise where the checkpoint is an adapter and the recipe trains all weights, or the other way round."""
    if is_adapter(folder) and settings.lora is None:
        raise ValueError(f"{KEY}: {folder} is an adapter, but sft.lora is null; wanted sft.lora with its r and alpha")
    if not is_adapter(folder) and settings.lora is not None:
        raise ValueError(
            f"{KEY}: {folder} is a whole model, but sft.lora is set; set sft.lora to null to train its weights further, "
            "or model.name to this folder to train an adapter on it"
        )


def _check_adapter(folder: Path, loaded: LoadedModel, settings: SftSettings) -> None:
    """Raise where the adapter is not as the recipe would make it."""
    config, lora = loaded.model.peft_config[POLICY], settings.lora
    assert lora is not None
    found = {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
    wanted = {"r": lora.r, "alpha": lora.alpha, "dropout": lora.dropout}
    for name, value in found.items():
        if value != wanted[name]:
            raise ValueError(f"{KEY}: the adapter {folder} has {name} {value}, but sft.lora.{name} is {wanted[name]}; "
                             f"set sft.lora.{name} to {value}")  # fmt: skip
    if not settings.freeze_projector and not config.modules_to_save:
        raise ValueError(
            f"{KEY}: the adapter {folder} holds no projector, but sft.freeze_projector is false; set it to true, or start "
            "from an adapter that was trained with false"
        )
