import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cogalign.evaluation.statistics import (
    bootstrap_interval,
    compare_paired,
    difference_interval,
    group_sums,
    mean_interval,
    sign_flip,
    wilson,
)

shares = st.lists(st.floats(0, 1), min_size=1, max_size=15)
flags = st.lists(st.booleans(), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(shares, st.integers(0, 3))
def test_the_interval_of_a_mean_holds_the_mean_and_stays_in_range(values: list[float], group_size: int) -> None:
    groups = [str(index // group_size) for index in range(len(values))] if group_size else None
    interval = mean_interval(values, groups, resamples=50)
    assert interval is not None
    assert 0 <= interval[0] <= np.mean(values) + 1e-9 and np.mean(values) - 1e-9 <= interval[1] <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=15))
def test_the_interval_of_a_difference_holds_it_and_turns_with_its_sign(values: list[float]) -> None:
    interval = difference_interval(values, resamples=50)
    assert interval is not None
    assert -1 <= interval[0] <= np.mean(values) <= interval[1] <= 1
    if len(set(values)) == 1:
        mirrored = difference_interval([-value for value in values])
        assert mirrored == pytest.approx((-interval[1], -interval[0]))


@pytest.mark.parametrize(("value", "wanted"), [(1.0, (30, 30)), (0.0, (0, 30))])
def test_all_right_and_all_wrong_get_wilsons_interval(value: float, wanted: tuple[int, int]) -> None:
    interval = mean_interval([value] * 30)
    expected = stats.binomtest(*wanted).proportion_ci(method="wilson")
    assert interval == pytest.approx((expected.low, expected.high))


def test_no_values_have_no_interval() -> None:
    assert mean_interval([]) is None
    assert difference_interval([], []) is None


def test_bootstrap_of_independent_cases_is_close_to_wilson() -> None:
    values = [1.0] * 70 + [0.0] * 30
    assert mean_interval(values, resamples=2000) == pytest.approx(wilson(70, 100), abs=0.025)


def test_cases_of_one_patient_do_not_count_as_independent() -> None:
    values = np.repeat([1.0, 0.0], [60, 40])
    alone = mean_interval(values)
    patients = [str(index // 10) for index in range(100)]
    together = mean_interval(values, patients)
    assert alone is not None and together is not None
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(40)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        interval = mean_interval((rng.random(60) < 0.8).astype(float), resamples=300, seed=trial)
        assert interval is not None
        hits += interval[0] <= 0.8 <= interval[1]
    assert 0.89 <= hits / 200 <= 0.99


def test_groups_are_summed_whatever_their_order() -> None:
    sums, counts = group_sums([1, 0, 1, 1], ["b", "a", "b", "a"])
    assert sums.tolist() == [1, 2] and counts.tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"found 1, wanted one for each of the 2"):
        group_sums([1, 0], ["a"])


def test_a_statistic_that_does_not_vary_has_no_bootstrap_interval() -> None:
    assert bootstrap_interval((np.ones(10),), np.mean, resamples=20) is None


def test_memory_of_the_bootstrap_does_not_grow_with_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(300)
    whole = mean_interval(values)
    monkeypatch.setattr("cogalign.evaluation.statistics.BATCH_NUMBERS", 900)
    assert mean_interval(values) == pytest.approx(whole)


def test_mcnemar_counts_only_cases_on_which_the_models_differ() -> None:
    first = [True] * 50 + [False] * 10 + [True] * 2
    second = [True] * 50 + [True] * 10 + [False] * 2
    result = compare_paired(first, second)
    assert (result.only_first, result.only_second, result.n) == (2, 10, 62)
    assert result.p_value == pytest.approx(stats.binomtest(10, 12).pvalue)
    assert result.test == "mcnemar_exact"
    assert result.difference == pytest.approx(8 / 62)
    assert result.difference_ci[0] <= result.difference <= result.difference_ci[1]


@settings(max_examples=20, deadline=None)
@given(flags)
def test_a_model_compared_with_itself_differs_by_nothing(values: list[bool]) -> None:
    result = compare_paired(values, values)
    assert result.difference == 0 and result.p_value == 1
    assert result.difference_ci[0] < 0 < result.difference_ci[1]


def test_repeated_groups_are_tested_as_wholes() -> None:
    first, second = [False] * 40, [True] * 40
    groups = [str(index // 20) for index in range(40)]
    result = compare_paired(first, second, groups)
    assert result.test == "sign_flip_permutation"
    assert result.p_value == 0.5  # two patients can agree by chance; forty independent cases could not
    assert compare_paired(first, second).p_value < 1e-9
    assert compare_paired(first, first, groups).p_value == 1


def test_comparison_wants_the_same_cases() -> None:
    with pytest.raises(ValueError, match="found 1 and 2 cases"):
        compare_paired([True], [True, False])


def test_signs_of_few_groups_are_flipped_in_all_ways() -> None:
    assert sign_flip(np.array([1.0, 1.0, 1.0, 1.0, 0.0])) == pytest.approx(2 / 16)
    assert sign_flip(np.array([0.0, 0.0])) == 1.0
    assert sign_flip(np.array([0.0, 3.0])) == 1.0  # one group alone says nothing
