import io
from collections import Counter, defaultdict

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.images import fingerprint, load_rgb
from cogalign.data.splits import assign_splits, near_duplicates


def case(number: int, finding: str, group: str = "") -> Case:
    return Case(f"c{number}", f"images/c{number}.png", (finding,), "train", group=group)


cases_of_groups = st.lists(
    st.tuples(st.sampled_from(["polyp", "ulcer", "normal"]), st.integers(0, 15)), max_size=60
).map(lambda rows: [case(number, finding, f"g{group}") for number, (finding, group) in enumerate(rows)])


@settings(max_examples=60, deadline=None)
@given(cases_of_groups, st.floats(0, 0.9), st.integers(0, 5))
def test_a_group_never_crosses_splits_and_the_draw_is_repeatable(cases, share, seed):
    found = assign_splits(cases, share, seed)
    splits = defaultdict(set)
    for one in found:
        splits[one.group].add(one.split)
    assert all(len(names) == 1 for names in splits.values())
    assert [one.id for one in found] == [one.id for one in cases]
    assert found == assign_splits(cases, share, seed)
    tests = sum(names == {"test"} for names in splits.values())
    assert abs(tests - share * len(splits)) <= 1


def test_every_finding_has_its_share():
    cases = [case(n, finding) for n, finding in enumerate(["polyp"] * 200 + ["ulcer"] * 50 + ["normal"] * 100)]
    counts = Counter((one.findings[0], one.split) for one in assign_splits(cases, 0.2, seed=1))
    for finding, total in (("polyp", 200), ("ulcer", 50), ("normal", 100)):
        assert abs(counts[finding, "test"] - 0.2 * total) <= 1
        assert abs(counts[finding, "validation"] - 0.1 * 0.8 * total) <= 1


def test_seeds_draw_differently_and_bad_shares_are_refused():
    cases = [case(n, "polyp") for n in range(50)]
    assert assign_splits(cases, 0.2, 1) != assign_splits(cases, 0.2, 2)
    with pytest.raises(ValueError, match="test_share: found 1"):
        assign_splits(cases, 1, 1)


def picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random((12, 16, 3)).astype(np.float32)
    smooth = cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)
    return (smooth.clip(0, 1) * 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, scale: float, quality: int) -> np.ndarray:
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    picture.resize((round(picture.width * scale), round(picture.height * scale))).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_copies_in_other_sizes_and_qualities_fall_together_and_others_do_not():
    images = [picture(seed) for seed in range(20)]
    images += [images[3].copy(), as_jpeg(images[4], 0.5, 60), as_jpeg(images[5], 1.6, 80)]
    assert near_duplicates([fingerprint(image) for image in images]) == [*range(20), 3, 4, 5]


def test_flat_images_of_other_colours_are_no_duplicates():
    flat = [np.full((40, 40, 3), value, np.uint8) for value in (0, 100, 200)]
    assert near_duplicates([fingerprint(image) for image in flat]) == [0, 1, 2]


def test_real_photographs_are_found_again_and_not_confused(realdata):
    files = (
        sorted((realdata / "Kvasir-SEG/images").iterdir())[::12]
        + sorted((realdata / "hyper-kvasir").rglob("*.jpg"))[::10]
    )
    images = [np.asarray(load_rgb(path)) for path in files]
    copies = [as_jpeg(image, 0.5, 60) for image in images[::10]]
    expected = [*range(len(images)), *range(0, len(images), 10)]
    assert near_duplicates([fingerprint(image) for image in images + copies]) == expected
