"""Augmentation: image and mask move together, colours and overlays leave the mask alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from cogalign.segmenter import augment as a
from cogalign.segmenter.augment import Level, augment, build_augmentation
from cogalign.segmenter.overlays import Border, GuideBox, Jpeg, OverlayText, Spots

SIDE = 48


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A dark red picture with a bright disc, and the disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :60]
    mask = np.hypot(y - 25, x - 35) < 14
    image = np.where(mask[..., None], (230, 230, 200), (120, 30, 20)).astype(np.uint8)
    return np.clip(image + rng.integers(0, 12, image.shape), 0, 255).astype(np.uint8), mask


@pytest.mark.parametrize("level", ["strong", "light", "none"])
def test_gives_squares_of_the_wanted_side_and_a_mask_of_zeros_and_ones(level: Level) -> None:
    transform = build_augmentation(level, SIDE)
    for seed in range(30):
        image, mask = augment(transform, *scene(), seed)
        assert (image.shape, image.dtype) == ((3, SIDE, SIDE), torch.uint8)
        assert (mask.shape, mask.dtype) == ((1, SIDE, SIDE), torch.float32)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert type(image) is type(mask) is torch.Tensor


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_seed_alone_decides_and_torchs_generator_is_left_alone(seed: int) -> None:
    transform = build_augmentation("strong", SIDE)
    torch.manual_seed(seed % 7)
    before = torch.get_rng_state()
    first = augment(transform, *scene(), seed)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(11)
    second = augment(transform, *scene(), seed)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_seeds_differ() -> None:
    transform = build_augmentation("strong", SIDE)
    found = [augment(transform, *scene(), seed)[0].float() for seed in range(8)]
    assert all((one - other).abs().mean() > 1 for i, one in enumerate(found) for other in found[:i])


@pytest.mark.parametrize("level", ["strong", "light", "none"])
def test_the_mask_stays_on_the_lesion(level: Level) -> None:
    transform = build_augmentation(level, SIDE)
    brighter = []
    for seed in range(40):
        image, mask = augment(transform, *scene(), seed)
        grey, inside = image.float().mean(0), mask[0] > 0
        if 20 < inside.sum() < 0.8 * SIDE * SIDE:
            brighter.append(float(grey[inside].mean() - grey[~inside].mean()))
    assert len(brighter) >= 30
    assert np.mean(np.array(brighter) > 20) > 0.95  # an overlay may hide a part of the disc now and then


@pytest.mark.parametrize(
    "transform",
    [
        Border(1.0),
        GuideBox(1.0),
        OverlayText(1.0),
        Spots(1.0),
        Jpeg(1.0, 20, 30),
        a.Gamma(0.3, 0.4),
        a.LowResolution(0.2),
    ],
    ids=lambda one: type(one).__name__,
)
def test_overlays_and_colours_change_the_image_and_not_the_mask(transform: v2.Transform) -> None:
    image, mask = scene()
    pixels, truth = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(mask))
    before = pixels.clone()
    torch.manual_seed(3)
    changed, kept = transform(pixels, truth)
    assert changed.dtype == torch.uint8
    assert changed.shape == before.shape
    assert not torch.equal(changed, before)
    assert torch.equal(kept, truth)


def test_a_border_leaves_the_middle_and_blackens_the_corners() -> None:
    torch.manual_seed(1)
    blackened = []
    for _ in range(20):
        found = Border(1.0).paint(np.full((64, 64, 3), 200, np.uint8))
        assert (found[26:38, 26:38] == 200).all()
        blackened.append(found[0, 0, 0] < 20)
    assert np.mean(blackened) > 0.5


def test_an_overlay_with_probability_0_changes_nothing() -> None:
    image = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(1, 8, 8))
    changed, kept = Spots(0.0)(image, mask)
    assert changed is image
    assert kept is mask
