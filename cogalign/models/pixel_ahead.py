"""Images of the next prompts, read and processed in a thread while the model computes.

Training by SFT has worker processes for it. Sampling and evaluation encode their prompts where the model is; there the
pixel cache is filled one batch ahead, so that encoding them finds everything done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from PIL import Image

from cogalign.models.pixel_cache import CachedImageProcessor

T = TypeVar("T")


class Ahead:
    """A thread that fills the pixel cache of a processor; without a cache it does nothing."""

    def __init__(self, processor: Any) -> None:
        """Begin with nothing to do.

        Args:
            processor: of `cogalign.models.pixel_cache.with_pixel_cache`, or any other.
        """
        inner = getattr(processor, "image_processor", None)
        # a twin: what an encoder learns of numbers belongs to one thread
        self._cache = inner.twin() if isinstance(inner, CachedImageProcessor) else None
        self._pool: ThreadPoolExecutor | None = None
        self._latest: Future[Any] | None = None

    @property
    def active(self) -> bool:
        """Whether there is a cache to fill."""
        return self._cache is not None

    def submit(self, make: Callable[[], Sequence[Image.Image]]) -> Future[list[Image.Image]] | None:
        """Let the thread make images, and process those that the cache can keep and does not have.

        Args:
            make: gives the images; called in the thread.

        Returns:
            The images as they will be; None without a cache.
        """
        if self._cache is None:
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="pixels")
        self._latest = self._pool.submit(self._fill, make)
        return self._latest

    def wait(self) -> None:
        """Until what was submitted last is done; errors are left to whoever needs the images."""
        if self._latest is not None:
            wait([self._latest])

    def close(self) -> None:
        """End the thread; what it has not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._latest = None

    def _fill(self, make: Callable[[], Sequence[Image.Image]]) -> list[Image.Image]:
        assert self._cache is not None
        images = list(make())
        for image in images:
            self._cache.warm(image)
        return images


def batches_ahead(
    processor: Any, batches: Sequence[T], make: Callable[[T], Sequence[Image.Image]]
) -> Iterator[list[Image.Image]]:
    """The images of each batch, those of the next one got ready meanwhile; without a cache only when it is their turn.

    Args:
        processor: as for `Ahead`.
        batches: in their order.
        make: gives the images of a batch.

    Raises:
        Whatever `make` raises, when it is the batch's turn.
    """
    ahead = Ahead(processor)
    try:
        coming = ahead.submit(lambda: make(batches[0])) if batches else None
        for place, batch in enumerate(batches):
            images = list(make(batch)) if coming is None else coming.result()
            if place + 1 < len(batches):
                coming = ahead.submit(lambda following=batches[place + 1]: make(following))  # type: ignore[misc]
            yield images
    finally:
        ahead.close()
