"""In every family a batch with the pixel cache is the batch without it, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cogalign.data.lazy_image import LazyImage
from cogalign.models.load import LoadedModel
from cogalign.models.pixel_cache import CachedImageProcessor, separable, with_pixel_cache
from cogalign.models.pixel_store import SUFFIX
from cogalign.models.prompts import Inputs, encode_prompts
from tests.families import twins
from tests.families.whole import Rows

ASKED = ["What?", "Where is it?", "What is the diagnosis of this?", "Why?", "How large?"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, image_rows: Rows) -> list[Path]:
    """The images of `image_rows`, two of which have the same size, as files."""
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number, image in enumerate(image for row in image_rows for image in row):
        paths.append(folder / f"{number}.png")
        image.save(paths[-1])
    return paths[:5]


def lazy(files: list[Path]) -> list[LazyImage]:
    return [LazyImage(path) for path in files]


def decoded(images: list[LazyImage]) -> int:
    return sum(image._im is not None for image in images)


def same(a: Inputs, b: Inputs) -> bool:
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_batches_are_the_same_and_each_image_is_decoded_and_processed_once(
    twin: LoadedModel, files: list[Path], tmp_path: Path
) -> None:
    processor = with_pixel_cache(twin.processor, tmp_path, 1.0)
    cache = processor.image_processor
    assert isinstance(cache, CachedImageProcessor) and not isinstance(twin.processor.image_processor, type(cache))
    plain = [Image.open(path).convert("RGB") for path in files]
    for places in ([0, 1], [2, 0, 3, 1, 4], [4], [3, 2, 1]):
        images, questions = [plain[i] for i in places], [ASKED[i] for i in places]
        found = encode_prompts(processor, lazy([files[i] for i in places]), questions)
        assert same(found, encode_prompts(twin.processor, images, questions))
    assert cache.processed == len(list(tmp_path.rglob(f"*{SUFFIX}"))) == len(files)
    again, images = with_pixel_cache(twin.processor, tmp_path, 1.0), lazy(files)
    assert same(encode_prompts(again, images, ASKED), encode_prompts(twin.processor, plain, ASKED))
    assert again.image_processor.processed == decoded(images) == 0


def test_prompts_with_several_images_and_images_without_a_file_go_past_the_cache(
    twin: LoadedModel, files: list[Path], image_rows: Rows, tmp_path: Path
) -> None:
    processor = with_pixel_cache(twin.processor, tmp_path, 1.0)
    rows: Any = [[image] if index else lazy(files[:2]) for index, image in enumerate(lazy(files)[:3])]
    wanted = [[Image.open(one.path).convert("RGB") for one in row] for row in rows]
    assert same(encode_prompts(processor, rows, ASKED[:3]), encode_prompts(twin.processor, wanted, ASKED[:3]))
    assert same(encode_prompts(processor, image_rows, ASKED[:4]), encode_prompts(twin.processor, image_rows, ASKED[:4]))
    assert not list(tmp_path.rglob(f"*{SUFFIX}"))


def test_a_file_that_changes_and_other_limits_of_pixels_give_other_entries(files: list[Path], tmp_path: Path) -> None:
    twin = twins.build("qwen3_vl")
    path, image = tmp_path / "a.bmp", Image.open(files[0]).convert("RGB")
    image.save(path)
    times = path.stat()
    processor = with_pixel_cache(twin.processor, tmp_path, 1.0)
    before = encode_prompts(processor, lazy([path]), ASKED[:1])
    image.point(lambda value: 255 - value).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as some tools do: the time and the size of before
    assert path.stat().st_size == times.st_size and path.stat().st_mtime_ns == times.st_mtime_ns
    after = encode_prompts(processor, lazy([path]), ASKED[:1])
    assert not torch.equal(before["pixel_values"], after["pixel_values"])
    twin.processor.image_processor.size = type(twin.processor.image_processor.size)(
        shortest_edge=16 * 16, longest_edge=32 * 32
    )
    smaller = encode_prompts(with_pixel_cache(twin.processor, tmp_path, 1.0), lazy([path]), ASKED[:1])
    assert same(smaller, encode_prompts(twin.processor, lazy([path]), ASKED[:1]))
    assert smaller["pixel_values"].shape != after["pixel_values"].shape
    assert len(list(tmp_path.rglob(f"*{SUFFIX}"))) == 3


def test_an_image_processor_that_looks_at_all_images_of_a_batch_is_noticed_and_not_cached(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import PixtralImageProcessor, Qwen2VLImageProcessor

    assert not separable(PixtralImageProcessor(), {"return_tensors": "pt"})  # pads to the largest of the batch

    class Relative(Qwen2VLImageProcessor):
        """Brightness is relative to the batch."""

        def __call__(self, images: Any, **options: Any) -> Any:
            found = super().__call__(images, **options)
            found["pixel_values"] = found["pixel_values"] - found["pixel_values"].mean()
            return found

    twin = twins.build("qwen3_vl")
    own = twin.processor.image_processor
    twin.processor.image_processor = Relative(**{name: getattr(own, name) for name in ("size", "patch_size")})
    assert with_pixel_cache(twin.processor, tmp_path, 1.0) is twin.processor
    assert "Relative makes other tensors of several images than of each one" in capsys.readouterr().err


@pytest.mark.parametrize("gigabytes", [None, 0])
def test_without_room_there_is_no_cache(twin: LoadedModel, gigabytes: float | None, tmp_path: Path) -> None:
    assert with_pixel_cache(twin.processor, tmp_path, gigabytes) is twin.processor
    assert not list(tmp_path.iterdir())
