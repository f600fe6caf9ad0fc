"""The rewards of a recipe by name: ours, and those of installed packages."""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

from cogalign.grpo.rewards.diagnosis import diagnosis_f1_reward, diagnosis_near_reward
from cogalign.grpo.rewards.length import length_reward
from cogalign.grpo.rewards.pair import pair_reward
from cogalign.grpo.rewards.paper import cognition_reward, diagnosis_reward, format_reward
from cogalign.grpo.rewards.protocol import Reward
from cogalign.grpo.rewards.section import section_cognition_reward
from cogalign.grpo.rewards.structure import structure_reward
from cogalign.recipe import GrpoSettings

REWARDS: dict[str, Reward] = {
    "format": format_reward,
    "cognition": cognition_reward,
    "diagnosis": diagnosis_reward,
    "structure": structure_reward,
    "section_cognition": section_cognition_reward,
    "diagnosis_f1": diagnosis_f1_reward,
    "diagnosis_near": diagnosis_near_reward,
    "pair": pair_reward,
    "length": length_reward,
}
"""Our rewards by the name that recipes and metrics (`rewards/<name>/mean`) use; those of `RewardWeights`."""


def build_rewards(settings: GrpoSettings) -> dict[str, Reward]:
    """The rewards whose weight is not 0, in the order of `RewardWeights`, then of `custom_rewards`.

    A custom reward has the last part of its path as name.

    Raises:
        ValueError: no weight differs from 0, two rewards have one name, or a custom reward is not there or no function.
    """
    wanted = base_weights(settings)
    if not wanted:
        raise ValueError("grpo.reward_weights: found 0 for all rewards, wanted at least one other weight")
    rewards = {name: reward for name, reward in REWARDS.items() if name in wanted}
    if "length" in rewards:
        target, longest = settings.length_target, settings.max_completion_length
        rewards["length"] = partial(length_reward, length_target=target, max_completion_length=longest)
    for index, custom in enumerate(settings.custom_rewards):
        if custom.weight != 0:
            rewards[_name(custom.path)] = load_reward(custom.path, f"grpo.custom_rewards[{index}].path")
    return rewards


def base_weights(settings: GrpoSettings) -> dict[str, float]:
    """Weights by name, before schedules, of the rewards whose weight is not 0.

    Raises:
        ValueError: two rewards have one name.
    """
    all_names(settings)
    weights = asdict(settings.reward_weights) | {_name(c.path): c.weight for c in settings.custom_rewards}
    return {name: float(weight) for name, weight in weights.items() if weight != 0}


def all_names(settings: GrpoSettings) -> tuple[str, ...]:
    """Names of all rewards of a recipe, also of those with the weight 0.

    Raises:
        ValueError: two rewards have one name.
    """
    names = list(REWARDS)
    for index, custom in enumerate(settings.custom_rewards):
        name = _name(custom.path)
        if name in names:
            raise ValueError(
                f"grpo.custom_rewards[{index}].path: found {custom.path!r}, but a reward has the name {name!r} already; "
                "wanted a function of another name"
            )
        names.append(name)
    return tuple(names)


def load_reward(path: str, field: str) -> Reward:
    """The function with a dotted path, e.g. `trl.rewards.think_format_reward`.

    Raises:
        ValueError: there is no such module or function, or its import fails; the message names `field`.
    """
    module, name = path.rsplit(".", 1)
    try:
        found: Any = import_module(module)
    except Exception as error:  # a module of others may raise anything
        raise ValueError(f"{field}: found {path!r}, but the module {module!r} cannot be imported: {error}") from error
    if not hasattr(found, name):
        close = get_close_matches(name, [n for n in dir(found) if not n.startswith("_")], 1, 0.0)
        hint = f"; the nearest is {close[0]!r}" if close else ""
        raise ValueError(f"{field}: found {path!r}, but {module!r} has no {name!r}{hint}")
    reward: Reward = getattr(found, name)
    if not callable(reward) or isinstance(reward, type):
        raise ValueError(f"{field}: found {path!r}, which is {type(reward).__name__}, wanted a function")
    return reward


def _name(path: str) -> str:
    return path.rsplit(".", 1)[-1]
