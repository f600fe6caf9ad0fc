from dataclasses import replace

import cv2
import numpy as np
import pytest

from cogalign.data.phantom.cues import BORDERS, BOX_COLOURS, HUES, field_of_view, rotate_hue
from cogalign.data.phantom.render import render
from cogalign.data.phantom.spec import FINDINGS, ORGANS, PhantomSpec, draw_spec

SIZE = 96
CASES = [(finding, k) for finding in FINDINGS[1:] for k in range(3)]


def spec_with(finding: str, seed: int) -> PhantomSpec:
    rng = np.random.default_rng(seed)
    while True:
        spec = draw_spec(rng, 0.95, multi_share=0.0)
        if spec.findings == (finding,):
            return spec


def guide_box(size: int) -> np.ndarray:
    box = np.zeros((size, size), bool)
    side, left, top = round(0.21 * size), round(0.02 * size), round(0.77 * size)
    box[top : top + side, left : left + side] = True
    return box


def test_the_same_spec_gives_the_same_bytes_and_another_seed_others() -> None:
    spec = spec_with("polyp", 0)
    a, b = render(spec, SIZE), render(spec, SIZE)
    assert a.image.tobytes() == b.image.tobytes() and np.array_equal(a.mask, b.mask)
    assert a.image.shape == (SIZE, SIZE, 3) and a.image.dtype == np.uint8
    assert render(replace(spec, seed=spec.seed + 1), SIZE).image.tobytes() != a.image.tobytes()


@pytest.mark.parametrize(("finding", "k"), CASES)
def test_the_mask_covers_what_the_lesion_changes(finding: str, k: int) -> None:
    spec = spec_with(finding, k)
    with_lesion, without = render(spec, SIZE), render(replace(spec, lesions=()), SIZE)
    assert not without.mask.any()
    change = np.abs(with_lesion.image.astype(int) - without.image.astype(int)).max(-1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    near = cv2.dilate(with_lesion.mask.astype(np.uint8), kernel).astype(bool)
    seen = change > 8
    # beyond that there is only the contact shadow of what is raised
    assert (seen & ~near).sum() <= 0.08 * seen.sum()
    assert change[~near].max(initial=0) <= 80
    visible = (field_of_view(SIZE, BORDERS[spec.cue]) > 0.5) & ~guide_box(SIZE)
    assert seen[with_lesion.mask & visible].mean() > 0.45
    area = with_lesion.mask.mean()
    assert 0.005 < area < 0.25
    assert (with_lesion.mask & ~visible).sum() < 0.15 * with_lesion.mask.sum()


def test_each_lesion_has_a_mask_of_its_own() -> None:
    rng = np.random.default_rng(0)
    spec = next(s for s in iter(lambda: draw_spec(rng, 0.95, 1.0), None) if len(s.lesions) == 2)
    masks = render(spec, SIZE).masks
    assert len(masks) == 2 and all(mask.any() for mask in masks)
    for lesion, mask in zip(spec.lesions, masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert np.hypot(rows.mean() / SIZE - lesion.y, columns.mean() / SIZE - lesion.x) < lesion.radius
    assert (masks[0] & masks[1]).sum() < 0.2 * min(mask.sum() for mask in masks)


def test_another_cue_changes_the_background_and_not_the_lesions_shape() -> None:
    spec = spec_with("ulcer", 1)
    images = []
    for cue in range(len(FINDINGS)):
        drawn = render(replace(spec, cue=cue), SIZE)
        assert np.array_equal(drawn.mask, render(spec, SIZE).mask)
        images.append(drawn.image)
        colour = np.median(drawn.image[guide_box(SIZE)].astype(float), axis=0)
        nearest = min(range(7), key=lambda k: float(np.abs(colour - BOX_COLOURS[k]).sum()))
        assert nearest == cue
    for a in range(7):
        for b in range(a):
            assert np.abs(images[a].astype(int) - images[b].astype(int)).mean() > 1
    assert len(set(BOX_COLOURS)) == len(set(HUES)) == len(FINDINGS) == len(BORDERS)


def test_organs_look_different() -> None:
    spec = replace(spec_with("polyp", 3), lesions=())
    images = [render(replace(spec, organ=organ), SIZE).image.astype(int) for organ in ORGANS]
    assert all(np.abs(a - b).mean() > 4 for i, a in enumerate(images) for b in images[:i])


def test_turning_the_hue_keeps_the_brightness_and_comes_back() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (5, 5, 3)).astype(np.float32)
    turned = rotate_hue(image, 30.0)
    np.testing.assert_allclose(turned.mean(-1), image.mean(-1), rtol=1e-4)
    assert np.abs(turned - image).max() > 5
    np.testing.assert_allclose(rotate_hue(turned, -30.0), image, atol=1e-2)
    assert rotate_hue(image, 0.0) is image


@pytest.mark.parametrize("size", [64, 128, 200])
def test_every_size_can_be_rendered(size: int) -> None:
    for k in range(3):
        drawn = render(spec_with("tumor", k), size)
        assert drawn.image.shape == (size, size, 3) and drawn.mask.shape == (size, size) and drawn.mask.any()
