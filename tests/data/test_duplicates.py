import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.data import duplicates
from cogalign.data.duplicates import informative, informative_ones, near_duplicates, neighbours
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


def capsule(tissue: np.ndarray, contrast: float, blur: float = 0) -> np.ndarray:
    """An image in the octagon of a capsule, whose light falls off to the corners."""
    side = 96
    axis = (np.arange(side) * 2 + 1) / side - 1
    x, y = np.meshgrid(axis, axis)
    image = cv2.resize(tissue, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    image = ((image - image.mean(axis=(0, 1))) * contrast + (150, 100, 70)) * (1 - 0.45 * (x * x + y * y))[..., None]
    image[np.abs(x) + np.abs(y) > 1.42] = 0
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("contrast", "blur"), [(1, 0), (0.5, 0), (0.3, 0), (1, 4), (0.5, 4)])
def test_other_frames_of_a_capsule_stay_apart_and_crops_of_one_fall_together(contrast, blur):
    frames = [capsule(picture(seed), contrast, blur) for seed in range(60)]
    assert near_duplicates([fingerprint(frame) for frame in frames]) == [*range(60)]
    cropped = [np.ascontiguousarray(frame[3:-3, 2:-2]) for frame in frames[:10]]
    if contrast >= 0.5 and not blur:
        assert near_duplicates([fingerprint(frame) for frame in frames + cropped]) == [*range(60), *range(10)]


def plain_frames() -> list[np.ndarray]:
    """Black, white and grey frames, one that is dark but for noise, one of light alone in an octagon."""
    noise = np.random.default_rng(0).integers(0, 14, (96, 96, 3)).astype(np.uint8)
    flat = [np.full((96, 96, 3), value, np.uint8) for value in (0, 3, 128, 130, 255)]
    return [*flat, noise, capsule(flat[2], 1), capsule(flat[2], 1) // 8, framed(flat[2])]


def test_frames_that_show_nothing_are_joined_by_equal_pixels_alone():
    frames = plain_frames()
    prints = [fingerprint(frame) for frame in frames]
    assert [informative(print_) for print_ in prints] == [False] * len(frames)
    assert near_duplicates(prints) == [*range(len(frames))]
    assert near_duplicates([*prints, *prints]) == [*range(len(frames))] * 2
    assert informative(fingerprint(picture(1))) and informative(fingerprint(capsule(picture(1), 0.5)))
    assert near_duplicates([]) == [] and neighbours([], 6, 6.0) == []


@pytest.fixture(scope="module")
def mixed() -> list[Fingerprint]:
    """Chains of crops and brightenings, capsule frames with their copies, plain frames, exact copies."""
    images = [picture(seed) for seed in range(12)]
    images += [np.ascontiguousarray(image[5 * n : -5 * n, 6 * n : -6 * n]) for image in images[:4] for n in (1, 2, 3)]
    images += [np.clip(images[5].astype(int) + 6 * n, 0, 255).astype(np.uint8) for n in (1, 2, 3)]
    images += [capsule(picture(seed), 0.4) for seed in range(12)]
    images += [as_jpeg(image, 1, 70) for image in images[-6:]]
    return [fingerprint(image) for image in [*images, *plain_frames(), images[2], images[0]]]


def parts(prints: list[Fingerprint], order: list[int]) -> set[frozenset[int]]:
    """Which of the prints fall together when they come in this order."""
    found: dict[int, set[int]] = {}
    for place, first in zip(order, near_duplicates([prints[place] for place in order]), strict=True):
        found.setdefault(first, set()).add(place)
    return {frozenset(part) for part in found.values()}


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([30_000, 3]))
def test_the_order_of_the_images_makes_no_difference(mixed, random, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST_ALIGNED", most)
        order = list(range(len(mixed)))
        wanted = parts(mixed, order)
        random.shuffle(order)
        assert parts(mixed, order) == wanted
    assert max(len(part) for part in wanted) < 6


def test_stored_and_fresh_thumbnails_give_the_same_answer(mixed):
    stored = [replace(one, thumbnail=np.rint(one.thumbnail).astype(np.uint8)) for one in mixed]
    assert near_duplicates(stored) == near_duplicates(mixed)
    assert informative_ones(stored) == [informative(one) for one in mixed] and informative_ones([]) == []


@st.composite
def flat_prints(draw):
    """Fingerprints of flat thumbnails."""
    levels = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.integers(0, 255)), max_size=14))
    return [Fingerprint(f"{level}-{bits}-{low}", (2 ** (4 * bits) - 1) ^ (low & 7),
                        np.full((32, 32), level, np.float32), (8, 8)) for level, bits, low in levels]  # fmt: skip


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
