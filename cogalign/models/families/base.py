"""What differs between model families, and what holds for those without a class of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cogalign.models.inputs import Inputs, join_tokens, split_tokens, token_names

_TEXT_PATHS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Where the language model of a model is; looking for it costs as much as a layer."""


class Family:
    """Positions count tokens; the parts of the model are found by the usual names; prompts are not shared.

    A batch of prompts holds tensors of tokens [P, L] and, named by `image_names`, those of the images in the order of
    the prompts. A *piece* is the least that the vision encoder can compute by itself: an image, or one of the crops
    that an image is cut into. Families that name their images override the methods that raise NotImplementedError;
    for the others nobody calls them.
    """

    model_types: tuple[str, ...] = ()
    language_model: tuple[str, ...] = ("language_model", "text_model", "model")
    vision: tuple[str, ...] = ("vision_tower", "vision_model", "visual")
    projector: tuple[str, ...] = ("multi_modal_projector", "connector", "merger")
    image_names: tuple[str, ...] = ()
    """Tensors of the images, in the order in which `get_image_features` takes them; none: nothing is known of them."""

    # -- parts of the model -----------------------------------------------------------------------

    def _named(self, model: nn.Module, names: tuple[str, ...]) -> str | None:
        """Path of the shallowest module whose last name is one of `names`."""
        found = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in names]
        return min(found, key=lambda path: (path.count("."), len(path)), default=None)

    def language_model_path(self, model: nn.Module) -> str:
        """Dotted path of the language model inside `model` (unwrapped, not a PEFT model).

        Raises:
            ValueError: there is none by the usual names.
        """
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

    def projector_paths(self, model: nn.Module) -> list[str]:
        """Dotted paths of the projector's modules inside `model` (unwrapped, not a PEFT model); of a list its members'.

        Raises:
            ValueError: there is none by the family's names.
        """
        paths = []
        for path, part in model.named_modules():
            if path.rpartition(".")[2] in self.projector:
                is_list = isinstance(part, nn.ModuleList)
                paths += [f"{path}.{number}" for number in range(len(part))] if is_list else [path]
        if not paths:
            raise ValueError(f"{type(model).__name__}: no projector found, looked for {', '.join(self.projector)}")
        return paths

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
            "video_token_index",
            "vision_start_token_id",
            "vision_end_token_id",
        )
        return sorted(
            {int(v) for v in (getattr(config, name, None) for name in names) if isinstance(v, int) and v >= 0}
        )

    def textless_ids(self, model: Any, tokenizer: Any) -> list[int]:
        """Ids for which the tokenizer has no text: rows that pad an embedding to a round number. They are never sampled."""
        rows = int(getattr(model.config.get_text_config(), "vocab_size", 0))
        return [place for place in range(len(tokenizer), rows) if tokenizer.convert_ids_to_tokens(place) is None]

    def body(self, model: Any) -> Any:
        """The model without its LM head: images and text in, hidden states out."""
        return model.model

    def text_model(self, model: Any) -> Any:
        """The language model inside, without LM head."""
        if model not in _TEXT_PATHS:
            _TEXT_PATHS[model] = self.language_model_path(model)
        return model.get_submodule(_TEXT_PATHS[model])

    def head(self, model: Any) -> Any:
        """The LM head: hidden states in, logits out."""
        return model.get_output_embeddings()

    def shares_prompts(self, core: Any) -> bool:
        """Whether the G completions of a prompt can be computed from keys and values that exist once.

        Args:
            core: the transformers model.
        """
        return False

    # -- positions --------------------------------------------------------------------------------

    def prompt_positions(self, core: Any, prompt: Inputs) -> tuple[Tensor, Tensor]:
        """Positions of prompts, and of what follows them.

        They are given to the model: left to itself, transformers counts the padding too.

        Args:
            core: the transformers model; nothing on it is changed.
            prompt: tensors of P prompts, padded on either side.

        Returns:
            Position ids in the form that the model takes ([P, L], or [3, P, L] with m-rope), and the position [P, 1] of
            the first token after each prompt.
        """
        mask = prompt["attention_mask"].long()
        return (mask.cumsum(1) - 1).clamp_min(0), mask.sum(1, keepdim=True)

    def full_positions(self, core: Any, inputs: Inputs) -> Inputs:
        """Arguments that tell positions in a forward of whole sequences; none where the model has a rule of its own."""
        if hasattr(self.body(core), "get_rope_index"):
            return {}
        return {"position_ids": self.prompt_positions(core, inputs)[0]}

    def position_ids(self, start: Tensor, offset: int, length: int) -> Tensor:
        """Position ids of `length` tokens that begin `offset` after `start` [N, 1]."""
        return self.spread_position_ids(start + offset + torch.arange(length, device=start.device)[None])

    def spread_position_ids(self, positions: Tensor) -> Tensor:
        """Positions [N, T] of text tokens in the form that the language model takes."""
        return positions

    # -- prompts apart and together -----------------------------------------------------------------

    def split(self, core: Any, prompt: Inputs) -> list[Inputs]:
        """Each prompt by itself, without padding of tokens or images.

        Args:
            core: the transformers model.
            prompt: tensors of P prompts, padded on either side, with any number of images each.

        Raises:
            TypeError: the batch holds a tensor of which it is not known how it belongs to the prompts.
            ValueError: placeholders and images do not fit.
        """
        of_tokens = token_names(prompt)
        unknown = sorted(name for name in prompt if name not in (*of_tokens, *self.image_names))
        if unknown:
            raise TypeError(f"{type(self).__name__}: prompts with {', '.join(unknown)} cannot be taken apart")
        rows = split_tokens(prompt)
        if any(name in prompt for name in self.image_names):
            visual = [int((row["input_ids"] == core.config.image_token_id).sum()) for row in rows]
            for row, images in zip(rows, self._images_of(core, prompt, visual), strict=True):
                row.update(images)
        return rows

    def _images_of(self, core: Any, prompt: Inputs, visual: Sequence[int]) -> list[Inputs]:
        """The tensors of the images of each prompt, which holds `visual` visual tokens; empty where it has none."""
        raise NotImplementedError

    def join(self, prompts: Sequence[Inputs], pad_id: int) -> Inputs:
        """Prompts that were apart (`split`) as one batch, padded on the left.

        Args:
            prompts: at least one.
            pad_id: token id of the padding.
        """
        joined = join_tokens(prompts, pad_id)
        if any(name in prompt for prompt in prompts for name in self.image_names):
            joined.update(self._images_joined(prompts))
        return joined

    def _images_joined(self, prompts: Sequence[Inputs]) -> Inputs:
        """The tensors of all images of the prompts, at least one of which has any."""
        raise NotImplementedError

    # -- images for the vision encoder --------------------------------------------------------------

    def pieces(self, core: Any, images: Inputs) -> list[Inputs]:
        """The pieces in the tensors `image_names`, each with the arguments of `get_image_features` for it alone."""
        raise NotImplementedError

    def together(self, pieces: Sequence[Inputs]) -> tuple[Inputs, list[int]]:
        """The arguments of `get_image_features` for several pieces at once, and the order in which they stand there."""
        raise NotImplementedError


def only_full_attention(core: Any) -> bool:
    """Whether all layers of the language model keep all keys and values, and its logits are the head's own."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    text = core.config.get_text_config()
    capped = ("final_logit_softcapping", "attn_logit_softcapping")
    if any(getattr(text, name, None) is not None for name in capped):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=core.config).layers)


def runs(lengths: Sequence[int], totals: Sequence[int], what: str) -> list[range]:
    """Which of the consecutive things with `lengths` make up each of `totals`.

    Raises:
        ValueError: they do not fit.
    """
    found, place = [], 0
    for total in totals:
        first, left = place, total
        while left > 0 and place < len(lengths):
            left -= lengths[place]
            place += 1
        if left:
            raise ValueError(f"{what}: found {list(lengths)} visual tokens an image, and {list(totals)} in the prompts")
        found.append(range(first, place))
    if place != len(lengths):
        raise ValueError(f"{what}: found {len(lengths)} images, of which the prompts have places for {place}")
    return found
