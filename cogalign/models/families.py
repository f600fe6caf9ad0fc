"""What differs between model families: where the language model sits, and how positions continue.

A family is found by `config.model_type`; an unknown one gets `Family`, which fits models whose
positions simply count the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Family:
    """Positions count tokens; the parts of the model are found by the usual names."""

    model_types: tuple[str, ...] = ()
    language_model: tuple[str, ...] = ("language_model", "text_model", "model")
    vision: tuple[str, ...] = ("vision_tower", "vision_model", "visual")
    projector: tuple[str, ...] = ("multi_modal_projector", "connector", "merger")

    def _named(self, model: nn.Module, names: tuple[str, ...]) -> str | None:
        """Path of the shallowest module whose last name is one of `names`."""
        found = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in names]
        return min(found, key=lambda path: (path.count("."), len(path)), default=None)

    def language_model_path(self, model: nn.Module) -> str:
        """Dotted path of the language model inside `model` (unwrapped, not a PEFT model)."""
        for name in self.language_model:
            path = self._named(model, (name,))
            if path is not None:
                return path
        raise ValueError(f"{type(model).__name__}: no language model found, looked for {self.language_model}")

    def lora_targets(self, model: nn.Module) -> str:
        """Regular expression that matches all linear layers of the language model (for PEFT)."""
        path = self.language_model_path(model)
        root = model.get_submodule(path)
        leaves = {name.rpartition(".")[2] for name, part in root.named_modules() if isinstance(part, nn.Linear)}
        return rf"{re.escape(path)}\..*\.({'|'.join(sorted(leaves))})"

    def is_vision(self, name: str) -> bool:
        """Whether the parameter `name` belongs to the vision encoder (projector not counted)."""
        parts = name.split(".")
        return any(part in self.vision for part in parts) and not self.is_projector(name)

    def is_projector(self, name: str) -> bool:
        """Whether the parameter `name` belongs to the projector from vision to language."""
        return any(part in self.projector for part in name.split("."))

    def placeholder_ids(self, model: Any, tokenizer: object) -> list[int]:
        """Ids of tokens that stand for images; they are never sampled."""
        config = model.config
        names = (
            "image_token_id",
            "image_token_index",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        )
        return sorted(
            {int(v) for v in (getattr(config, name, None) for name in names) if isinstance(v, int) and v >= 0}
        )

    def next_position(self, model: Any, mask: Tensor) -> Tensor:
        """Position `[P, 1]` of the first token after each left-padded prompt with `mask` [P, L]."""
        return mask.sum(1, keepdim=True)

    def position_ids(self, start: Tensor, offset: int, length: int) -> Tensor:
        """Position ids of `length` tokens that begin `offset` after `start` [N, 1]."""
        return self.spread_position_ids(start + offset + torch.arange(length, device=start.device)[None])

    def spread_position_ids(self, positions: Tensor) -> Tensor:
        """Positions [N, T] of text tokens in the form that the language model takes."""
        return positions

    def body(self, model: Any) -> Any:
        """The model without its LM head: images and text in, hidden states out."""
        return model.model

    def text_model(self, model: Any) -> Any:
        """The language model inside, without LM head."""
        return model.get_submodule(self.language_model_path(model))

    def head(self, model: Any) -> Any:
        """The LM head: hidden states in, logits out."""
        return model.get_output_embeddings()


class QwenVL(Family):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL: m-rope. An image takes fewer positions than tokens; text goes on from there."""

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    language_model = ("language_model",)
    vision = ("visual",)
    projector = ("merger", "deepstack_merger_list")

    def next_position(self, model: Any, mask: Tensor) -> Tensor:
        """As the base class, plus the offset that the model found when it ran the prompt."""
        delta: Tensor = model.model.rope_deltas
        return mask.sum(1, keepdim=True) + delta.to(mask.device)

    def spread_position_ids(self, positions: Tensor) -> Tensor:
        """The same position for the three axes (time, height, width): `[3, N, T]`."""
        return positions[None].expand(3, -1, -1)


def _families() -> Iterator[type[Family]]:
    yield QwenVL


def family_of(model: Any) -> Family:
    """The family of a transformers model."""
    model_type = getattr(model.config, "model_type", "")
    for family in _families():
        if model_type in family.model_types:
            return family()
    return Family()
