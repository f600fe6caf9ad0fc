from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.data.cards.card import MaskRule
from cogalign.data.importers.base import RawMask
from cogalign.data.importers.masks import _nearest, class_masks, mask_png


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 999), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_a_mask_png_is_read_by_other_libraries_as_0_and_255(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    content = mask_png(mask)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.mode == "L"
        assert np.array_equal(np.asarray(opened), mask * np.uint8(255))
    read = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read, mask * np.uint8(255))


def test_colours_of_a_jpeg_go_to_the_nearest_named_one(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:24, 8:40] = (255, 0, 0)
    image[32:56, 16:48] = (0, 255, 0)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=85, subsampling=0)
    rule = MaskRule("*", "colours", colours={"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)})
    found = class_masks(RawMask(((tmp_path / "a.jpg", ""),), rule))
    assert set(found) == {"red", "green"}
    for name, channel in (("red", 0), ("green", 1)):
        assert (found[name] ^ (image[..., channel] > 0)).mean() < 0.01


@pytest.mark.parametrize("mode", ["L", "P"])
def test_values_are_classes_and_an_unknown_one_is_an_error(tmp_path: Path, mode: str) -> None:
    values = np.zeros((20, 30), np.uint8)
    values[2:5, 3:9], values[10:15, 10:20] = 1, 3
    image = Image.fromarray(values)
    if mode == "P":
        image = image.convert("P")
        image.putpalette([0, 0, 0, 200, 10, 10, 9, 9, 9, 10, 200, 10])
    image.save(tmp_path / "a.png")
    raw = ((tmp_path / "a.png", ""),)
    found = class_masks(RawMask(raw, MaskRule("*", "values", values={"1": "polyp", "2": "ulcer", "3": "blood"})))
    assert set(found) == {"polyp", "blood"} and np.array_equal(found["blood"], values == 3)
    with pytest.raises(ValueError, match="found the value 3, wanted one of"):
        class_masks(RawMask(raw, MaskRule("*", "values", values={"1": "polyp"})))


def test_files_of_one_class_are_united_and_empty_classes_are_none(tmp_path: Path) -> None:
    parts = np.zeros((3, 16, 16), bool)
    parts[0, 2:5, 2:5] = parts[1, 9:12, 9:12] = True
    for number, part in enumerate(parts):
        (tmp_path / f"{number}.png").write_bytes(mask_png(part))
    files = tuple((tmp_path / f"{number}.png", name) for number, name in enumerate(("BE", "BE", "polyp")))
    found = class_masks(RawMask(files, MaskRule("*", "per_class", class_="{c}")))
    assert list(found) == ["BE"] and np.array_equal(found["BE"], parts[0] | parts[1])
    Image.new("L", (9, 9), 255).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="another size"):
        class_masks(RawMask(files, MaskRule("*", "per_class", class_="{c}")))


def test_coloured_masks_need_few_bytes_a_pixel(tmp_path: Path) -> None:
    image = np.zeros((800, 900, 3), np.uint8)
    image[:400] = (255, 0, 0)
    image[400:] = (0, 255, 0)
    Image.fromarray(image).save(tmp_path / "a.png")
    rule = MaskRule("*", "colours", colours={"red": (255, 0, 0), "green": (0, 255, 0)})
    class_masks(RawMask(((tmp_path / "a.png", ""),), rule))  # what is imported on the way does not count
    tracemalloc.start()
    found = class_masks(RawMask(((tmp_path / "a.png", ""),), rule))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["red"][:400].all() and found["green"][400:].all()
    assert peak < 20 * 800 * 900


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5))
def test_the_nearest_colour_is_that_of_the_least_distance(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (50, 3), dtype=np.uint8)
    colours = [tuple(map(int, row)) for row in generator.integers(0, 256, (count, 3))]
    distances = ((pixels[:, None].astype(int) - np.array(colours)) ** 2).sum(axis=2)
    assert np.array_equal(_nearest(pixels, colours), distances.argmin(axis=1))
