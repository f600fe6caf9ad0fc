"""Reading, resizing and fingerprints of images and masks."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import xxhash
from PIL import Image, ImageFile, UnidentifiedImageError

from cogalign.models.pictures import FORMATS as FORMATS
from cogalign.models.pictures import open_image as open_image

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


MAX_PIXELS = 178_956_970
"""An image of more pixels is not decoded: Pillow's own limit, here for every format."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DECODERS = (None, errno.EINVAL, errno.EOVERFLOW)
"""Numbers of the errors that broken bytes lead to (none, or a place that no file has); the others are the system's."""
_SAMPLES = (1, 3, 4)
_PIXEL_BYTES = 8
"""Bytes of the largest pixel of a TIFF: four samples of 16 bits."""
_PLAIN_FORMATS = ("JPEG", "PNG", "BMP")
_ORIENTATION = 0x0112


class Unreadable(ValueError):
    """The disk or the network did not give a file's bytes; the file itself may be sound, and another try may do."""


class Decoded(NamedTuple):
    """A file's image, and what its format says of it."""

    image: Image.Image
    """RGB, over black."""
    alpha: np.ndarray | None
    """Opacity (height, width; uint8), or None if all is opaque."""
    lossy: bool
    plain: bool
    """JPEG, PNG or BMP of 8 bits without transparency and rotation: every library reads the same pixels from it."""


