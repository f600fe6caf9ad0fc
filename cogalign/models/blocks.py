"""Where the transformer blocks of a model are, and how they are made ready for training on many devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cogalign.models.checkpointing import as_trained, compile_block
from cogalign.models.load import LoadedModel
from cogalign.models.merged import never_fuse
from cogalign.recipe import TrainerSettings
from cogalign.training.progress import say
from cogalign.training.sharding import is_sharded, shard_blocks


def language_blocks(loaded: LoadedModel) -> list[nn.Module]:
    """The blocks of the language model, in order.

    Raises:
        ValueError: it holds no list of them.
    """
    text = loaded.family.text_model(loaded.core)
    found = _blocks(text)
    if not found:
        raise ValueError(
            f"{type(text).__name__}: no list of transformer blocks found in the language model; "
            "trainer.strategy fsdp2, trainer.activation_checkpointing and trainer.compile need one"
        )
    return found


def _blocks(part: nn.Module, without: Sequence[str] = ()) -> list[nn.Module]:
    """The list of modules in `part` with the most parameters, but for those with a name of `without` in their path."""
    lists = [
        (sum(p.numel() for p in module.parameters()), module)
        for name, module in part.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not set(name.split(".")) & set(without)
    ]
    return list(max(lists, key=lambda pair: pair[0])[1]) if lists else []


def trained_encoders(loaded: LoadedModel) -> list[nn.Module]:
    """The vision encoder, if any of its own weights is trained."""
    family, core = loaded.family, loaded.core
    trained = [name for name, p in core.named_parameters() if p.requires_grad and family.is_vision(name)]
    paths = {name[: name.index(part) + len(part)] for name in trained for part in _parts(name, family.vision)}
    return [core.get_submodule(min(paths, key=len))] if paths else []


def _parts(name: str, wanted: Sequence[str]) -> list[str]:
    """Those of `wanted` that are parts of a dotted name."""
    return [part for part in name.split(".") if part in wanted]


def prepare_blocks(loaded: LoadedModel, settings: TrainerSettings, stage: str) -> LoadedModel:
    """Let the language model's blocks compute activations again, and compile them, as the recipe asks.

    Args:
        loaded: the model, with its adapter; it is changed in place.
        settings: `trainer` of the recipe.
        stage: sft, or grpo, where `trainer.compile` does nothing: its passes change their parts from call to call.

    Raises:
        ValueError: no blocks are found.
    """
    if settings.compile and stage != "sft":
        say(f"note: trainer.compile does nothing in {stage}: packed completions and shared prompts take eager blocks")
    for block in language_blocks(loaded) if settings.compile and stage == "sft" else ():
        compile_block(block)
        never_fuse(loaded.model)
    for block in language_blocks(loaded) if settings.activation_checkpointing else ():
        as_trained(block).recompute = True
    return loaded


def configure_sharding(trainer: Any, loaded: LoadedModel) -> None:
    """Shard the blocks over the devices where the trainer's strategy is fsdp2; else, or when done, nothing.

    For a LightningModule's `configure_model`. The language model is the root of its blocks. What lies outside of blocks
    (embeddings, which may be tied to the head; the last norm; the head; a frozen vision encoder) stays whole on every
    device, since it is called on its own and in chunks.
    """
    strategy = trainer.strategy
    if not hasattr(strategy, "shards_blocks") or is_sharded(loaded.family.text_model(loaded.core)):
        return
    policy = strategy.mixed_precision()
    shard_blocks(loaded.family.text_model(loaded.core), language_blocks(loaded), strategy.data_mesh, policy)
    for encoder in trained_encoders(loaded):
        shard_blocks(encoder, _blocks(encoder, loaded.family.projector), strategy.data_mesh, policy)
