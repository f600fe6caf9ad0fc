import math

import torch
from PIL import Image

from cogalign.data.case import Case
from cogalign.generation.hf import Completion
from cogalign.grpo.observe import length_metrics, reward_metrics, sample_rows


def lengths_of(*completions: tuple[int, bool]) -> dict[str, float]:
    lengths, finished = zip(*completions, strict=True)
    return length_metrics(torch.tensor(lengths), torch.tensor(finished))


def test_lengths_and_the_share_that_was_cut() -> None:
    metrics = lengths_of((2, True), (4, True), (6, True), (8, False))
    assert metrics["completions/mean_length"] == 5
    assert (metrics["completions/min_length"], metrics["completions/max_length"]) == (2, 8)
    assert metrics["completions/mean_terminated_length"] == 4
    assert (metrics["completions/min_terminated_length"], metrics["completions/max_terminated_length"]) == (2, 6)
    assert metrics["completions/clipped_ratio"] == 0.25


def test_a_completion_that_ends_on_the_last_place_is_not_cut() -> None:
    metrics = lengths_of((8, True), (8, False))
    assert metrics["completions/clipped_ratio"] == 0.5


def test_without_any_that_ended_the_terminated_lengths_are_zero() -> None:
    metrics = lengths_of((8, False))
    assert metrics["completions/mean_terminated_length"] == 0 and metrics["completions/clipped_ratio"] == 1


def test_rewards_by_group_and_by_name() -> None:
    nan = math.nan
    grouped = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    single = torch.tensor([[1.0, nan], [0.0, nan], [1.0, 0.5], [0.0, nan]])
    metrics = reward_metrics(grouped, single, ["format", "cognition"])
    assert metrics["reward"] == 2 and math.isclose(metrics["reward_std"], math.sqrt(2) / 2, rel_tol=1e-6)
    assert metrics["rewards/format/mean"] == 0.5
    assert math.isclose(metrics["rewards/format/std"], float(single[:, 0].std()), rel_tol=1e-6)
    assert metrics["rewards/cognition/mean"] == 0.5 and metrics["rewards/cognition/std"] == 0.0
    unknown = reward_metrics(grouped, torch.full((4, 1), nan), ["format"])
    assert math.isnan(unknown["rewards/format/mean"])


def test_missing_share_and_time_of_each_reward() -> None:
    nan = math.nan
    single = torch.tensor([[1.0, nan], [0.0, nan], [1.0, 0.5], [nan, nan]])
    metrics = reward_metrics(torch.ones(2, 2), single, ["format", "pair"], {"pair": 0.25})
    assert (metrics["rewards/format/missing"], metrics["rewards/pair/missing"]) == (0.25, 0.75)
    assert metrics["rewards/pair/time"] == 0.25 and "rewards/format/time" not in metrics


def test_rewards_that_are_not_known_are_left_out() -> None:
    nan = math.nan
    metrics = reward_metrics(torch.tensor([[1.0, 3.0, nan], [nan, nan, nan]]), torch.ones(6, 1), ["format"])
    assert metrics["reward"] == 2
    assert math.isclose(metrics["reward_std"], math.sqrt(2), rel_tol=1e-6)


def test_samples_are_spread_over_the_step() -> None:
    cases = [Case(f"c{k}", f"images/c{k}.png", ("polyp", "ulcer"), "train") for k in range(20)]
    images = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(20)]
    completions = [Completion(f"{k} of {g}", (0,), True) for k in range(20) for g in range(3)]
    rows = sample_rows(cases, images, completions, 3, limit=8)
    assert len(rows) == 7 and len({row["id"] for row in rows}) == 7
    for row in rows:
        index = int(row["id"][1:])
        assert row["completion"] == f"{index} of 0" and row["image"] is images[index]
        assert row["intervention"] == "factual" and row["findings"] == "polyp, ulcer"
    assert [row["id"] for row in sample_rows(cases[:2], images, completions, 3)] == ["c0", "c1"]
