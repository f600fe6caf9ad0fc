"""FastVLM: a convolutional vision tower of timm; every image is resized to one square and has as many visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cogalign.models.families.base import Family, only_full_attention, runs
from cogalign.models.inputs import Inputs


class FastVlm(Family):
    """FastVLM, also with other towers of timm and other language models. A piece is an image.

    `pixel_values` [I, 3, H, W], in the order of the prompts.
    """

    model_types = ("fast_vlm",)
    language_model = ("language_model",)
    vision = ("vision_tower",)
    projector = ("multi_modal_projector",)
    image_names = ("pixel_values",)

    def shares_prompts(self, core: Any) -> bool:
        """Yes, where no layer has a sliding window."""
        return only_full_attention(core)

    def _images_of(self, core: Any, prompt: Inputs, visual: Sequence[int]) -> list[Inputs]:
        pixels = prompt["pixel_values"]
        each = [core.config.image_seq_length] * len(pixels)
        found = runs(each, visual, type(self).__name__)
        return [{"pixel_values": pixels[part.start : part.stop]} if part else {} for part in found]

    def _images_joined(self, prompts: Sequence[Inputs]) -> Inputs:
        return {"pixel_values": torch.cat([p["pixel_values"] for p in prompts if "pixel_values" in p])}

    def pieces(self, core: Any, images: Inputs) -> list[Inputs]:
        """One for each image."""
        return [{"pixel_values": image[None]} for image in images["pixel_values"]]

    def together(self, pieces: Sequence[Inputs]) -> tuple[Inputs, list[int]]:
        """The images in their order."""
        return {"pixel_values": torch.cat([piece["pixel_values"] for piece in pieces])}, list(range(len(pieces)))
