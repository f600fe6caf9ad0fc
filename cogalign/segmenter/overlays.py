"""What processors and cameras do to an endoscopic image: borders, guide boxes, text, reflections, JPEG; for torchvision v2.

They change the image and leave the mask as it is. All random numbers are torch's, as in torchvision's own transforms.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors
from torchvision.transforms import v2

Pixels = NDArray[np.uint8]
INKS = ((235, 235, 235), (60, 220, 60), (240, 220, 40), (90, 170, 250), (20, 20, 20))
"""Colours of burned-in text."""
BOXES = ((20, 110, 40), (10, 60, 20), (30, 60, 150), (15, 15, 15), (90, 90, 90))
"""Colours of the box with the scope guide."""


def uniform(low: float, high: float) -> float:
    """A number from torch's generator."""
    return float(torch.empty(1).uniform_(low, high))


def choice(count: int) -> int:
    """A number from 0 to `count` - 1 from torch's generator."""
    return int(torch.randint(count, (1,)))


class OnImage(v2.Transform):
    """A transform of the image's pixels alone, with a probability."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, *inputs: Any) -> Any:
        """Image (uint8 [3, H, W]) and mask; the mask comes back as it was."""
        image, mask = inputs if len(inputs) > 1 else inputs[0]
        if uniform(0, 1) >= self.p:
            return image, mask
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        return tv_tensors.Image(torch.from_numpy(self.paint(pixels)).permute(2, 0, 1)), mask

    def paint(self, pixels: Pixels) -> Pixels:
        """The changed pixels [H, W, 3]."""
        raise NotImplementedError


class Border(OnImage):
    """A black surround with a round, octagonal or rectangular field of view."""

    def paint(self, pixels: Pixels) -> Pixels:
        """Blacken what lies outside the field."""
        height, width = pixels.shape[:2]
        kind = choice(3)
        field = np.zeros((height, width), np.uint8)
        centre = (width / 2 + uniform(-0.04, 0.04) * width, height / 2 + uniform(-0.04, 0.04) * height)
        if kind == 0:
            axes = (round(uniform(0.5, 0.66) * width), round(uniform(0.5, 0.66) * height))
            cv2.ellipse(field, (round(centre[0]), round(centre[1])), axes, 0, 0, 360, 1, -1)
        else:
            half = np.array([uniform(0.44, 0.5) * width, uniform(0.44, 0.5) * height])
            cut = uniform(0.1, 0.35) if kind == 1 else 0.0
            corners = np.array([[1, 1 - cut], [1 - cut, 1], [cut - 1, 1], [-1, 1 - cut],
                                [-1, cut - 1], [cut - 1, -1], [1 - cut, -1], [1, cut - 1]])  # fmt: skip
            cv2.fillPoly(field, [np.rint(corners * half + centre).astype(np.int32)], 1)
        level = choice(18)  # processors' black is seldom 0
        return np.where(field[..., None] > 0, pixels, np.uint8(level))


class GuideBox(OnImage):
    """A coloured box in a corner, with the pale curve of the scope in it."""

    def paint(self, pixels: Pixels) -> Pixels:
        """Paint the box."""
        height, width = pixels.shape[:2]
        box_height, box_width = round(uniform(0.12, 0.32) * height), round(uniform(0.12, 0.32) * width)
        left = choice(2) * (width - box_width)
        top = choice(2) * (height - box_height)
        box = pixels[top : top + box_height, left : left + box_width]
        box[:] = BOXES[choice(len(BOXES))]
        steps = np.linspace(0, 1, 24)
        x = (0.5 + 0.35 * np.sin(steps * uniform(2, 7) + uniform(0, 6))) * (box_width - 1)
        y = (0.1 + 0.8 * steps) * (box_height - 1)
        curve = np.stack([x, y], axis=1).round().astype(np.int32)
        part = np.ascontiguousarray(box)
        cv2.polylines(part, [curve], False, (210, 210, 190), max(1, round(height / 160)), cv2.LINE_AA)
        box[:] = part
        return pixels


class OverlayText(OnImage):
    """Lines of burned-in letters and digits near an edge."""

    def paint(self, pixels: Pixels) -> Pixels:
        """Write one to four lines."""
        height, width = pixels.shape[:2]
        ink, scale = INKS[choice(len(INKS))], uniform(0.25, 0.5) * height / 224
        x, y = round(uniform(0.0, 0.75) * width), round((uniform(0.03, 0.2) + 0.75 * choice(2)) * height)
        for line in range(1 + choice(4)):
            text = "".join(chr(33 + choice(90)) for _ in range(3 + choice(12)))
            place = (x, y + round(line * 30 * scale))
            cv2.putText(pixels, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
        return pixels


class Spots(OnImage):
    """Specular reflections: small bright ellipses with soft edges."""

    def paint(self, pixels: Pixels) -> Pixels:
        """Add up to twelve spots."""
        height, width = pixels.shape[:2]
        light = np.zeros((height, width), np.float32)
        for _ in range(1 + choice(12)):
            place = (choice(width), choice(height))
            axes = (1 + round(uniform(0, 0.025) * width), 1 + round(uniform(0, 0.025) * height))
            cv2.ellipse(light, place, axes, uniform(0, 180), 0, 360, 1.0, -1)
        light = cv2.GaussianBlur(light, (0, 0), height / 220)[..., None]
        return np.asarray(np.rint(pixels * (1 - light) + 250.0 * light), dtype=np.uint8)


class Jpeg(OnImage):
    """Artefacts of compression; the transform of torchvision itself is deprecated together with its codecs."""

    def __init__(self, p: float, low: int, high: int) -> None:
        super().__init__(p)
        self.low, self.high = low, high

    def paint(self, pixels: Pixels) -> Pixels:
        """Encode and decode with a quality from `low` to `high`."""
        quality = self.low + choice(self.high - self.low + 1)
        _, content = cv2.imencode(".jpg", pixels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
        decoded = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), dtype=np.uint8)
        return np.ascontiguousarray(decoded[..., ::-1])
