"""Encode each image once: while the vision encoder is frozen, its output is kept for the passes that follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from cogalign.models.load import LoadedModel


def vision_is_frozen(loaded: LoadedModel) -> bool:
    """Whether no parameter of the vision encoder and the projector is trained."""
    family = loaded.family
    named = loaded.core.named_parameters()
    return not any(p.requires_grad and (family.is_vision(name) or family.is_projector(name)) for name, p in named)


@contextmanager
def shared_image_features(loaded: LoadedModel) -> Iterator[dict[int, Any]]:
    """Inside the block the same pixel tensor goes through the vision encoder once.

    A batch of prompts is sampled, then scored under the reference and under the policy: three passes
    over the same images, whose features cannot differ while the encoder is frozen. With a trained
    encoder, or a family whose features are not got by `get_image_features`, nothing is shared.

    Yields:
        The features by pixel tensor, for those who want to count them.
    """
    kept: dict[int, Any] = {}
    owner = getattr(loaded.core, "model", None)
    original = getattr(owner, "get_image_features", None)
    if owner is None or original is None or not vision_is_frozen(loaded):
        yield kept
        return
    alive: list[Tensor] = []  # a tensor that is freed could give its address to another

    def once(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        key = pixel_values.data_ptr()
        if key not in kept:
            kept[key] = original(pixel_values, *args, **kwargs)
            alive.append(pixel_values)
        return kept[key]

    owner.get_image_features = once
    try:
        yield kept
    finally:
        del owner.get_image_features
