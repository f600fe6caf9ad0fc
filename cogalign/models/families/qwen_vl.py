"""Qwen-VL: all patches in one row, m-rope, features of several layers in Qwen3-VL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cogalign.models.families.base import Family, only_full_attention, runs
from cogalign.models.inputs import Inputs


class QwenVL(Family):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL. A piece is an image.

    `pixel_values` [patches of all images, numbers of a patch], `image_grid_thw` [I, 3]. With m-rope an image takes fewer
    positions than tokens; the text goes on from there.
    """

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    language_model = ("language_model",)
    vision = ("visual",)
    projector = ("merger", "deepstack_merger_list")
    image_names = ("pixel_values", "image_grid_thw")

    def shares_prompts(self, core: Any) -> bool:
        """Yes, but for checkpoints with a sliding window."""
        return only_full_attention(core)

    def prompt_positions(self, core: Any, prompt: Inputs) -> tuple[Tensor, Tensor]:
        """As the base class, by the model's own rule; `rope_deltas` on the model is neither read nor written."""
        counted, start = super().prompt_positions(core, prompt)
        if "image_grid_thw" not in prompt:
            return self.spread_position_ids(counted), start
        ids = prompt["input_ids"]
        types = prompt.get("mm_token_type_ids")
        positions, delta = core.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == core.config.image_token_id).long() if types is None else types,
            image_grid_thw=prompt["image_grid_thw"],
            attention_mask=prompt["attention_mask"],
        )
        return positions, start + delta.to(start.device)

    def spread_position_ids(self, positions: Tensor) -> Tensor:
        """The same position for the three axes (time, height, width): `[3, N, T]`."""
        return positions[None].expand(3, -1, -1)

    def _images_of(self, core: Any, prompt: Inputs, visual: Sequence[int]) -> list[Inputs]:
        grids = prompt["image_grid_thw"]
        patches = grids.prod(-1).tolist()
        merged = core.config.vision_config.spatial_merge_size**2
        found, begin = [], 0
        for row in runs([count // merged for count in patches], visual, type(self).__name__):
            end = begin + sum(patches[i] for i in row)
            images = {"pixel_values": prompt["pixel_values"][begin:end], "image_grid_thw": grids[row.start : row.stop]}
            found.append(images if row else {})
            begin = end
        return found

    def _images_joined(self, prompts: Sequence[Inputs]) -> Inputs:
        return {name: torch.cat([p[name] for p in prompts if name in p]) for name in self.image_names}

    def pieces(self, core: Any, images: Inputs) -> list[Inputs]:
        """One for each image."""
        grids = images["image_grid_thw"]
        pixels = images["pixel_values"].split(grids.prod(-1).tolist())
        return [{"pixel_values": p, "image_grid_thw": g} for p, g in zip(pixels, grids.split(1), strict=True)]

    def together(self, pieces: Sequence[Inputs]) -> tuple[Inputs, list[int]]:
        """One after the other."""
        return self._images_joined(pieces), list(range(len(pieces)))
