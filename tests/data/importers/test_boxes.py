from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.cards.card import BoxRule
from cogalign.data.importers.base import RawBox
from cogalign.data.importers.boxes import Boxes, _corners
from cogalign.data.importers.tree import Tree
from cogalign.data.importers.work import _box


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([(1920, 1080), (576, 576), (1350, 1080), (640, 480)]), st.data())
def test_whole_pixels_written_as_shares_of_six_decimals_come_back(size: tuple[int, int], data: st.DataObject) -> None:
    sides = []
    for extent in size:
        low = data.draw(st.integers(0, extent - 2))
        sides.append((low, data.draw(st.integers(low + 1, extent))))
    shares = [
        (round((low + high) / 2 / extent, 6), round((high - low) / extent, 6))
        for (low, high), extent in zip(sides, size, strict=True)
    ]
    (x, width), (y, height) = shares
    raw = RawBox("p", x - width / 2, y - height / 2, x + width / 2, y + height / 2, relative=True)
    box = _box(raw, "polyp", *size, None)
    assert ((box.xmin, box.xmax), (box.ymin, box.ymax)) == tuple(sides)


def test_a_box_between_pixels_is_rounded_outwards() -> None:
    for raw in (RawBox("p", 10.4, 10.02, 20.3, 20.98), RawBox("p", 0.104, 0.1002, 0.203, 0.2098, relative=True)):
        box = _box(raw, "polyp", 100, 100, None)
        assert (box.xmin, box.ymin, box.xmax, box.ymax) == (10, 10, 21, 21)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.4 0.4 0.93\n")
    (tmp_path / "b.txt").write_text("0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3\n")
    (tmp_path / "c.txt").write_text("0 0.1 0.1 0.3\n")
    return tmp_path


def test_a_line_of_five_or_with_a_confidence_of_six_numbers_is_a_box(yolo: Path) -> None:
    boxes = Boxes(Tree(yolo), BoxRule(format="yolo", files="{stem}.txt", names=("polyp",)))
    (first, second), _ = boxes.of({"stem": "a"}, {})
    assert (first.label, first.xmin) == ("polyp", 0.4) and second.xmin == pytest.approx(0.3)


def test_a_polygon_is_not_read_as_a_box(yolo: Path) -> None:
    boxes = Boxes(Tree(yolo), BoxRule(format="yolo", files="{stem}.txt", names=("polyp",)))
    for stem in ("b", "c"):
        with pytest.raises(ValueError, match=rf"{stem}\.txt line 1: .*wanted a class number and 4 numbers"):
            boxes.of({"stem": stem}, {})


def test_corners_are_the_edges_of_their_box() -> None:
    corners = {"x1": "10", "y1": "12", "x2": "20", "y2": "12", "x3": "20", "y3": "30", "x4": "10", "y4": "30"}
    box = _box(_corners(corners, "p"), "polyp", 336, 336, None)
    assert np.array_equal((box.xmin, box.ymin, box.xmax, box.ymax), (10, 12, 20, 30))
