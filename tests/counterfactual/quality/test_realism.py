import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual.quality.realism import Normals, kid


def names(count: int, prefix: str = "g") -> list[str]:
    return [f"{prefix}{index}" for index in range(count)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), far=st.floats(3, 30))
def test_a_normal_is_near_one_and_the_distance_grows_with_the_shift(seed: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    normals, more = rng.normal(size=(2, 120, 16))
    reference = Normals(normals, names(120))
    own = reference.distance(more, names(120, "new"))
    assert 0.7 < np.median(own) < 1.1
    assert np.median(reference.distance(more + far, names(120, "new"))) > 1.3 * np.median(own)


def test_a_picture_is_not_compared_with_its_own_group() -> None:
    normals = np.random.default_rng(0).normal(size=(60, 8))
    reference = Normals(normals, names(60))
    assert reference.distance(normals, names(60)) == pytest.approx(reference.own / reference.unit, rel=1e-4)
    assert (reference.distance(normals, names(60, "other")) < reference.own / reference.unit).all()


def test_few_groups_make_no_reference() -> None:
    assert Normals.of(np.zeros((50, 4)), ["one"] * 50) is None


def test_a_feature_that_hardly_varies_does_not_decide_alone() -> None:
    rng = np.random.default_rng(0)
    normals, others = rng.normal(size=(2, 100, 30))
    normals[:, 0] = others[:, 0] = 0.0
    others[:, 0] = 1.0
    assert np.median(Normals(normals, names(100)).distance(others, names(100, "n"))) < 2.0
    found = kid(others, normals, names(100), names(100))
    assert found is not None and found.value < 1000


def test_kid_is_about_zero_for_one_distribution_and_larger_for_two() -> None:
    inside = 0
    for seed in range(5):
        first, second = np.random.default_rng(seed).normal(size=(2, 150, 12))
        same, apart = (kid(first, other, names(150), names(150)) for other in (second, second + 0.7))
        assert same is not None and apart is not None
        inside += same.low <= 0 <= same.high
        assert apart.low > 0 and apart.value > 5 * abs(same.value)
    assert inside >= 4


def test_kid_repeats_and_leaves_the_random_state_alone() -> None:
    import torch

    first, second = np.random.default_rng(1).normal(size=(2, 130, 6))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    assert kid(first, second, names(130), names(130)) == kid(first, second, names(130), names(130))
    assert torch.rand(1) == expected


def test_kid_needs_twenty_pictures() -> None:
    assert kid(np.zeros((19, 3)), np.zeros((50, 3)), names(19), names(50)) is None
