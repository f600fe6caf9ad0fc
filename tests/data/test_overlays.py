import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSetWriter, read_case_set
from cogalign.data.images import load_rgb
from cogalign.data.overlays import cramers_v, find_overlays, flag_overlays, overlay_shares, overlays_markdown

LABELS = Path(__file__).parent / "overlay_labels.csv"


def mucosa(seed: int, width: int = 600, height: int = 500) -> np.ndarray:
    """Reddish smooth noise in an octagonal field, as a scope shows it."""
    noise = np.random.default_rng(seed).random((7, 8, 1)).astype(np.float32)
    grey = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    image = (np.array([150, 70, 60]) + grey * np.array([80, 50, 40])).clip(0, 255).astype(np.uint8)
    cut = width // 6
    for x, y in ((0, 0), (width, 0), (0, height), (width, height)):
        corner = np.array([(x, y), (abs(x - cut), y), (x, abs(y - cut))], np.int32)
        cv2.fillPoly(image, [corner], (0, 0, 0))
    return image


def with_text(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    for line, text in enumerate(("12/03/2014", "10:47:31", "CVP:4")):
        cv2.putText(image, text, (12, 160 + 24 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (235, 235, 235), 1)
    return image


def with_box(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    image = image.copy()
    image[-130:, :150] = colour
    return image


def overlap(one, other) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    shared = max(0, wide) * max(0, high)
    return shared / (area - shared)


@pytest.mark.parametrize("seed", range(3))
def test_a_bare_image_has_no_overlays(seed):
    found = find_overlays(mucosa(seed))
    assert found.text == () and found.guide_box == ()


def test_each_line_of_text_is_found_where_it_is():
    found = find_overlays(with_text(mucosa(0)))
    assert found.guide_box == ()
    assert len(found.text) >= 2
    for box in found.text:
        assert 8 <= box[0] < box[2] <= 120 and 140 <= box[1] < box[3] <= 220


@pytest.mark.parametrize("colour", [(0, 0, 0), (20, 165, 140), (30, 60, 190)], ids=["black", "green", "blue"])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_box_in_the_corner_is_found_in_any_size(colour, scale):
    image = cv2.resize(with_box(mucosa(1), colour), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    (box,) = find_overlays(image).guide_box
    assert overlap(box, [value * scale for value in (0, 370, 150, 500)]) > 0.9


def test_slanted_corners_a_dark_frame_and_letters_in_it_are_no_box():
    image = cv2.copyMakeBorder(mucosa(2), 20, 20, 70, 30, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    found = find_overlays(with_text(image))
    assert found.guide_box == () and found.text


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 99))
def test_boxes_lie_in_images_of_any_size(width, height, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    found = find_overlays(image)
    for left, top, right, bottom in (*found.text, *found.guide_box):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


@pytest.fixture
def case_set(tmp_path):
    """Polyps with text, normal images without, from two data sets alike."""
    with CaseSetWriter(tmp_path) as writer:
        for number in range(8):
            finding = "polyp" if number < 4 else "normal"
            image = with_text(mucosa(number)) if finding == "polyp" else mucosa(number)
            case = Case(f"c{number}", f"images/{number}.png", (finding,), "train", dataset="AB"[number % 2])
            writer.add(case, image)
    return read_case_set(tmp_path)


def test_flags_are_written_and_the_shortcut_is_told(case_set):
    flag_overlays(case_set)
    cases = read_case_set(case_set.root).cases
    for case in cases:
        assert bool(case.attributes["overlays"]["text"]) == (case.findings == ("polyp",))
        assert case.attributes["overlays"]["guide_box"] == []
    text, box = overlay_shares(cases)
    assert [(share.name, share.images, share.flagged) for share in text.by_finding] == [
        ("normal", 4, 0),
        ("polyp", 4, 4),
    ]
    assert text.finding_association == pytest.approx(1.0) and text.data_set_association == pytest.approx(0.0)
    assert box.finding_association is None
    page = overlays_markdown(cases)
    assert "8 of 8 images were looked at" in page and "| polyp | 4 | 4 | 100% |" in page
    assert "The overlay tells the finding" in page and "The overlay tells the data set" not in page


def test_nothing_is_written_when_an_image_cannot_be_read(case_set):
    before = (case_set.root / "metadata.jsonl").read_bytes()
    case_set.path("images/3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"3\.png: not a readable image"):
        flag_overlays(case_set)
    assert (case_set.root / "metadata.jsonl").read_bytes() == before


def test_the_association_is_that_of_the_book():
    # Table [[30, 10], [10, 30]]: chi2 = 80 (30 * 30 - 10 * 10)^2 / 40^4 = 20, V = sqrt(20 / 80)
    groups, flags = ["a"] * 40 + ["b"] * 40, [True] * 30 + [False] * 10 + [True] * 10 + [False] * 30
    assert cramers_v(groups, flags) == pytest.approx(0.5)
    assert cramers_v(groups, [True] * 80) is None and cramers_v(["a"] * 80, flags) is None


def test_photographs_labelled_by_hand_are_judged_well_enough(realdata):
    """Measured on 258 images: text precision 1.00, recall 0.89; box precision 0.96, recall 0.99; a bit less is asked for.

    Limits were set while looking at the 186 images with tuned = 1; the other 72 were labelled afterwards.
    """
    rows = list(csv.DictReader(LABELS.open()))
    rows = [row for index, row in enumerate(rows) if row["tuned"] == "0" or index % 2]
    found = [find_overlays(np.asarray(load_rgb(realdata / row["file"]))) for row in rows]
    for name, flags, floors in (
        ("text", [bool(one.text) for one in found], (0.97, 0.84)),
        ("box", [bool(one.guide_box) for one in found], (0.91, 0.94)),
    ):
        wanted = [row[name] == "1" for row in rows]
        right = sum(a and b for a, b in zip(flags, wanted, strict=True))
        assert right / sum(flags) >= floors[0] and right / sum(wanted) >= floors[1], name
