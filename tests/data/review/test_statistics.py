import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from cogalign.data.review.statistics import bootstrap, cohen_kappa, distance, krippendorff_alpha, mean, share


def plain_distance(one: str, other: str) -> int:
    """Levenshtein's distance cell by cell."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


@given(st.text("abcd ü", max_size=14), st.text("abcd ü", max_size=14))
@settings(max_examples=80, deadline=None)
def test_the_distance_is_levenshteins_by_the_longer_length(one: str, other: str) -> None:
    wanted = plain_distance(one, other) / max(len(one), len(other), 1)
    assert distance(one, other) == pytest.approx(wanted)
    assert distance(one, other) == distance(other, one)


@given(st.integers(1, 60), st.data())
@settings(max_examples=25, deadline=None)
def test_a_share_has_wilsons_interval(n: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, n))
    found, wanted = share(part, n), binomtest(part, n).proportion_ci(method="wilson")
    assert (found.value, found.n) == (part / n, n)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_a_share_of_nothing_has_no_value_and_an_impossible_one_is_refused() -> None:
    assert share(0, 0).value is None
    with pytest.raises(ValueError, match="found 4 of 3"):
        share(4, 3)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=20))
@settings(max_examples=30, deadline=None)
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    if len(set(one) | set(other)) == 1:
        assert cohen_kappa(one, other) is None
    else:
        assert cohen_kappa(one, other) == pytest.approx(cohen_kappa_score(one, other))


def test_alpha_is_that_of_krippendorffs_example() -> None:
    """Krippendorff 2011, example C: four observers, twelve units, gaps; nominal alpha 0.743."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[row[i] for row in table if row[i] is not None] for i in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a", "a"], ["a"]]) is None


def test_a_mean_has_an_interval_that_holds_it_and_repeats() -> None:
    values = np.random.default_rng(0).random(40).tolist()
    found = mean(values)
    assert found.low is not None and found.high is not None and found.value == pytest.approx(np.mean(values))
    assert found.low < found.value < found.high and mean(values) == found
    error = np.std(values) / np.sqrt(40)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert (mean([0.5]).value, mean([0.5]).low) == (0.5, None)
    assert mean([]).value is None
    assert bootstrap([1, 2, 3], lambda items: None).value is None
