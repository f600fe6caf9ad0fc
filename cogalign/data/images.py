"""Reading, resizing and fingerprints of images and masks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

THRESHOLD = 127
"""A mask's pixel is lesion above this value: JPEG masks have grey fringes."""


def load_rgb(path: Path) -> Image.Image:
    """The image of a file, wholly decoded, as RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image or is cut off.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise many kinds on broken bytes: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{path}: not a readable image ({error})") from None


def load_mask(path: Path) -> np.ndarray:
    """The mask of a file as a bool array (height, width): True above grey value 127.

    Raises:
        FileNotFoundError, ValueError: as `load_rgb`.
    """
    return np.asarray(load_rgb(path).convert("L")) > THRESHOLD


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's header alone.

    Raises:
        FileNotFoundError, ValueError: as `load_rgb`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # decoders raise many kinds on broken bytes: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{path}: not a readable image ({error})") from None


def resize_image(image: np.ndarray, side: int) -> np.ndarray:
    """A uint8 image (height, width, 3) as a square of `side` pixels: area average to shrink, bicubic to enlarge."""
    shrinks = image.shape[0] * image.shape[1] >= side * side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def resize_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """A bool mask (height, width) as a square of `side` pixels: nearest neighbour, so that it stays bool."""
    return cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image to find it again."""

    digest: str
    """SHA-256 of the decoded pixels."""
    bits: int
    """64 bits: signs of the lowest frequencies of the grey image."""
    thumbnail: np.ndarray
    """Grey image of 32 x 32 pixels, float32."""
    size: tuple[int, int]
    """Width and height in pixels."""


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Fingerprint of a uint8 image (height, width, 3).

    The bits are the perceptual hash of Zauner (2010): an 8 x 8 block of low frequencies of the discrete
    cosine transform of a 32 x 32 grey image, each compared with the block's median.
    """
    shape = np.array(image.shape, dtype=np.int64).tobytes()
    digest = hashlib.sha256(shape + np.ascontiguousarray(image).tobytes()).hexdigest()
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    thumbnail = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    block = cv2.dct(thumbnail)[1:9, 1:9].ravel()
    bits = int("".join("1" if value else "0" for value in block > np.median(block)), 2)
    return Fingerprint(digest, bits, thumbnail, (image.shape[1], image.shape[0]))
