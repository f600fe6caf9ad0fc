"""Rewards, weights and schedules of a recipe, and the reward `length`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.grpo.rewards import REWARDS, build_rewards, length_reward, weights_at
from cogalign.recipe import CustomReward, GrpoSettings, RewardSchedule, RewardWeights


def recipe(*custom: str, **more: Any) -> GrpoSettings:
    return GrpoSettings(custom_rewards=[CustomReward(path, 0.5) for path in custom], **more)


def test_only_rewards_with_a_weight_are_built_in_order() -> None:
    weights = RewardWeights(format=0.0, length=1.0, structure=-0.5)
    built = build_rewards(recipe("trl.rewards.think_format_reward", reward_weights=weights))
    assert list(built) == ["cognition", "diagnosis", "structure", "length", "think_format_reward"]
    assert built["cognition"] is REWARDS["cognition"]


def test_length_has_the_recipes_limits() -> None:
    built = build_rewards(recipe(reward_weights=RewardWeights(length=1.0), length_target=2, max_completion_length=4))
    assert built["length"](completion_ids=[[1], [1, 1, 1], [1] * 4], completions=["a"] * 3) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.rewards.mine", r"'no_such_package.rewards' cannot be imported: No module"),
        ("math.squareroot", r"'math' has no 'squareroot'; the nearest is"),
        ("math.pi", r"which is float, wanted a function"),
        ("cogalign.grpo.rewards.length_reward.x", r"cannot be imported"),
        ("decimal.Decimal", r"which is type, wanted a function"),
    ],
)
def test_a_custom_reward_that_is_not_there_is_named(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^grpo\.custom_rewards\[0\]\.path: found .*" + message):
        build_rewards(recipe(path))


@pytest.mark.parametrize("paths", [("my.format",), ("math.sqrt", "cmath.sqrt")])
def test_two_rewards_of_one_name_are_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"grpo\.custom_rewards\[\d\]\.path: .* has the name '(format|sqrt)' already"):
        build_rewards(recipe(*paths))


def test_no_weight_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grpo\.reward_weights: found 0 for all"):
        build_rewards(recipe(reward_weights=RewardWeights(0, 0, 0)))


def schedule(reward: str, *points: list[float]) -> RewardSchedule:
    return RewardSchedule(reward, list(points))


def test_weights_follow_their_schedules() -> None:
    settings = recipe("math.sqrt", reward_schedules=[
        schedule("diagnosis", [10, 0.0], [20, 1.0], [40, 0.5]), schedule("sqrt", [5, 2.0]),
    ])  # fmt: skip
    assert [weights_at(step, settings)["diagnosis"] for step in (0, 10, 15, 20, 30, 40, 99)] == [0, 0, 1, 2, 1.5, 1, 1]
    assert weights_at(0, settings) == {"format": 1, "cognition": 1, "diagnosis": 0, "sqrt": 1}


def test_the_names_of_weights_are_those_of_the_rewards_built() -> None:
    settings = recipe("math.sqrt", reward_schedules=[schedule("pair", [0, 0.0]), schedule("format", [0, 0.0])])
    assert list(weights_at(3, settings)) == list(build_rewards(settings))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 2)), min_size=1, max_size=5, unique_by=lambda p: p[0]),
       st.integers(-5, 60))  # fmt: skip
def test_a_factor_stays_between_its_points(points: list[tuple[int, float]], step: int) -> None:
    points = sorted(points)
    weight = weights_at(step, recipe(reward_schedules=[schedule("format", *map(list, points))]))["format"]
    factors = [factor for _, factor in points]
    assert min(factors) - 1e-9 <= weight <= max(factors) + 1e-9
    for at, factor in points:
        if at == step:
            assert math.isclose(weight, factor, abs_tol=1e-9)


def test_a_schedule_of_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"reward_schedules\[0\]\.reward: unknown reward 'diagnose', .*'diagnosis'"):
        weights_at(0, recipe(reward_schedules=[schedule("diagnose", [0, 1])]))


def test_two_schedules_of_one_reward_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reward_schedules\[1\]\.reward: 'format' has a schedule already"):
        weights_at(0, recipe(reward_schedules=[schedule("format", [0, 1]), schedule("format", [0, 2])]))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 60))
def test_length_falls_from_one_to_zero(target: int, longest: int, length: int) -> None:
    (value,) = length_reward([[0] * length], ["x"], target, longest)
    assert value is not None and 0 <= value <= 1
    assert (value == 1) == (length <= target)
    if length >= longest and length > target:
        assert value == 0


def test_length_is_not_fooled_by_silence() -> None:
    assert length_reward([[], [5], [5]], ["", " ", "a"]) == [0.0, 0.0, 1.0]
