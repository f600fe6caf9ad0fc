"""Inpainting by a diffusion model: any inpainting pipeline of diffusers."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import import_module
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.fills.composite import FillFunction, Hole, find_hole, paste
from cogalign.counterfactual.fills.reduced import fill_hidden
from cogalign.counterfactual.masks import Alpha, Image, Mask

PROMPT = "endoscopic photograph of healthy gastrointestinal mucosa with fine vessels"
NEGATIVE_PROMPT = "polyp, ulcer, tumor, bleeding, text"
STEPS = 30
"""Steps of denoising."""
CONTEXT = 1.0
"""Margin of the picture that the model sees, over the radius of the region."""
MULTIPLE = 8
"""Sides of the model's picture are multiples of this."""
MOST_SIDE = 1024
"""The model's picture is at most so many pixels a side, and at most its own size where it names one."""
PREFERRED_SIDE = 512
"""The longer side where the model names no size."""


def diffusion(model: str) -> FillFunction:
    """The fill of an inpainting pipeline, which is loaded when the first image is filled, once a process.

    The pipeline sees the surroundings of the lesion with what is hidden smoothed over, resized to its own size; only
    the region is taken from its answer. The noise is seeded by the generator of the fill.

    Args:
        model: hub id or folder; weights in safetensors. With HF_HUB_OFFLINE=1 nothing is downloaded.

    Returns:
        (image, alpha, sigma, hidden, generator) -> image. It raises ValueError (the mask is empty, or covers the whole
        image; the model is no inpainting pipeline; diffusers is not installed).
    """

    def fill(image: Image, alpha: Alpha, sigma: float, hidden: Mask | None, rng: np.random.Generator) -> Image:
        del sigma
        support = alpha > 0
        radius = math.sqrt(float(np.count_nonzero(support)) / math.pi)
        hole = find_hole(alpha, hidden, max(16, math.ceil(CONTEXT * radius)))
        painted = _painted(image, hole, load_pipeline(model), int(rng.integers(2**31)))
        return paste(image, painted, alpha, hole.window, hole.around)

    return fill


@lru_cache(maxsize=1)
def load_pipeline(model: str) -> Any:
    """The inpainting pipeline of a hub id or folder, on the GPU where there is one; kept for the process.

    Raises:
        ValueError: diffusers is not installed or lacks a package, there is no such model, it has no safetensors, or it cannot inpaint.
    """
    try:
        diffusers = import_module("diffusers")
    except ImportError as error:
        raise ValueError(
            f"counterfactual.fill: diffusion needs the package diffusers, which cannot be imported ({error}): "
            "pip install cogalign[diffusion]"
        ) from error
    import torch
    from huggingface_hub.constants import HF_HUB_OFFLINE

    cuda = torch.cuda.is_available()
    try:
        pipeline = diffusers.AutoPipelineForInpainting.from_pretrained(
            model,
            torch_dtype=torch.float16 if cuda else torch.float32,
            use_safetensors=True,
            local_files_only=HF_HUB_OFFLINE,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # diffusers imports its parts at first use
        raise ValueError(
            f"counterfactual.diffusion_model: found {model!r}, wanted an inpainting pipeline of diffusers with "
            f"safetensors ({error})"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if cuda else "cpu")


def model_size(shape: tuple[int, ...], preferred: int) -> tuple[int, int]:
    """Height and width of the model's picture: the longer side `preferred`, both multiples of `MULTIPLE`."""
    longest = min(preferred, MOST_SIDE)
    height, width = (max(MULTIPLE, round(side * longest / max(shape[:2]) / MULTIPLE) * MULTIPLE) for side in shape[:2])
    return height, width


def own_side(pipeline: Any) -> int:
    """The side, in pixels, of the pictures that the pipeline was trained on, or `PREFERRED_SIDE`."""
    core = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    cells = getattr(getattr(core, "config", None), "sample_size", None)
    scale = getattr(pipeline, "vae_scale_factor", MULTIPLE)
    return int(cells) * int(scale) if isinstance(cells, int) else PREFERRED_SIDE


def _painted(image: Image, hole: Hole, pipeline: Any, seed: int) -> NDArray[np.float32]:
    """The model's picture of the hole's surroundings, H x W x 3 float32."""
    import torch
    from PIL import Image as Pillow

    seen = fill_hidden(image[hole.around].astype(np.float32), hole.known, hole.region, max(1.0, 0.25 * hole.radius))
    height, width = model_size(seen.shape, own_side(pipeline))
    picture = cv2.resize(np.clip(np.rint(seen), 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA)
    # Any cell that the region touches is painted: none of the lesion is left to be copied.
    mask = cv2.resize(hole.region.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) > 0
    answer = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        image=Pillow.fromarray(picture),
        mask_image=Pillow.fromarray(mask.astype(np.uint8) * 255),
        height=height,
        width=width,
        num_inference_steps=STEPS,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    made = np.asarray(answer.convert("RGB"), dtype=np.float32)
    enlarged: NDArray[np.float32] = cv2.resize(made, (seen.shape[1], seen.shape[0]), interpolation=cv2.INTER_CUBIC)
    return enlarged
