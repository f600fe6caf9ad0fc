"""The weight of each reward at an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

from cogalign.grpo.rewards.build import all_names, base_weights
from cogalign.recipe import GrpoSettings


def weights_at(step: int, settings: GrpoSettings) -> dict[str, float]:
    """Weights of the rewards that are computed (`build_rewards`, same order) at an optimizer step, counted from 0.

    A schedule multiplies the weight by its factor: linear between two points, constant before the first and after the
    last. A schedule of a reward whose weight is 0 changes nothing.

    Raises:
        ValueError: a schedule names no reward or one that another schedule names; two rewards have one name.
    """
    weights = base_weights(settings)
    known = all_names(settings)
    seen: set[str] = set()
    for index, schedule in enumerate(settings.reward_schedules):
        name, field = schedule.reward, f"grpo.reward_schedules[{index}].reward"
        if name not in known:
            nearest = get_close_matches(name, known, 1, 0.0)[0]
            raise ValueError(f"{field}: unknown reward {name!r}, the nearest is {nearest!r}")
        if name in seen:
            raise ValueError(f"{field}: {name!r} has a schedule already, wanted one with all points")
        seen.add(name)
        if name in weights:
            weights[name] *= _factor(step, schedule.points)
    return weights


def _factor(step: int, points: Sequence[Sequence[float]]) -> float:
    """Factor at a step of a line through the points, whose steps rise."""
    if step <= points[0][0]:
        return float(points[0][1])
    for (left, low), (right, high) in pairwise(points):
        if step <= right:
            return float(low + (high - low) * (step - left) / (right - left))
    return float(points[-1][1])
