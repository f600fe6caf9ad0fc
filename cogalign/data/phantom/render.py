"""From a spec to pixels. The same spec gives the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.data.phantom.cues import HUES, frame, rotate_hue
from cogalign.data.phantom.lesions import paint
from cogalign.data.phantom.organs import highlights, light, mucosa
from cogalign.data.phantom.spec import PhantomSpec


@dataclass(frozen=True)
class Rendered:
    """Image `[H, W, 3]` uint8 RGB and one mask `[H, W]` bool for each lesion of the spec."""

    image: NDArray[np.uint8]
    masks: tuple[NDArray[np.bool_], ...]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """All lesions."""
        union = np.zeros(self.image.shape[:2], bool)
        for mask in self.masks:
            union |= mask
        return union


def render(spec: PhantomSpec, size: int = 128) -> Rendered:
    """Render `spec` at `size` x `size` pixels.

    Streams of random numbers are separate for wall, light, frame and each lesion, so that the same
    lesion on the same wall can be drawn with another cue.
    """
    wall, lamp, overlay, grain = (np.random.default_rng([spec.seed, stream]) for stream in range(4))
    image, _ = mucosa(wall, spec.organ, size, spec.surface)
    image = rotate_hue(image, HUES[spec.cue])
    masks = []
    for lesion in spec.lesions:
        image, mask = paint(image, lesion)
        masks.append(mask)
    image = light(lamp, image)
    image = highlights(lamp, image, spec.view)
    image = cv2.GaussianBlur(image, (0, 0), 0.0045 * size)
    image = frame(overlay, image, spec.cue)
    image = image + grain.standard_normal(image.shape, dtype=np.float32) * 2.2
    return Rendered(np.clip(image, 0, 255).astype(np.uint8), tuple(masks))
