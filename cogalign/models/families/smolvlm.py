"""SmolVLM: an image is cut into crops, the crops of a prompt stand in one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cogalign.models.families.base import Family, only_full_attention
from cogalign.models.inputs import Inputs, stacked


class SmolVLM(Family):
    """SmolVLM and SmolVLM2. A piece is a crop (or the whole image made small), all of one size.

    `pixel_values` [P, N, 3, H, W], where N is the largest number of crops of a prompt and missing ones are zeros;
    `pixel_attention_mask` [P, N, H, W]. The crops are not counted by image, only by prompt.
    """

    model_types = ("smolvlm",)
    language_model = ("text_model",)
    vision = ("vision_model",)
    projector = ("connector",)
    image_names = ("pixel_values", "pixel_attention_mask")

    def shares_prompts(self, core: Any) -> bool:
        """Yes, where no layer has a sliding window."""
        return only_full_attention(core)

    def _images_of(self, core: Any, prompt: Inputs, visual: Sequence[int]) -> list[Inputs]:
        vision = core.config.vision_config
        each = (vision.image_size // vision.patch_size // core.config.scale_factor) ** 2
        room = prompt["pixel_values"].shape[1]
        if any(count % each or count // each > room for count in visual):
            raise ValueError(
                f"SmolVLM: found {list(visual)} visual tokens in the prompts, wanted multiples of {each} up to "
                f"{room} times"
            )
        names = [name for name in self.image_names if name in prompt]
        rows = enumerate(count // each for count in visual)
        return [{name: prompt[name][row : row + 1, :crops] for name in names} if crops else {} for row, crops in rows]

    def _images_joined(self, prompts: Sequence[Inputs]) -> Inputs:
        joined = {}
        for name in self.image_names:
            like = next((prompt[name] for prompt in prompts if name in prompt), None)
            if like is not None:
                joined[name] = stacked([prompt.get(name, like[:, :0]) for prompt in prompts], 1)
        return joined

    def pieces(self, core: Any, images: Inputs) -> list[Inputs]:
        """One for each crop that is not all zero, which is how transformers tells them from padding."""
        real: Tensor = (images["pixel_values"] != 0).flatten(2).any(-1)
        places = real.nonzero().tolist()
        return [{name: v[row : row + 1, crop : crop + 1] for name, v in images.items()} for row, crop in places]

    def together(self, pieces: Sequence[Inputs]) -> tuple[Inputs, list[int]]:
        """Each crop a row of its own, for which the model gives features of its own."""
        return {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}, list(range(len(pieces)))
