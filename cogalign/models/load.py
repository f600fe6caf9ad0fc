"""Open a multimodal LLM from the package, a folder or the hub, with or without a run's checkpoint."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cogalign.models.families import Family, family_of
from cogalign.models.patches import embed_patches_by_matmul
from cogalign.models.whole_parts import open_wide
from cogalign.recipe import ModelSettings
from cogalign.training.errors import first_line

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Files in which PEFT keeps an adapter's weights."""


def core_of(model: Any) -> Any:
    """The transformers model in `model`, which may be a PEFT model around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


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
        return core_of(self.model)

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
        FileNotFoundError: it names a folder that does not exist.
    """
    if name == "tiny":
        from cogalign.models.tiny import packaged_base

        return str(packaged_base())
    # models/ is a page of the hub, so no owner there has that name; here it is where assembled models are
    looks_like_path = name.startswith((".", "/", "~", "models/")) or name.count("/") > 1
    if looks_like_path and not Path(name).expanduser().is_dir():
        hint = "; make smol writes models/smol" if name == "models/smol" else ""
        raise FileNotFoundError(f"model.name: found {name!r}, wanted a folder in hub layout, a hub id, or tiny{hint}")
    return str(Path(name).expanduser()) if looks_like_path else name


def quiet_transformers() -> None:
    """Keep transformers' own progress bars, and a notice that only its callers can heed, off the screen."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def _open_processor(settings: ModelSettings, name: str) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, revision=settings.revision)
    except ImportError as error:  # SmolVLM's wants num2words, to write numbers of video frames
        raise ValueError(f"its processor needs a package that is not installed: {first_line(error)}") from error
    image = getattr(processor, "image_processor", None)
    if image is None:
        raise ValueError("it has no image processor, so it is no multimodal LLM")
    if settings.min_pixels is not None or settings.max_pixels is not None:
        size = pixel_limits(dict(image.size or {}), settings.min_pixels, settings.max_pixels)
        image.size = type(image.size)(**size) if not isinstance(image.size, dict) else size
    processor.tokenizer.padding_side = "left"
    return processor


def pixel_limits(size: dict[str, int], min_pixels: int | None, max_pixels: int | None) -> dict[str, int]:
    """A processor's `size` with the recipe's limits in it; a limit that is not given makes way for the one that is.

    `shortest_edge` and `longest_edge` are numbers of pixels of the whole image here, as in the Qwen-VL family.
    """
    changed = dict(size)
    if min_pixels is not None:
        changed["shortest_edge"] = min_pixels
        changed["longest_edge"] = max(changed.get("longest_edge", min_pixels), min_pixels)
    if max_pixels is not None:
        changed["longest_edge"] = max_pixels
        changed["shortest_edge"] = min(changed.get("shortest_edge", max_pixels), max_pixels)
    return changed


def _open_base(settings: ModelSettings) -> tuple[Any, Any]:
    """Model and processor without any checkpoint."""
    quiet_transformers()
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
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"model.name: {settings.name!r} could not be opened ({first_line(error)}); wanted a multimodal LLM: "
            "a folder in hub layout, or a hub id that is in the local cache or reachable"
        ) from error
    return model, processor


def _open_adapter(model: Any, checkpoint: Path) -> Any:
    """The model with the PEFT adapter of a folder.

    Raises:
        ValueError: the adapter is damaged, or was made for another model.
    """
    from peft import PeftModel

    if not any((checkpoint / name).is_file() for name in ADAPTER_WEIGHTS):
        raise FileNotFoundError(f"{checkpoint}: found adapter_config.json but no weights, wanted {ADAPTER_WEIGHTS[0]}")
    try:
        opened = PeftModel.from_pretrained(model, str(checkpoint))
        open_wide(opened, checkpoint)
        return opened
    except Exception as error:  # peft, safetensors and json each have errors of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2])  # torch's first line is only a heading
        raise ValueError(
            f"{checkpoint}: the adapter could not be opened on {type(model).__name__} ({reason}); "
            "it is damaged, or was trained on another model than model.name"
        ) from error


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
        ValueError: the checkpoint is damaged, or was made for another model.
    """
    if checkpoint is not None and not (checkpoint / "adapter_config.json").is_file():
        if not (checkpoint / "config.json").is_file():
            raise FileNotFoundError(f"{checkpoint}: found neither adapter_config.json nor config.json")
        settings = ModelSettings(**{**settings.__dict__, "name": str(checkpoint.resolve()), "revision": None})
        checkpoint = None
    model, processor = _open_base(settings)
    embed_patches_by_matmul(model)
    family = family_of(model)
    if checkpoint is not None:
        model = _open_adapter(model, checkpoint)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return LoadedModel(model.to(device).eval(), processor, family)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of all and of trainable parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"parameters": sum(n for n, _ in counts), "trainable_parameters": sum(n for n, t in counts if t)}
