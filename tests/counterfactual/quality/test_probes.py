import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cogalign.counterfactual.quality.probes import (
    auc,
    auc_estimate,
    balanced,
    cross_fit,
    group_estimate,
    grouped_folds,
    probe_auc,
)


def names(count: int, prefix: str = "g") -> list[str]:
    return [f"{prefix}{index}" for index in range(count)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.integers(2, 12), repeats=st.integers(1, 3))
def test_the_auc_is_that_of_scikit_learn_with_ties_and_counts(seed: int, levels: int, repeats: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=40) / levels
    labels = np.repeat((0, 1), 20)
    counts = rng.integers(0, repeats + 1, size=(3, 40))
    counts[:, [0, 39]] += 1  # both labels stay
    assert auc(scores, labels)[0] == pytest.approx(roc_auc_score(labels, scores))
    for row, found in zip(counts, auc(scores, labels, counts), strict=True):
        assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=row))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(4, 30), folds=st.integers(2, 6))
def test_no_group_is_in_two_folds_and_every_row_is_in_one(seed: int, groups: int, folds: int) -> None:
    rng = np.random.default_rng(seed)
    owners = [f"g{index % groups}" for index in range(60)]
    labels = rng.integers(0, 2, 60)
    labels[:4] = (0, 0, 1, 1)
    found = grouped_folds(labels, owners, folds, seed)
    assert sorted(np.concatenate(found).tolist()) == list(range(60))
    sets = [{owners[row] for row in fold} for fold in found]
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_one_distribution_gives_an_auc_of_about_a_half() -> None:
    found = []
    for seed in range(4):
        first, second = np.random.default_rng(seed).normal(size=(2, 120, 24))
        estimate = probe_auc(first, second, names(120), names(120), resamples=200)
        assert estimate is not None and estimate.low - 0.1 < 0.5 < estimate.high + 0.1
        found.append(estimate.value)
    assert abs(np.mean(found) - 0.5) < 0.08


def test_sets_that_differ_give_an_auc_near_one() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 80, 24))
    found = probe_auc(first + 1.0, second, names(80), names(80))
    assert found is not None and found.value > 0.97 and found.low > 0.95


def test_too_few_groups_give_no_result() -> None:
    features = np.zeros((50, 3))
    assert probe_auc(features, features, ["one"] * 50, names(50)) is None


def test_a_group_is_judged_by_a_model_that_never_saw_it() -> None:
    # Features that name the group: whoever saw it knows its label, whoever did not can only guess.
    groups = [f"g{index // 4}" for index in range(80)]
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(20, 60)), 4, axis=0)
    labels = np.repeat(rng.permutation(np.repeat((0, 1), 10)), 4)
    fitted = cross_fit(features, labels, groups, folds=5)
    assert fitted.probabilities(features, groups) == pytest.approx(fitted.out_of_fold)
    assert auc(fitted.out_of_fold, labels)[0] < 0.85
    unknown = fitted.probabilities(features, ["new"] * 80)
    assert auc(unknown, labels)[0] == 1.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=40).filter(lambda labels: 0 < sum(labels) < len(labels)))
def test_both_labels_weigh_the_same(labels: list[int]) -> None:
    weights, given = balanced(np.array(labels)), np.array(labels)
    assert weights[given == 0].sum() == pytest.approx(weights[given == 1].sum()) == pytest.approx(len(labels) / 2)


def test_the_interval_counts_groups_and_not_rows() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=30), np.repeat((0, 1), 15)
    scores[labels == 1] += 1
    alone = auc_estimate(scores, labels, names(30))
    again = auc_estimate(np.repeat(scores, 10), np.repeat(labels, 10), [name for name in names(30) for _ in range(10)])
    assert again.value == pytest.approx(alone.value)
    assert again.high - again.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_a_mean_and_its_interval() -> None:
    found = group_estimate([1.0, 2.0, 3.0, 4.0], names(4))
    assert found is not None and found.value == 2.5 and 1.0 <= found.low < 2.5 < found.high <= 4.0
    assert group_estimate([], []) is None
