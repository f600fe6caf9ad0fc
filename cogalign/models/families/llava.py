"""LLaVA-OneVision: a lone image is cut into crops, images of a prompt with several are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cogalign.models.families.base import Family, only_full_attention
from cogalign.models.inputs import Inputs, stacked


class LlavaOneVision(Family):
    """LLaVA-OneVision. A piece is an image; whether it is alone in its prompt is a part of it.

    `pixel_values` [I, M, 3, H, W], where M is the largest number of crops of an image and missing ones are zeros;
    `image_sizes` [I, 2], height and width; `batch_num_images`, the number of images of each prompt that has any.
    """

    model_types = ("llava_onevision",)
    language_model = ("language_model",)
    vision = ("vision_tower",)
    projector = ("multi_modal_projector", "image_newline")
    image_names = ("pixel_values", "image_sizes", "batch_num_images")

    def shares_prompts(self, core: Any) -> bool:
        """Yes, where no layer has a sliding window."""
        return only_full_attention(core)

    def _images_of(self, core: Any, prompt: Inputs, visual: Sequence[int]) -> list[Inputs]:
        with_images = sum(count > 0 for count in visual)
        numbers = _numbers(prompt)
        if len(numbers) != with_images or sum(numbers) != len(prompt["pixel_values"]):
            raise ValueError(
                f"LlavaOneVision: found {with_images} prompts with visual tokens and {len(prompt['pixel_values'])} "
                f"images, wanted those of batch_num_images, {numbers}"
            )
        found: list[Inputs] = []
        left, begin = iter(numbers), 0
        for count in visual:
            if not count:
                found.append({})
                continue
            number = next(left)
            sizes = prompt["image_sizes"][begin : begin + number]
            crops = max(_crops(core, sizes, [number == 1] * number))
            found.append(
                {
                    "pixel_values": prompt["pixel_values"][begin : begin + number, :crops],
                    "image_sizes": sizes,
                    "batch_num_images": sizes.new_tensor([number]),
                }
            )
            begin += number
        return found

    def _images_joined(self, prompts: Sequence[Inputs]) -> Inputs:
        parts = {name: [p[name] for p in prompts if name in p] for name in self.image_names}
        return {name: stacked(values, 1) if values[0].ndim > 1 else torch.cat(values) for name, values in parts.items()}

    def pieces(self, core: Any, images: Inputs) -> list[Inputs]:
        """One for each image without padding; `batch_num_images` is 1 if it is alone, else 2."""
        pixels, sizes = images["pixel_values"], images["image_sizes"]
        alone = [number == 1 for number in _numbers(images) for _ in range(number)]
        return [
            {
                "pixel_values": pixels[i : i + 1, :count],
                "image_sizes": sizes[i : i + 1],
                "batch_num_images": sizes.new_tensor([1 if alone[i] else 2]),
            }
            for i, count in enumerate(_crops(core, sizes, alone))
        ]

    def together(self, pieces: Sequence[Inputs]) -> tuple[Inputs, list[int]]:
        """Lone images first; the others count as the images of one prompt (two at least, or one would be alone)."""
        numbers = [int(piece["batch_num_images"]) for piece in pieces]
        order = sorted(range(len(pieces)), key=lambda i: numbers[i])
        alone = numbers.count(1)
        counts = [1] * alone + [max(2, len(pieces) - alone)] * (alone < len(pieces))
        return {
            "pixel_values": stacked([pieces[i]["pixel_values"] for i in order], 1),
            "image_sizes": torch.cat([pieces[i]["image_sizes"] for i in order]),
            "batch_num_images": pieces[0]["batch_num_images"].new_tensor(counts),
        }, order


def _numbers(images: Inputs) -> list[int]:
    """Number of images of each prompt that has any; without word of it transformers takes each image as alone."""
    numbers = images.get("batch_num_images")
    return [1] * len(images["pixel_values"]) if numbers is None else [int(number) for number in numbers.tolist()]


def _crops(core: Any, sizes: Tensor, alone: Sequence[bool]) -> list[int]:
    """Number of crops of each image, the whole image counted."""
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    config = core.config
    side = config.vision_config.image_size
    return [
        int(image_size_to_num_patches(size, config.image_grid_pinpoints, side)) if single else 1
        for size, single in zip(sizes.tolist(), alone, strict=True)
    ]
