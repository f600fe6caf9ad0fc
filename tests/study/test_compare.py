from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cogalign.study.compare import compare, comparisons, holm
from cogalign.study.measures import Measure

RATE = Measure("audit", "removal_normal_rate")
SCORE = Measure("audit", "causal_score")


def events(
    values: Sequence[float], seed: int = 1, key: str = RATE.key, groups: Sequence[str] | None = None
) -> pd.DataFrame:
    ids = [f"i{number}" for number in range(len(values))]
    return pd.DataFrame(
        {"key": key, "id": ids, "group": ids if groups is None else groups, "value": values, "seed": seed}
    )


def test_holm_multiplies_the_smallest_most_and_never_turns_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_is_the_first_arm_less_the_second_on_images_of_both() -> None:
    arm, against = events([1.0] * 9 + [0.0] * 3), events([0.0] * 6 + [1.0] * 2 + [0.0] * 2)
    found = compare(arm, against, RATE)
    assert found is not None
    # Ten images in common: right in 9 and in 2.
    assert found["n"] == 10 and found["difference"] == pytest.approx(0.9 - 0.2)
    assert found["ci"][0] > 0.3 and found["ci"][1] <= 1
    assert found["p"] == pytest.approx(2 / 2**7)
    one = found["seeds"]["1"]
    assert (one["only_arm"], one["only_against"]) == (7, 0)
    assert one["p_mcnemar"] == pytest.approx(stats.binomtest(7, 7).pvalue)


def test_two_seeds_on_the_same_images_are_no_more_evidence_than_their_images() -> None:
    arm = pd.concat([events([1.0] * 5, seed) for seed in (1, 2)])
    against = pd.concat([events([0.0] * 5, seed) for seed in (1, 2)])
    found = compare(arm, against, RATE)
    assert found is not None and found["groups"] == 5
    assert found["p"] == pytest.approx(2 / 2**5)
    assert found["ci"][1] == 1 and 0.3 < found["ci"][0] < 1  # no resample differs: Wilson's of five groups, not of ten


def test_arms_that_agree_everywhere_differ_by_nothing_with_a_width() -> None:
    found = compare(events([1.0] * 20), events([1.0] * 20), RATE)
    assert found is not None
    assert found["difference"] == 0 and found["p"] == 1 and found["ci"][0] < 0 < found["ci"][1]


def test_the_test_holds_its_level_where_images_of_a_group_are_alike() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([f"g{number}" for number in range(20)], 8).tolist()
    grouped, plain = [], []
    for _ in range(60):
        arm, against = (events(np.repeat(rng.integers(0, 2, 20), 8).astype(float), groups=groups) for _ in range(2))
        found = compare(arm, against, RATE, resamples=10)
        assert found is not None
        grouped.append(found["p"])
        plain.append(found["seeds"]["1"]["p_mcnemar"])
    assert np.mean(np.array(grouped) < 0.05) < 0.12
    assert np.mean(np.array(plain) < 0.05) > 0.3  # McNemar's takes the 160 images as independent


def _score_events(right: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng([seed, int(100 * right)])
    return pd.concat(
        [events((rng.random(40) < right).astype(float), seed, key) for key in SCORE.parts], ignore_index=True
    )


def test_causal_scores_are_compared_over_all_four_rates() -> None:
    arm, against = (pd.concat([_score_events(right, seed) for seed in (1, 2)]) for right in (0.9, 0.5))
    found = compare(arm, against, SCORE)
    assert found is not None
    rates = [frame.groupby(["seed", "key"])["value"].mean().groupby("seed").mean() for frame in (arm, against)]
    assert found["difference"] == pytest.approx((rates[0] - rates[1]).mean())
    assert {seed: one["difference"] for seed, one in found["seeds"].items()} == pytest.approx(
        {str(seed): value for seed, value in (rates[0] - rates[1]).items()}
    )
    assert "p_mcnemar" not in found["seeds"]["1"] and found["n"] == 160
    assert found["p"] < 0.001 and 0.2 < found["ci"][0] < found["difference"] < found["ci"][1] < 0.6
    assert compare(arm[arm["key"] != SCORE.parts[3]], against, SCORE) is None


def test_holm_is_over_the_pairs_of_one_measure() -> None:
    arms = {"a": events([1.0] * 8), "b": events([0.0] * 8), "c": events([1.0] * 6 + [0.0] * 2)}
    other = {name: frame.assign(key="test/accuracy") for name, frame in arms.items()}
    both = {name: pd.concat([frame, other[name]]) for name, frame in arms.items()}
    rows = comparisons(both, [["a", "b"], ["a", "c"], ["a", "missing"]], [RATE, Measure("test", "accuracy")], 100)
    assert [(row["measure"], row["against"]) for row in rows] == [
        (RATE.key, "b"), (RATE.key, "c"), ("test/accuracy", "b"), ("test/accuracy", "c"),
    ]  # fmt: skip
    assert rows[0]["p_holm"] == pytest.approx(2 * rows[0]["p"]) and rows[1]["p_holm"] == pytest.approx(rows[1]["p"])
