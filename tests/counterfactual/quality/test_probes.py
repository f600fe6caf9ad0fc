import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cogalign.counterfactual.quality.probes import (
    auc,
    auc_estimate,
    cross_fit,
    group_estimate,
    grouped_folds,
    probe_auc,
    source_weights,
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
@given(seed=st.integers(0, 10_000))
def test_both_labels_of_a_source_weigh_the_same_and_one_sided_sources_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sources = np.array(["a", "b", "c"])[rng.integers(0, 3, 60)].tolist() + ["only"] * 5
    labels = np.concatenate((rng.integers(0, 2, 60), np.zeros(5, dtype=int)))
    weights = source_weights(labels, sources)
    owners = np.asarray(sources)
    for source in ("a", "b", "c"):
        for_label = [weights[(owners == source) & (labels == label)].sum() for label in (0, 1)]
        assert for_label[0] == pytest.approx(for_label[1])
    assert weights[-5:].sum() == 0


def test_a_classifier_with_source_weights_does_not_learn_the_source() -> None:
    # Normals come from another hospital (feature 0); the lesion is feature 1. Without weights the hospital would count.
    rng = np.random.default_rng(3)
    lesion, free, other = (rng.normal(size=(100, 6)) for _ in range(3))
    lesion[:, 1] += 2
    other[:, 0] += 6
    features = np.concatenate((lesion, free, other))
    labels = np.repeat((1, 0, 0), 100)
    sources = ["here"] * 200 + ["there"] * 100
    groups = names(100) + names(100) + names(100, "n")
    moved = free.copy()
    moved[:, 0] += 6
    shift = []
    for weights in (source_weights(labels, sources), np.ones(300)):
        used = weights > 0
        fitted = cross_fit(features[used], labels[used], [g for g, u in zip(groups, used, strict=True) if u], weights=weights[used])  # fmt: skip
        shift.append(abs(np.mean(fitted.probabilities(moved, groups[:100]) - fitted.probabilities(free, groups[:100]))))
    assert shift[0] < 0.5 * shift[1]


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
