"""What a processor makes of an image, computed once a run.

`with_pixel_cache` gives a processor whose image processor looks into a `PixelStore` first. An image that has a
`cache_key` (see `cogalign.data.lazy_image`) and is alone in its prompt is processed once; later its tensors are read,
and its file is not decoded again. Batches are the same, bit for bit: a family of which that is not so is found by a
comparison beforehand and is not cached.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cogalign import __version__
from cogalign.models.pixel_codec import PackedTensor, PixelCodec, decode
from cogalign.models.pixel_store import PixelStore
from cogalign.models.prompts import encode_prompts
from cogalign.training.progress import say

if TYPE_CHECKING:
    from cogalign.models.load import LoadedModel

FOLDER = "cache"
"""Folder of the cache in a run's folder. It may be deleted at any time."""
GIGABYTE = 10**9
LIBRARIES = ("transformers", "torch", "torchvision", "pillow", "opencv-python-headless")
"""Whose code makes pixels: another version gives other entries."""
PROBE_SIZES = ((64, 64), (96, 40), (40, 96), (64, 64), (640, 512), (1001, 333), (640, 512))
"""Width and height of the images by which joint and single processing are compared: some alike, some not."""


class CachedImageProcessor:
    """An image processor that computes the tensors of an image once. All else is that of the processor inside."""

    def __init__(self, inner: Any, store: PixelStore, options: dict[str, Any]) -> None:
        """Put a store before a processor.

        Args:
            inner: the processor; its settings must not change any more.
            store: of the tensors.
            options: of the calls that may be answered from the store.
        """
        self.inner, self.store, self.options = inner, store, options
        self.processed = 0
        """Images that were processed in this process, because they were not in the store."""
        self._configuration = configuration(inner, options)

    def __getattr__(self, name: str) -> Any:
        """What is not the cache's own."""
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, images: Any, **options: Any) -> Any:
        """Tensors of the images of prompts, as the processor inside gives them.

        Args:
            images: the images of each prompt; what is not a list of lists of one image with a `cache_key` goes to the
                processor inside as it is.
            options: of the processor inside.
        """
        keys = _keys(images)
        if keys is None or options != self.options:
            return self.inner(images, **options)
        joined = _joined([self._fields(row[0], key) for row, key in zip(images, keys, strict=True)])
        if joined is None:  # unlike the images of the comparison: no loss but of time
            return self.inner(images, **options)
        from transformers import BatchFeature

        return BatchFeature(joined)

    def twin(self) -> CachedImageProcessor:
        """Another one before the same processor and folder, for another thread."""
        return CachedImageProcessor(self.inner, self.store.twin(), self.options)

    def warm(self, image: Image.Image) -> None:
        """Process an image if it can be kept and is not there; errors are left to whoever needs it."""
        keys = _keys([[image]])
        if keys is not None and not self.store.stopped and not self.store.has(_digest(self._configuration, keys[0])):
            with suppress(OSError, ValueError):
                self._fields(image, keys[0])

    def _fields(self, image: Image.Image, key: str) -> dict[str, Any]:
        """Tensors and plain values of one image."""
        name = _digest(self._configuration, key)
        found = self.store.get(name)
        if found is None:
            self.processed += 1
            found = dict(self.inner([[image]], **self.options))
            self.store.put(name, found)
        return found


def with_pixel_cache(processor: Any, run_dir: Path, cache_gb: float | None) -> Any:
    """A processor that computes the tensors of each image once.

    Args:
        processor: of the model; it is not changed, and is the one to be saved with a model.
        run_dir: folder of the run; the cache is in `cache/` there, for all its stages and processes.
        cache_gb: most gigabytes of disk for it; None or 0 gives `processor` itself.

    Returns:
        A shallow copy of `processor` with a `CachedImageProcessor`; `processor` itself where joint and single
        processing differ, which is said once.
    """
    if not cache_gb:
        return processor
    inner = processor.image_processor
    options = _options(processor)
    if options is None or not separable(inner, options):
        _told(type(inner).__name__)
        return processor
    changed = copy.copy(processor)
    store = PixelStore(run_dir / FOLDER, int(cache_gb * GIGABYTE))
    store.recount()
    changed.image_processor = CachedImageProcessor(inner, store, options)
    return changed


def cached(loaded: LoadedModel, run_dir: Path, cache_gb: float | None) -> LoadedModel:
    """The same model with the processor of `with_pixel_cache`; what is saved should be `loaded`, not this."""
    return replace(loaded, processor=with_pixel_cache(loaded.processor, run_dir, cache_gb))


