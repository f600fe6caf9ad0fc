"""Make a model trainable: LoRA on the language model, or full weights with vision and projector frozen or not.

The policy is the adapter `default` (PEFT's name); the reference of GRPO is a frozen copy of it, the
adapter `reference`, on the same base weights.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cogalign.models.load import LoadedModel
from cogalign.models.whole_parts import copy_whole, make_wide, trained_whole
from cogalign.recipe import LoraSettings
from cogalign.training.full_state import full_state
from cogalign.training.ranks import by_first

POLICY, REFERENCE = "default", "reference"


def add_lora(loaded: LoadedModel, lora: LoraSettings, seed: int, freeze_projector: bool = True) -> LoadedModel:
    """The model with a fresh adapter on all linear layers of its language model; all else is frozen.

    A projector that is not frozen is trained whole beside it, in float32, and saved with it (PEFT's `modules_to_save`).

    Raises:
        ValueError: the projector is to be trained, and the model has none by the family's names.
    """
    from peft import LoraConfig, get_peft_model

    projector = [] if freeze_projector else loaded.family.projector_paths(loaded.model)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=loaded.family.lora_targets(loaded.model),
        modules_to_save=projector or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loaded.model = get_peft_model(loaded.model, config, autocast_adapter_dtype=True)
    make_wide(loaded.model)
    return loaded


def keep_frozen_in_eval(loaded: LoadedModel, freeze_vision: bool) -> None:
    """Training mode, but for a vision encoder that is not trained: else its batch norm would drift."""
    loaded.model.train()
    if not freeze_vision:
        return
    for name, part in loaded.core.named_modules():
        if loaded.family.is_vision(name):
            part.eval()


def train_all(loaded: LoadedModel, freeze_vision: bool, freeze_projector: bool) -> LoadedModel:
    """Make all weights trainable, in float32, but the vision encoder's and the projector's, as asked."""
    family = loaded.family
    for name, parameter in loaded.model.named_parameters():
        frozen = (freeze_vision and family.is_vision(name)) or (freeze_projector and family.is_projector(name))
        parameter.requires_grad_(not frozen)
        if not frozen and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()  # small steps would be lost in the rounding of a short type
    return loaded


def set_trainable(loaded: LoadedModel, freeze_projector: bool = True) -> None:
    """Make the low-rank matrices of an opened checkpoint's adapter trainable, and nothing else unless told so.

    Args:
        loaded: the model, with its adapter.
        freeze_projector: keep a projector that the adapter holds as it is.
    """
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(f".{POLICY}." in name and "lora_" in name)
    for part in trained_whole(loaded.model):
        part.requires_grad_(not freeze_projector)


def parameter_groups(loaded: LoadedModel, rate: float, projector_rate: float | None) -> list[dict[str, Any]]:
    """What is trained, as groups of an optimizer: the projector by itself, if it has a learning rate of its own.

    Args:
        loaded: the model; what requires a gradient is trained.
        rate: learning rate.
        projector_rate: that of the projector; None: the same.

    Raises:
        ValueError: the projector has a learning rate and is not trained.
    """
    trained = {name: part for name, part in loaded.core.named_parameters() if part.requires_grad}
    if projector_rate is None:
        return [{"params": list(trained.values()), "lr": rate}]
    projector = [part for name, part in trained.items() if loaded.family.is_projector(name)]
    if not projector:
        raise ValueError(
            f"projector_learning_rate: found {projector_rate:g}, but the projector is not trained; set it to null, or "
            "freeze_projector to false"
        )
    rest = [part for name, part in trained.items() if not loaded.family.is_projector(name)]
    return [{"params": rest, "lr": rate}, {"params": projector, "lr": projector_rate}]


class Reference:
    """The frozen model that GRPO's KL divergence is taken from.

    With an adapter it is a frozen copy of the adapter on the same base weights; with full weights a
    frozen copy of the model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._copy: nn.Module | None = None
        if hasattr(loaded.model, "peft_config"):
            model = loaded.model
            self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            model.add_adapter(REFERENCE, copy.deepcopy(model.peft_config[POLICY]))
            copy_whole(model, POLICY, REFERENCE)
            _copy_adapter(model)
            self._back()
        else:
            self._copy = copy.deepcopy(loaded.model).eval().requires_grad_(False)

    @property
    def copies(self) -> tuple[Any, ...]:
        """The frozen copy of the whole model, where there is one."""
        return () if self._copy is None else (self._copy,)

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The reference model, without gradient, inside the block."""
        with torch.no_grad():
            if self._copy is not None:
                _follow(self._copy, self._loaded.model)
                yield self._copy
                return
            model = self._loaded.model
            model.base_model.set_adapter(REFERENCE)
            try:
                yield model
            finally:
                self._back()

    def _back(self) -> None:
        """Put the policy back, with what is trained of it: PEFT makes trainable what it switches to."""
        model = self._loaded.model
        model.base_model.set_adapter(POLICY)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trained)


def _follow(copied: nn.Module, model: nn.Module) -> None:
    """Bring a copy to the device and the types of its original, weight by weight and buffer by buffer.

    It is not a part of the LightningModule, so nobody else does; and a model has more than one type.
    """
    for mine, theirs in zip(
        (*copied.parameters(), *copied.buffers()), (*model.parameters(), *model.buffers()), strict=True
    ):
        if (mine.device, mine.dtype) != (theirs.device, theirs.dtype):
            mine.data = mine.data.to(theirs.device, theirs.dtype)


def _copy_adapter(model: nn.Module) -> None:
    """Copy the weights of the adapter `default` into the adapter `reference`."""
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in state.items():
            if f".{REFERENCE}." in name or name.endswith(f".{REFERENCE}"):
                parameter.copy_(state[name.replace(f".{REFERENCE}", f".{POLICY}")])
                parameter.requires_grad_(False)


def save_checkpoint(loaded: LoadedModel, folder: Path) -> Path:
    """Write the adapter (PEFT's format) to `folder/adapter`, or the full model to `folder/model`, by rename.

    All ranks call it: weights that are shared out are gathered. The first one writes, and the others wait for it.

    Raises (on all ranks):
        OSError: it could not be written.
    """
    is_adapter = hasattr(loaded.model, "peft_config")
    final = folder / ("adapter" if is_adapter else "model")
    weights = full_state(loaded.model, ("lora_", ".modules_to_save.") if is_adapter else ())
    by_first(lambda: _write(loaded, weights, final, is_adapter))
    return final


def _write(loaded: LoadedModel, weights: dict[str, Tensor] | None, final: Path, is_adapter: bool) -> None:
    """Write an adapter or a model with the given weights (None: its own)."""
    temporary = final.with_name(f".{final.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    given: dict[str, Any] = {} if weights is None else {"state_dict": weights}
    if is_adapter:
        loaded.model.save_pretrained(str(temporary), selected_adapters=[POLICY], safe_serialization=True, **given)
    else:
        loaded.model.save_pretrained(str(temporary), **given)
        loaded.processor.save_pretrained(str(temporary))
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
