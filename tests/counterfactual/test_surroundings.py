import numpy as np
import pytest

from cogalign.counterfactual.masks import corners
from cogalign.counterfactual.surroundings import CHANGES, background, rotate_hue


def disc(size: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    image = np.full((128, 128, 3), 6, np.uint8)
    image[disc(128, 64, 64, 60)] = (200, 120, 100)
    image[99:126, 3:30] = (40, 160, 70)
    mask = disc(128, 60, 70, 14)
    image[mask] = (130, 30, 40)
    return image, mask


def test_background_changes_something_named_and_never_the_lesion(scene: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = scene
    before = image.copy()
    seen = set()
    for seed in range(30):
        edited = background(image, mask, np.random.default_rng(seed))
        assert np.array_equal(edited.image[mask], image[mask])
        assert np.array_equal(edited.touched, ~mask)
        assert edited.changed and set(edited.changed) <= set(CHANGES)
        seen |= set(edited.changed)
        box = corners(image.shape)[0]
        moved = np.abs(edited.image[box].astype(int) - image[box]).max(axis=-1)
        assert (np.median(moved) >= 30) == ("box" in edited.changed)
        # Overlay text covers single pixels: the middle value of a stretch tells of the rest.
        field = np.median(np.abs(edited.image[20:110, 40:56].astype(int) - image[20:110, 40:56]).max(axis=-1))
        assert (field >= 5) == ("hue" in edited.changed)
        border = np.median(np.abs(edited.image[:3, 40:88].astype(int) - image[:3, 40:88]).max(axis=-1))
        assert (border >= 5) == ("border" in edited.changed)
    assert seen == set(CHANGES)
    assert np.array_equal(image, before)


def test_overlay_text_is_bright_small_and_off_the_lesion(scene: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = scene
    written = 0
    for seed in range(60):
        edited = background(image, mask, np.random.default_rng(seed))
        if edited.changed == ("text",):
            changed = np.any(edited.image != image, axis=-1)
            assert 0.001 < changed.mean() < 0.2 and not np.any(changed & mask)
            assert edited.image[changed].max() > 150
            written += 1
    assert written


def test_background_of_an_image_without_border_and_free_corner_turns_the_hue_or_writes() -> None:
    image = np.full((64, 64, 3), (200, 120, 100), np.uint8)
    image += np.random.default_rng(0).integers(0, 50, image.shape, dtype=np.uint8)
    mask = np.zeros((64, 64), bool)
    for window in corners(image.shape):
        mask[window] = True
    for seed in range(10):
        edited = background(image, mask, np.random.default_rng(seed))
        assert edited.changed in (("hue",), ("text",), ("hue", "text"))
        assert np.any(edited.image != image)


def test_hue_rotation_keeps_the_sum_of_the_channels_and_grey() -> None:
    colours = np.random.default_rng(0).uniform(60, 180, (5, 6, 3)).astype(np.float32)
    turned = rotate_hue(colours, 20.0)
    assert np.allclose(turned.sum(-1), colours.sum(-1), atol=0.01)
    assert np.abs(turned - colours).max() > 3
    assert np.allclose(rotate_hue(turned, -20.0), colours, atol=0.01)
    assert np.allclose(rotate_hue(np.full((2, 2, 3), 99, np.float32), 20.0), 99, atol=0.01)