def separable(image_processor: Any, options: dict[str, Any]) -> bool:
    """Whether the tensors of several prompts are those of each one put together, bit for bit.

    It is tried with noise: images of like and of different sizes.
    """
    rng = np.random.default_rng(0)
    sizes = [(height, width, 3) for width, height in PROBE_SIZES]
    rows = [[Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))] for size in sizes]
    try:
        together = dict(image_processor(rows, **options))
        codec = PixelCodec()
        parts = [decode(codec.encode(dict(image_processor([row], **options)))) for row in rows]
    except (TypeError, ValueError, RuntimeError):  # not to be written, or not for images of different sizes
        return False
    joined = _joined(parts)
    return (
        joined is not None
        and list(joined) == list(together)
        and all(_same(joined[name], together[name]) for name in together)
    )


def configuration(image_processor: Any, options: dict[str, Any]) -> str:
    """Digest of all that the tensors of an image depend on, but for the image: settings, class, libraries."""
    content = {
        "class": f"{type(image_processor).__module__}.{type(image_processor).__qualname__}",
        "settings": image_processor.to_dict(),
        "options": options,
        "versions": _versions(),
    }
    return _digest(json.dumps(content, sort_keys=True, default=str))


@cache
def _versions() -> dict[str, str]:
    found = {"cogalign": __version__}
    for library in LIBRARIES:
        try:
            found[library] = installed_version(library)
        except PackageNotFoundError:
            found[library] = ""
    return found


@cache
def _told(name: str) -> None:
    say(f"note: {name} makes other tensors of several images than of each one: pixels are not cached")


def _digest(*texts: str) -> str:
    return blake2b("\0".join(texts).encode(), digest_size=20).hexdigest()


def _keys(images: Any) -> list[str] | None:
    """The keys of prompts with one image each, or None if they are anything else."""
    if not isinstance(images, list | tuple) or not images:
        return None
    if not all(isinstance(row, list | tuple) and len(row) == 1 for row in images):
        return None
    keys = [getattr(row[0], "cache_key", None) for row in images]
    return None if None in keys else [str(key) for key in keys]


def _options(processor: Any) -> dict[str, Any] | None:
    """The options with which a processor calls its image processor for a prompt; None if it does not call it."""
    probe = copy.copy(processor)
    probe.image_processor = listening = _Listening(processor.image_processor)
    with suppress(_Asked):
        encode_prompts(probe, [Image.new("RGB", (64, 64))], ["?"])
    return listening.options


class _Asked(Exception):
    """The call has been seen."""


class _Listening:
    """An image processor that notes the options of its call and ends it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.options: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, images: Any, **options: Any) -> Any:
        self.options = options
        raise _Asked


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The fields of several prompts from those of each: tensors along axis 0, zeros where axis 1 differs; lists.

    None where they cannot be put together in this way.
    """
    joined: dict[str, Any] = {}
    for name in parts[0]:
        values: list[Any] = [part.get(name) for part in parts]
        if all(isinstance(value, Tensor | PackedTensor) for value in values):
            found = _stacked(values)
            if found is None:
                return None
            joined[name] = found
        elif all(isinstance(value, list) for value in values):
            joined[name] = [item for value in values for item in value]
        elif len(parts) == 1:
            joined[name] = values[0]
        else:
            return None
    return joined


def _stacked(parts: Sequence[Tensor | PackedTensor]) -> Tensor | None:
    """As `cogalign.models.inputs.stacked` along axis 1, but packed tensors are unpacked where they belong."""
    first = parts[0]
    if len(parts) == 1:
        return first.tensor() if isinstance(first, PackedTensor) else first
    shapes = [tuple(part.shape) for part in parts]
    if (
        not shapes[0]
        or len({(part.dtype, shape[2:], len(shape)) for part, shape in zip(parts, shapes, strict=True)}) > 1
    ):
        return None
    longest = [max(shape[1] for shape in shapes)] if len(shapes[0]) > 1 else []
    make = torch.empty if len({shape[1:2] for shape in shapes}) == 1 else torch.zeros
    found = make([sum(shape[0] for shape in shapes), *longest, *shapes[0][2:]], dtype=first.dtype)
    begin = 0
    for part, shape in zip(parts, shapes, strict=True):
        target = found[begin : begin + shape[0]]
        target = target[:, : shape[1]] if longest else target
        if isinstance(part, PackedTensor) and target.is_contiguous():
            part.into(target.view(-1))
        else:
            target.copy_(part.tensor() if isinstance(part, PackedTensor) else part)
        begin += shape[0]
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)
