import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.data.alignment import MIN_ALIGNED, aligned_correlation
from cogalign.data.duplicates import MAX_BITS, MAX_DIFFERENCE, near_duplicates, neighbours
from cogalign.data.images import Fingerprint, fingerprint, load_rgb


def picture(seed: int, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    noise = np.random.default_rng(seed).random((12, 16, 3)).astype(np.float32)
    smooth = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    return (smooth.clip(0, 1) * 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, scale: float, quality: int) -> np.ndarray:
    pixels = Image.fromarray(image)
    buffer = io.BytesIO()
    pixels.resize((round(pixels.width * scale), round(pixels.height * scale))).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def framed(image: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(image, 12, 20, 40, 24, cv2.BORDER_CONSTANT, value=(0, 0, 0))


def test_copies_in_other_sizes_and_qualities_fall_together_and_others_do_not():
    images = [picture(seed) for seed in range(20)]
    images += [images[3].copy(), as_jpeg(images[4], 0.5, 60), as_jpeg(images[5], 1.6, 80)]
    assert near_duplicates([fingerprint(image) for image in images]) == [*range(20), 3, 4, 5]


@pytest.mark.parametrize(
    "change",
    [
        framed,
        lambda image: image[4:-4, 6:-6],
        lambda image: image[:, 9:],
        lambda image: np.clip(image.astype(int) + 15, 0, 255).astype(np.uint8),
        lambda image: (image * 0.8).astype(np.uint8),
    ],
    ids=["black frame", "2 % less on each side", "3 % less on one side", "brighter", "less contrast"],
)
def test_a_photograph_is_found_again_after(change):
    images = [picture(seed) for seed in range(12)]
    changed = [np.ascontiguousarray(change(image)) for image in images[:6]]
    assert near_duplicates([fingerprint(image) for image in images + changed]) == [*range(12), *range(6)]


def test_flat_images_of_other_colours_are_no_duplicates():
    flat = [np.full((40, 40, 3), value, np.uint8) for value in (0, 100, 200)]
    assert near_duplicates([fingerprint(image) for image in flat]) == [0, 1, 2]
    assert near_duplicates([]) == [] and neighbours([], 6, 6.0) == []


def as_defined(prints: list[Fingerprint]) -> list[int]:
    """Chains of equal digests, or equal bits and thumbnails within the limits, one pair at a time."""
    first = list(range(len(prints)))
    for _ in prints:
        for one in range(len(prints)):
            for other in range(one):
                a, b = prints[one], prints[other]
                near = (a.bits ^ b.bits).bit_count() <= MAX_BITS
                alike = near and np.abs(a.thumbnail - b.thumbnail).mean() <= MAX_DIFFERENCE
                if a.digest == b.digest or alike:
                    first[one] = first[other] = min(first[one], first[other])
    return first


@st.composite
def flat_prints(draw):
    """Fingerprints of flat thumbnails: too little contrast for fields to be laid on one another."""
    levels = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.integers(0, 255)), max_size=14))
    return [Fingerprint(f"{level}-{bits}-{low}", (2 ** (4 * bits) - 1) ^ (low & 7),
                        np.full((32, 32), level, np.float32), (8, 8)) for level, bits, low in levels]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(flat_prints())
def test_the_search_finds_what_the_definition_says(prints):
    assert near_duplicates(prints) == as_defined(prints)


@settings(max_examples=30, deadline=None)
@given(flat_prints(), st.integers(0, 8), st.floats(0, 20))
def test_neighbours_are_all_pairs_within_the_limits(prints, bits, difference):
    unique = list({one.digest: one for one in prints}.values())
    found = {pair[:2]: pair[2:] for pair in neighbours(unique, bits, difference)}
    for two in range(len(unique)):
        for one in range(two):
            a, b = unique[one], unique[two]
            apart = (a.bits ^ b.bits).bit_count()
            grey = float(np.abs(a.thumbnail - b.thumbnail).mean())
            assert found.pop((one, two), None) == ((apart, grey) if apart <= bits and grey <= difference else None)
    assert not found


def test_each_exact_copy_is_listed_with_the_first_and_only_pairs_across_labels_on_request():
    one, other = fingerprint(picture(1)), fingerprint(picture(2))
    prints = [one, other, one, one]
    assert neighbours(prints, 6, 6.0) == [(0, 2, 0, 0.0), (0, 3, 0, 0.0)]
    assert neighbours(prints, 6, 6.0, apart=["train", "train", "test", "train"]) == [(0, 2, 0, 0.0), (2, 3, 0, 0.0)]
    assert neighbours(prints, 6, 6.0, apart=["train"] * 4) == []


def test_thousands_of_nearly_equal_dark_frames_need_little_memory_and_time():
    dark = picture(0, (64, 64)).astype(np.float32) * 0.2
    random = np.random.default_rng(0)
    prints = [fingerprint(dark.astype(np.uint8))] * 800
    prints += [fingerprint((dark + random.random(dark.shape)).astype(np.uint8)) for _ in range(400)]
    assert set(near_duplicates(prints)) == {0}
    pairs = neighbours(prints, 10, 12.0, most=5)
    assert len(pairs) <= 2 * 800 + 5 * 401
    assert {index for pair in pairs for index in pair[:2]} == set(range(1200))


def test_laying_one_field_on_another_finds_the_shift_and_tells_other_fields():
    still = cv2.resize(cv2.cvtColor(picture(3), cv2.COLOR_RGB2GRAY), (64, 64)).astype(np.float32)
    moved = cv2.resize(still[3:60, 2:61], (32, 32), interpolation=cv2.INTER_AREA) * 0.7 + 20
    whole = cv2.resize(still, (32, 32), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(whole.ravel(), moved.ravel())[0, 1] < 0.9
    assert max(aligned_correlation(whole, moved), aligned_correlation(moved, whole)) > MIN_ALIGNED
    other = cv2.resize(cv2.cvtColor(picture(4), cv2.COLOR_RGB2GRAY), (32, 32)).astype(np.float32)
    assert aligned_correlation(whole, other) < 0.8
    assert aligned_correlation(whole, np.zeros_like(whole)) == -1


def test_photographs_that_kvasir_seg_shares_with_kvasir_v2_are_found_and_no_others(realdata):
    wanted = {
        "cju30lncba3ny0878jwnous8n": "034c3836-209e-4f17-bf69-8e7096dbd458",
        "cju35k2fr3vc50988c85qkrwg": "68df64f0-9afc-4ca0-87a6-e02a0559ee9f",
        "cju3ya7goj6at0818v2l5ay7f": "99bae3ba-bbe5-415d-8f7d-9492fa3bc28e",
        "cju2y26c588bo07993ksd8eoz": "9ef37d84-05d6-4779-a928-c0e2cecef341",
    }
    folder = realdata / "Kvasir-SEG/images"
    files = sorted({*(folder / f"{stem}.jpg" for stem in wanted), *sorted(folder.iterdir())[::9]})
    files += sorted((realdata / "kvasir-dataset-v2").glob("*/*.jpg"))
    firsts = near_duplicates([fingerprint(np.asarray(load_rgb(file))) for file in files])
    found = {files[first].stem: file.stem for file, first in zip(files, firsts, strict=True) if files[first] != file}
    assert found == wanted
