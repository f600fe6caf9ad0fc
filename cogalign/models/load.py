"""Open a multimodal LLM from the package, a folder or the hub, with or without a run's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cogalign.models.families import Family, family_of
from cogalign.recipe import ModelSettings


@dataclass
class LoadedModel:
    """A model with its processor and what its family needs."""

    model: Any
    """transformers model, or a PEFT model around it."""
    processor: Any
    family: Family

    @property
    def core(self) -> Any:
        """The transformers model inside."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer


def resolve_dtype(name: str) -> torch.dtype:
    """The torch type of a recipe's `dtype`; `auto` is bfloat16 on a GPU that computes in it, else float32."""
    if name == "auto":
        fits = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fits else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def resolve_name(name: str) -> str:
    """Folder or hub id behind a model's name in a recipe.

    Raises:
        FileNotFoundError: `tiny` is asked for and the package lacks its base, or a folder does not exist.
    """
    if name == "tiny":
        from cogalign.models.tiny import packaged_base

        return str(packaged_base())
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not Path(name).expanduser().is_dir():
        raise FileNotFoundError(f"model.name: found {name!r}, wanted a folder in hub layout, a hub id, or tiny")
    return str(Path(name).expanduser()) if looks_like_path else name


def _open_processor(settings: ModelSettings, name: str) -> Any:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(name, revision=settings.revision)
    image = processor.image_processor
    size = dict(image.size or {})
    if settings.min_pixels is not None:
        size["shortest_edge"] = settings.min_pixels
    if settings.max_pixels is not None:
        size["longest_edge"] = settings.max_pixels
        size["shortest_edge"] = min(size.get("shortest_edge", settings.max_pixels), settings.max_pixels)
    if settings.min_pixels is not None or settings.max_pixels is not None:
        image.size = type(image.size)(**size) if not isinstance(image.size, dict) else size
    processor.tokenizer.padding_side = "left"
    return processor


def _open_base(settings: ModelSettings) -> tuple[Any, Any]:
    """Model and processor without any checkpoint."""
    from transformers import AutoModelForImageTextToText

    if settings.name == "tiny-random":
        from cogalign.models.tiny import packaged_base, random_model

        processor = _open_processor(settings, str(packaged_base()))
        return random_model(processor.tokenizer).to(resolve_dtype(settings.dtype)), processor
    name = resolve_name(settings.name)
    try:
        processor = _open_processor(settings, name)
        model = AutoModelForImageTextToText.from_pretrained(
            name,
            revision=settings.revision,
            dtype=resolve_dtype(settings.dtype),
            attn_implementation=settings.attention,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"model.name: {settings.name!r} could not be opened ({str(error).splitlines()[0]}); "
            "wanted a folder in hub layout, or a hub id that is in the local cache or reachable"
        ) from error
    return model, processor


def load_model(
    settings: ModelSettings, checkpoint: Path | None = None, device: torch.device | str | None = None
) -> LoadedModel:
    """The model of a recipe, in eval mode, on the GPU if there is one.

    Args:
        settings: which model.
        checkpoint: a PEFT adapter's folder, or the folder of a fully trained model; None for the base.
        device: where to put it; None chooses.

    Raises:
        FileNotFoundError: model or checkpoint cannot be found.
    """
    if checkpoint is not None and not (checkpoint / "adapter_config.json").is_file():
        if not (checkpoint / "config.json").is_file():
            raise FileNotFoundError(f"{checkpoint}: found neither adapter_config.json nor config.json")
        settings = ModelSettings(**{**settings.__dict__, "name": str(checkpoint.resolve()), "revision": None})
        checkpoint = None
    model, processor = _open_base(settings)
    family = family_of(model)
    if checkpoint is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(checkpoint))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return LoadedModel(model.to(device).eval(), processor, family)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of all and of trainable parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"parameters": sum(n for n, _ in counts), "trainable_parameters": sum(n for n, t in counts if t)}
