import numpy as np
import pytest

from cogalign.counterfactual.interventions import Operator, control, removal, stream, transplant
from cogalign.counterfactual.masks import feathered_alpha, lesion_radius
from cogalign.data.case import Box

FILLS = ("gaussian_blur", "white", "surround_blur", "mean", "telea", "texture")


def chance() -> np.random.Generator:
    return np.random.default_rng(0)


def disc(size: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def mucosa(colour: tuple[int, int, int], size: int = 128, seed: int = 0) -> np.ndarray:
    image = np.full((size, size, 3), 5.0)
    image[disc(size, size / 2, size / 2, 0.48 * size)] = colour
    image += np.random.default_rng(seed).normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def lesion_image(y: float = 45, x: float = 50, radius: float = 12, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    image, mask = mucosa((205, 125, 105), size), disc(size, y, x, radius)
    image[mask] = (120, 25, 30)
    return image, mask


@pytest.mark.parametrize("fill", FILLS)
def test_removal_keeps_all_bytes_beyond_the_touched_region(fill: str) -> None:
    image, mask = lesion_image()
    edited = removal(image, mask, Operator(fill), chance())
    assert edited is not None
    assert edited.touched[mask].all()
    assert np.array_equal(edited.image[~edited.touched], image[~edited.touched])
    radius = lesion_radius(mask)
    assert np.array_equal(edited.touched, feathered_alpha(mask, 0.12 * radius, 0.12 * radius) > 0)


def test_removal_takes_all_lesions() -> None:
    image, mask = lesion_image()
    second = disc(128, 85, 80, 9)
    image[second] = (120, 25, 30)
    edited = removal(image, mask | second, Operator("surround_blur"), chance())
    assert edited is not None
    assert np.abs(edited.image[mask | second].astype(int) - (205, 125, 105)).max() < 25


@pytest.mark.parametrize("fill", FILLS)
def test_removal_of_one_lesion_leaves_the_other_as_it_is(fill: str) -> None:
    image, mask = lesion_image()
    second = disc(128, 85, 80, 9)
    image[second] = (120, 25, 30)
    edited = removal(image, mask, Operator(fill), chance(), others=second)
    assert edited is not None and edited.touched[mask].all() and not edited.touched[second].any()
    assert np.array_equal(edited.image[second], image[second])


def test_removal_that_would_reach_into_a_lesion_that_stays_is_none() -> None:
    image, mask = lesion_image()
    neighbour = disc(128, 45, 71, 9)
    assert removal(image, mask & ~neighbour, Operator(), chance(), others=neighbour) is None


@pytest.mark.parametrize("fill", FILLS)
def test_control_paints_the_same_area_off_the_lesion(fill: str) -> None:
    image, mask = lesion_image()
    for seed in range(5):
        edited = control(image, mask, Operator(fill), stream(seed, "a", "control"))
        assert edited is not None
        assert not np.any(edited.touched & mask)
        assert np.array_equal(edited.image[~edited.touched], image[~edited.touched])
        removed = removal(image, mask, Operator(fill), chance())
        assert removed is not None and edited.touched.sum() == removed.touched.sum()


def test_control_without_room_is_none() -> None:
    image, mask = lesion_image(64, 64, 40)
    assert control(image, mask, Operator(), stream(0, "a", "control")) is None


def test_transplant_lies_on_the_cleared_background_and_keeps_its_bytes_elsewhere() -> None:
    image, mask = lesion_image()
    background, own = mucosa((190, 140, 90), seed=4), disc(128, 80, 70, 10)
    background[own] = (240, 230, 180)
    edited = transplant(image, mask, background, own, Operator("surround_blur"), stream(1, "a", "transplant"))
    assert edited is not None and len(edited.moves) == 1
    assert np.array_equal(edited.image[~edited.touched], background[~edited.touched])
    xmin, ymin, xmax, ymax = edited.moves[0].target
    assert (xmax - xmin) * (ymax - ymin) == 25 * 25
    middle = edited.image[(ymin + ymax) // 2, (xmin + xmax) // 2].astype(int)
    assert np.abs(middle - (120, 25, 30)).max() < 30
    inside = np.zeros_like(own)
    inside[ymin:ymax, xmin:xmax] = True
    cleared = own & ~inside
    assert not cleared.any() or edited.image[cleared][:, 2].max() < 140


def test_transplant_scales_to_the_size_of_the_background() -> None:
    image, mask = lesion_image()
    edited = transplant(image, mask, mucosa((190, 130, 100), 256), None, Operator(), stream(1, "a", "transplant"))
    assert edited is not None and edited.image.shape == (256, 256, 3)
    xmin, ymin, xmax, ymax = edited.moves[0].target
    assert abs(xmax - xmin - 50) <= 2 and abs(ymax - ymin - 50) <= 2


def test_transplant_takes_every_lesion_with_its_box() -> None:
    image, mask = lesion_image(radius=9)
    second = disc(128, 85, 80, 7)
    image[second] = (240, 230, 180)
    boxes = (Box("bleeding", 41, 36, 60, 55), Box("ulcer", 73, 78, 88, 93))
    edited = transplant(image, mask | second, mucosa((200, 120, 100)), None, Operator(), stream(2, "a", "t"), boxes)
    assert edited is not None
    assert [move.source for move in edited.moves] == [(41, 36, 60, 55), (73, 78, 88, 93)]
    assert [(m.target[2] - m.target[0]) * (m.target[3] - m.target[1]) for m in edited.moves] == [19 * 19, 15 * 15]


def test_transplant_onto_a_background_without_mucosa_is_none() -> None:
    image, mask = lesion_image()
    black = np.zeros_like(image)
    assert transplant(image, mask, black, None, Operator(), stream(0, "a", "transplant")) is None


def test_a_black_notch_of_the_frame_stays_behind() -> None:
    image, mask = lesion_image(64, 20, 14)
    image[60:, :20] = 0
    edited = transplant(image, mask, mucosa((200, 120, 100)), None, Operator(), stream(1, "a", "t"))
    assert edited is not None
    xmin, ymin, xmax, ymax = edited.moves[0].target
    assert edited.image[ymin:ymax, xmin:xmax, 0].min() > 60


def test_no_source_is_written() -> None:
    image, mask = lesion_image()
    background = mucosa((190, 130, 100), seed=3)
    copies = image.copy(), mask.copy(), background.copy()
    transplant(image, mask, background, None, Operator(), stream(0, "a", "transplant"))
    control(image, mask, Operator(), stream(0, "a", "control"))
    assert all(np.array_equal(a, b) for a, b in zip(copies, (image, mask, background), strict=True))


def test_streams_repeat_and_differ_by_every_name() -> None:
    draws = {stream(*key).integers(2**62) for key in [(1, "a", "b", 0), (2, "a", "b", 0), (1, "c", "b", 0),
                                                      (1, "a", "d", 0), (1, "a", "b", 1)]}  # fmt: skip
    assert len(draws) == 5
    assert stream(1, "a", "b").integers(2**62) == stream(1, "a", "b", 0).integers(2**62)
    assert stream(3, "case", "control").integers(1000, size=3).tolist() == [744, 791, 969]
