"""Reading, resizing and fingerprints of images and masks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFile

THRESHOLD = 127
"""A mask's pixel is lesion above this value: JPEG masks have grey fringes."""
LABELS = 16
"""In a mask without a brighter pixel the values are class numbers: all but 0 are lesion."""
NOISE = 32
"""A lossy mask without a brighter pixel holds nothing but the traces of its compression."""
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP")
COLOURED = 48
"""A mask is coloured if the channels of some pixel differ by more than this."""
DEPTHS = (255, 4095, 65535)
"""Largest values of what is stored in 16 bits: 8, 12 or 16 of them are used."""


def load_rgb(path: Path) -> Image.Image:
    """The image of a file, wholly decoded, as RGB.

    Grey becomes three equal channels; a palette is resolved; what is transparent becomes black, as the frame around an
    endoscopic picture is; 16 bits become 8 (`eight_bits`). An EXIF orientation is not heeded: masks have none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image or is cut off.
    """
    return _decoded(path)[0]


def load_mask(path: Path) -> np.ndarray:
    """The mask of a file as a bool array (height, width): True on any lesion.

    Masks come in many ranges. Lesion is what is brighter than 127. A mask without such a pixel is read by its own
    range, lest it vanish: up to 16 its values are classes and all but 0 are lesion; above, lesion is what is brighter
    than half of its brightest pixel. A JPEG whose brightest pixel is below 32 is empty. Of coloured masks the brightest
    channel counts; where colour says nothing and transparency does, what is opaque is lesion.

    Raises:
        FileNotFoundError, ValueError: as `load_rgb`.
    """
    plain = _one_channel(path)
    if plain is not None:
        return _lesion(*plain)
    image, alpha, lossy = _decoded(path)
    colours = np.asarray(image)
    brightest, darkest = colours.max(axis=-1), colours.min(axis=-1)
    coloured = bool((brightest.astype(np.int16) - darkest > COLOURED).any())
    values = brightest if coloured else np.asarray(image.convert("L"))
    if alpha is not None and alpha.min() < alpha.max():
        opaque = colours[alpha > THRESHOLD]
        if opaque.size == 0 or (opaque == opaque[0]).all():
            values = alpha
    return _lesion(values, lossy)


def _lesion(values: np.ndarray, lossy: bool) -> np.ndarray:
    """Where values (height, width; uint8) are lesion; see `load_mask` for the rule."""
    peak = int(values.max())
    if peak > THRESHOLD:
        return values > THRESHOLD
    if lossy:
        return values > peak / 2 if peak >= NOISE else np.zeros(values.shape, dtype=bool)
    return values > (0 if peak <= LABELS else peak / 2)


def _one_channel(path: Path) -> tuple[np.ndarray, bool] | None:
    """Values of a file of one channel of 8 bits, as nearly all masks are, and whether its format is lossy; else None."""
    try:
        with Image.open(path) as opened:
            if opened.mode != "L" or opened.has_transparency_data or _is_deep(opened):
                return None
            return np.asarray(opened), opened.format in LOSSY
    except Exception:  # whatever is wrong with it, the general reader says it
        return None


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Values of more than 8 bits as uint8: [0, largest] to [0, 255], rounded.

    The largest value is not that of the image, which would brighten each image differently, but that of the fewest
    bits which hold it: 255 (nothing changes), 4095 or 65535. Fractions in [0, 1] are multiplied by 255; below 0 is 0.
    """
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    peak = float(values.max(initial=0.0))
    if 0 < peak <= 1 and not np.array_equal(values, np.rint(values)):
        largest = 1.0
    else:
        largest = float(next((depth for depth in DEPTHS if peak <= depth), peak))
    return np.clip(np.rint(values * (255.0 / largest)), 0, 255).astype(np.uint8)


def _decoded(path: Path) -> tuple[Image.Image, np.ndarray | None, bool]:
    """RGB image over black, its opacity (uint8, None without one), and whether the file's format is lossy."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with Image.open(path) as opened:
            lossy = opened.format in LOSSY
            image: Image.Image = opened
            if _is_deep(opened):
                image = _deep(path, opened)
            elif opened.mode in ("I", "F"):
                image = Image.fromarray(eight_bits(np.asarray(opened)))
            if not image.has_transparency_data:
                return image.convert("RGB"), None, lossy
            layered = image.convert("RGBA")
    except Exception as error:  # decoders raise many kinds on broken bytes: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{path}: not a readable image ({error})") from None
    alpha = np.asarray(layered.getchannel("A"))
    if alpha.min() == 255:
        return layered.convert("RGB"), None, lossy
    black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, layered).convert("RGB"), alpha, lossy


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether the file holds 16 bits a channel; Pillow itself keeps only the upper 8 of colours."""
    raw = image.tile[0].args if image.tile else ""
    name = raw if isinstance(raw, str) else next((part for part in raw or () if isinstance(part, str)), "")
    return image.mode.startswith("I;16") or ";16" in name


def _deep(path: Path, image: Image.Image) -> Image.Image:
    """The image of a file with 16 bits a channel, with 8."""
    image.load()  # a file that is cut off fails here
    values = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        values = np.asarray(image)
    elif values.ndim == 3:
        values = np.dstack((values[..., 2::-1], values[..., 3:]))
    if values.ndim == 3 and values.shape[2] == 4:
        opacity = eight_bits(values[..., 3])
        return Image.fromarray(np.dstack((eight_bits(values[..., :3]), opacity)))
    return Image.fromarray(eight_bits(values))


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