def load_rgb(path: Path) -> Image.Image:
    """The image of a file, wholly decoded, as RGB.

    Grey becomes three equal channels; a palette is resolved; what is transparent becomes black, as the frame around an
    endoscopic picture is; 16 bits become 8 (`eight_bits`). An EXIF orientation is not heeded: masks have none. TIFFs
    that Pillow cannot open (three samples that are called grey, as in CVC-ClinicDB) are read by tifffile.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, is cut off, or has more than `MAX_PIXELS`.
        Unreadable: a `ValueError` for what is no fault of the file: the disk or network fails, or permission is missing.
    """
    return decode(path).image


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
    image, alpha, lossy, _ = decode(path)
    colours = np.asarray(image)
    red, green, blue = cv2.split(colours)
    brightest = cv2.max(cv2.max(red, green), blue)
    darkest = cv2.min(cv2.min(red, green), blue)
    coloured = cv2.subtract(brightest, darkest).max() > COLOURED
    values = brightest if coloured else cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
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
    """Grey values of a file that has no others, and whether its format is lossy; None: the general reader is needed.

    That is a file of one channel of 8 bits, as nearly all masks are, or a whole JPEG whose colours, looked at in an
    eighth of its size, are all grey: then its brightness alone is decoded, in full size, which takes a third of the time.
    """
    content = _whole_jpeg(path)
    if content is not None:
        buffer = np.frombuffer(content, dtype=np.uint8)
        small = cv2.imdecode(buffer, cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION)
        if small is None or _colours_differ(small, COLOURED // 4):
            return None
        grey = cv2.imdecode(buffer, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
        return None if grey is None else (grey, True)
    try:
        with open_image(path) as opened:
            _refuse_bomb(path, opened.size)
            if opened.mode != "L" or opened.has_transparency_data or _is_deep(opened):
                return None
            return np.asarray(opened), opened.format in LOSSY
    except Exception:  # whatever is wrong with it, the general reader says it
        return None


def _colours_differ(image: np.ndarray, most: int) -> bool:
    """Whether the channels of some pixel (height, width, 3; uint8) differ by more than `most`; channel by channel is fast."""
    red, green, blue = cv2.split(image)
    pairs = ((red, green), (green, blue), (red, blue))
    return any(int(cv2.absdiff(one, other).max()) > most for one, other in pairs)


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


def decode(path: Path) -> Decoded:
    """The image of a file, wholly decoded; see `load_rgb` for the rules and the errors."""
    try:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such image")
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: not a readable image (the file is empty)")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        try:
            with open_image(path) as opened:
                return _from_pillow(path, opened)
        except UnidentifiedImageError:
            return _from_tiff(path)
    except _TooLarge:
        raise
    except Exception as error:  # decoders raise many kinds on broken bytes: OSError, SyntaxError, struct.error, ...
        if isinstance(error, OSError) and error.errno not in _DECODERS:
            raise _unreadable(path, error) from None
        raise ValueError(f"{path}: not a readable image ({error})") from None


def _unreadable(path: Path, error: OSError) -> Unreadable:
    return Unreadable(f"{path}: cannot be read now ({error.strerror or error})")


def load_pixels(path: Path) -> tuple[np.ndarray, bool]:
    """The pixels of `load_rgb` as a uint8 array (height, width, 3), and whether the file is plain (see `Decoded`).

    Whole JPEGs are decoded by OpenCV, into the array itself, which is a third faster; the same libjpeg gives the same
    pixels. OpenCV fills what is cut off with grey, so files that do not end as a JPEG must are left to Pillow.

    Raises:
        FileNotFoundError, ValueError: as `load_rgb`.
    """
    content = _whole_jpeg(path)
    if content is not None:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
        if image is not None:
            return image, True
    decoded = decode(path)
    return np.asarray(decoded.image), decoded.plain


def _whole_jpeg(path: Path) -> bytes | None:
    """The bytes of a JPEG of three channels that ends as it must and is not turned; None for any other file."""
    try:
        with path.open("rb") as stream:
            content = stream.read()
            if content[:3] != b"\xff\xd8\xff" or content[-2:] != b"\xff\xd9":
                return None
            with open_image(stream) as opened:
                _refuse_bomb(path, opened.size)
                turned = "exif" in opened.info and opened.getexif().get(_ORIENTATION, 1) != 1
                return content if opened.mode == "RGB" and opened.format == "JPEG" and not turned else None
    except Exception:  # whatever is wrong with it, the general reader says it
        return None


class _TooLarge(ValueError):
    """An image above `MAX_PIXELS`."""


def _refuse_bomb(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise _TooLarge(f"{path}: {size[0]} x {size[1]} pixels, which is above the limit of {MAX_PIXELS:,} pixels")


def _from_pillow(path: Path, opened: ImageFile.ImageFile) -> Decoded:
    """What Pillow reads."""
    _refuse_bomb(path, opened.size)
    lossy = opened.format in LOSSY
    image: Image.Image = opened
    if _is_deep(opened):
        image = _deep(path, opened)
    elif opened.mode in ("I", "F"):
        image = Image.fromarray(eight_bits(np.asarray(opened)))
    if not image.has_transparency_data:
        image.load()
        plain = image is opened and opened.format in _PLAIN_FORMATS and opened.mode in ("RGB", "L", "P", "1")
        turned = plain and "exif" in opened.info and opened.getexif().get(_ORIENTATION, 1) != 1
        return Decoded(image if image.mode == "RGB" else image.convert("RGB"), None, lossy, plain and not turned)
    layered = image.convert("RGBA")
    alpha = np.asarray(layered.getchannel("A"))
    if alpha.min() == 255:
        return Decoded(layered.convert("RGB"), None, lossy, False)
    black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
    return Decoded(Image.alpha_composite(black, layered).convert("RGB"), alpha, lossy, False)


def _from_tiff(path: Path) -> Decoded:
    """What tifffile reads: the first page, one, three or four samples a pixel."""
    with path.open("rb") as stream:
        if stream.read(4) not in _TIFF:
            raise ValueError("cannot identify the format")
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        _refuse_bomb(path, (page.imagewidth, page.imagelength))
        if page.samplesperpixel not in _SAMPLES:
            raise ValueError(f"found {page.samplesperpixel} samples a pixel, wanted 1, 3 or 4")
        if page.nbytes > _PIXEL_BYTES * page.imagewidth * page.imagelength:
            raise ValueError(f"found {page.nbytes:,} bytes, wanted one layer of at most {_PIXEL_BYTES} bytes a pixel")
        values = page.asarray()
    if values.ndim == 3 and page.axes == "SYX":  # the samples lie in planes
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise ValueError(f"found samples of shape {values.shape}, wanted 1, 3 or 4 a pixel")
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    values = values if values.dtype == np.uint8 else eight_bits(values)
    return Decoded(
        Image.fromarray(np.ascontiguousarray(values[..., :3] if values.ndim == 3 else values)).convert("RGB"),
        None,
        False,
        False,
    )


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
        with open_image(path) as image:
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
    """XXH3 (128 bits) of the decoded pixels and their shape: equal for equal images; no shield against forgery."""
    bits: int
    """64 bits: signs of the lowest frequencies of the grey image."""
    thumbnail: np.ndarray
    """Grey image of 32 x 32 pixels: float32, or whole levels (uint8) as `fingerprints.npz` keeps it."""
    size: tuple[int, int]
    """Width and height in pixels."""


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Fingerprint of a uint8 image (height, width, 3).

    The bits are the perceptual hash of Zauner (2010): an 8 x 8 block of low frequencies of the discrete
    cosine transform of a 32 x 32 grey image, each compared with the block's median.
    """
    digest = xxhash.xxh3_128(np.array(image.shape, dtype=np.int64).tobytes())
    digest.update(np.ascontiguousarray(image).data)
    grey = _shrunk(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).astype(np.float32)
    thumbnail = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    block = cv2.dct(thumbnail)[1:9, 1:9].ravel()
    bits = int("".join("1" if value else "0" for value in block > np.median(block)), 2)
    return Fingerprint(digest.hexdigest(), bits, thumbnail, (image.shape[1], image.shape[0]))


def _shrunk(grey: np.ndarray) -> np.ndarray:
    """A grey image shrunk by a whole factor, by block means, to a shorter side of 128 pixels or a little more.

    Whole factors are many times faster than others; up to a factor less one of the pixels at the edges, which is less
    than one in 128, is left out, in equal parts on both sides.
    """
    height, width = grey.shape
    factor = min(height, width) // 128
    if factor < 2:
        return grey
    rows, columns = height // factor, width // factor
    top, left = (height - rows * factor) // 2, (width - columns * factor) // 2
    part = grey[top : top + rows * factor, left : left + columns * factor]
    return cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
