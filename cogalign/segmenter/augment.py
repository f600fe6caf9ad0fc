"""Augmentation of an image and its mask together (torchvision v2), so that a net holds up on other centres' images.

Other centres differ in aspect (384 x 288 to 1225 x 966), colour, sharpness, compression, and in what the processor
paints around and over the image; each has its transform here.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from cogalign.segmenter.overlays import Border, GuideBox, Jpeg, OverlayText, Spots, choice, uniform

Level = Literal["strong", "light", "none"]


class Gamma(v2.Transform):
    """Another gamma curve; the mask stays."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the exponent."""
        return {"gamma": uniform(self.low, self.high)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply it to the image."""
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        table = (torch.linspace(0, 1, 256) ** params["gamma"] * 255).round().to(torch.uint8)
        return tv_tensors.wrap(table[inpt.long()], like=inpt)


class LowResolution(v2.Transform):
    """Shrink and enlarge again: detail is lost as in small or badly enlarged frames; the mask stays."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self.low = low

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor."""
        return {"factor": uniform(self.low, 0.9)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply it to the image."""
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        height, width = inpt.shape[-2:]
        small = [max(8, round(side * params["factor"])) for side in (height, width)]
        return functional.resize(functional.resize(inpt, small, antialias=True), [height, width], antialias=True)


class QuarterTurn(v2.Transform):
    """A turn by 0, 90, 180 or 270 degrees."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the number of quarter turns."""
        return {"turns": choice(4)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Turn image or mask."""
        return tv_tensors.wrap(torch.rot90(inpt, params["turns"], (-2, -1)), like=inpt)


def _maybe(transform: v2.Transform, p: float) -> v2.Transform:
    return v2.RandomApply([transform], p=p)


def build_augmentation(level: Level, side: int) -> v2.Transform:
    """The transform of (image uint8 [3, h, w], mask uint8 [1, h, w]) to squares of `side` pixels.

    Args:
        level: `strong`, `light` (flips and quarter turns) or `none`.
        side: of the result.
    """
    fit = v2.Resize([side, side], antialias=True)
    if level == "none":
        return v2.Compose([fit])
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    if level == "light":
        return v2.Compose([*flips, QuarterTurn(), fit])
    bilinear = v2.InterpolationMode.BILINEAR
    crop = v2.RandomResizedCrop([side, side], scale=(0.45, 1.0), ratio=(0.7, 1.43), antialias=True)
    geometry = [
        *flips,
        QuarterTurn(),
        _maybe(v2.RandomAffine(45, (0.08, 0.08), (0.6, 1.25), 10, interpolation=bilinear), 0.5),
        _maybe(v2.RandomPerspective(0.3, 1.0), 0.15),
        v2.RandomChoice([crop, fit], p=[0.65, 0.35]),
    ]
    colour = [
        _maybe(v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.4, hue=0.06), 0.75),
        _maybe(Gamma(0.6, 1.6), 0.3),
        v2.RandomGrayscale(0.02),
    ]
    quality = [
        _maybe(v2.GaussianBlur(7, (0.3, 2.0)), 0.15),
        _maybe(LowResolution(0.3), 0.2),
        _maybe(v2.GaussianNoise(sigma=0.04), 0.15),
        Jpeg(0.2, 25, 90),
    ]
    paint = [Spots(0.15), Border(0.2), GuideBox(0.12), OverlayText(0.15)]
    return v2.Compose([*geometry, *colour, *paint, *quality])


def augment(transform: v2.Transform, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Apply a transform with random numbers that depend on the seed alone; torch's own generator is left as it was.

    Args:
        transform: from `build_augmentation`.
        image: uint8 [h, w, 3].
        mask: bool [h, w].
        seed: of this image in this epoch.

    Returns:
        uint8 [3, side, side], and float32 [1, side, side] of zeros and ones.
    """
    pixels = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
    truth = tv_tensors.Mask(torch.from_numpy(mask.astype(np.uint8))[None])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed, moved = transform(pixels, truth)
    return changed.as_subclass(Tensor).contiguous(), moved.as_subclass(Tensor).float()
