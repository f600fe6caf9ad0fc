import threading
from pathlib import Path

import pytest
from PIL import Image

from cogalign.data.lazy_image import LazyImage
from cogalign.models.load import LoadedModel
from cogalign.models.pixel_ahead import Ahead, batches_ahead
from cogalign.models.pixel_cache import with_pixel_cache
from cogalign.models.pixel_store import STOPPED, SUFFIX
from cogalign.models.prompts import encode_prompts


@pytest.fixture
def files(pictures: list[Image.Image], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return paths


def test_the_next_batch_is_processed_while_this_one_is_used(
    tiny: LoadedModel, files: list[Path], tmp_path: Path
) -> None:
    processor = with_pixel_cache(tiny.processor, tmp_path, 1.0)
    made_in: list[str] = []

    def make(batch: list[Path]) -> list[LazyImage]:
        made_in.append(threading.current_thread().name)
        return [LazyImage(path) for path in batch]

    batches = [files[:2], files[2:]]
    for batch, images in zip(batches, batches_ahead(processor, batches, make), strict=True):
        assert [image.path for image in images] == batch  # type: ignore[attr-defined]
        encode_prompts(processor, images, ["What?"] * 2)
    assert processor.image_processor.processed == 0  # the thread has done it
    assert len(made_in) == 2 and all(name.startswith("pixels") for name in made_in)
    assert len(list(tmp_path.rglob(f"*{SUFFIX}"))) == 4


def test_without_a_cache_images_are_made_when_it_is_their_turn(tiny: LoadedModel, files: list[Path]) -> None:
    made: list[Path] = []

    def make(batch: list[Path]) -> list[LazyImage]:
        made.extend(batch)
        return [LazyImage(path) for path in batch]

    for number, _ in enumerate(batches_ahead(tiny.processor, [[path] for path in files], make), start=1):
        assert made == files[:number]
    assert Ahead(tiny.processor).submit(lambda: []) is None and not Ahead(object()).active


def test_errors_come_when_it_is_the_turn_of_the_batch_and_the_thread_ends(
    tiny: LoadedModel, files: list[Path], tmp_path: Path
) -> None:
    processor = with_pixel_cache(tiny.processor, tmp_path, 1.0)
    files[1].write_bytes(b"no image")
    batches = batches_ahead(processor, [files[:1], files[1:2], [tmp_path / "gone.png"]], lambda some: [LazyImage(p) for p in some])  # fmt: skip
    assert len(next(batches)) == 1
    [damaged] = next(batches)
    with pytest.raises(ValueError, match="not a readable image"):
        damaged.load()
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        next(batches)
    assert not any(thread.name.startswith("pixels") for thread in threading.enumerate())


def test_a_full_cache_costs_no_work_ahead(tiny: LoadedModel, files: list[Path], tmp_path: Path) -> None:
    processor = with_pixel_cache(tiny.processor, tmp_path, 1e-6)
    encode_prompts(processor, [LazyImage(files[0])], ["What?"])
    assert (tmp_path / "cache" / STOPPED).exists()
    ahead = Ahead(processor)
    coming = ahead.submit(lambda: [LazyImage(path) for path in files])
    assert coming is not None and all(image._im is None for image in coming.result())
    ahead.close()
