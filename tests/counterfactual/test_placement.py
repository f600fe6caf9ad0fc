import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual.placement import find_place, move_pieces, put, turned


def disc(size: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([64, 128, 203]),
    height=st.integers(3, 18),
    width=st.integers(3, 18),
)
def test_a_place_lies_inside_on_mucosa_and_off_the_forbidden(seed: int, size: int, height: int, width: int) -> None:
    visible = disc(size, size / 2, size / 2, 0.48 * size)
    forbidden = disc(size, 0.4 * size, 0.4 * size, 0.15 * size)
    shape = np.ones((height, width), bool)
    place = find_place(shape, visible, forbidden, np.random.default_rng(seed))
    assert place is not None
    canvas = np.zeros((size, size), np.float32)
    put(canvas, shape.astype(np.float32), place)
    assert canvas.sum() == height * width
    assert not np.any((canvas > 0) & forbidden)
    assert np.count_nonzero((canvas > 0) & ~visible) <= 0.12 * height * width + 2


def test_no_place_where_nothing_fits() -> None:
    visible = disc(64, 32, 32, 10)
    assert find_place(np.ones((30, 30), bool), visible, None, np.random.default_rng(0)) is None
    assert find_place(np.ones((70, 70), bool), np.ones((64, 64), bool), None, np.random.default_rng(0)) is None


def test_eight_turns_keep_all_pixels_and_differ() -> None:
    values = np.arange(12).reshape(3, 4)
    results = [turned(values, turn) for turn in range(8)]
    assert all(sorted(result.ravel()) == list(range(12)) for result in results)
    assert len({(result.shape, result.tobytes()) for result in results}) == 8


def test_moved_pieces_do_not_overlap_and_keep_their_area() -> None:
    visible = np.ones((128, 128), bool)
    alphas = [disc(128, 30, 30, 12).astype(np.float32), disc(128, 90, 90, 15).astype(np.float32)]
    forbidden = (alphas[0] + alphas[1]) > 0
    for seed in range(10):
        moved = move_pieces(alphas, visible, forbidden, np.random.default_rng(seed))
        assert moved is not None
        assert moved.sum() == alphas[0].sum() + alphas[1].sum()
        assert not np.any((moved > 0) & forbidden)
