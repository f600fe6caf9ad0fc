"""Dotted keys with which the parts of a study, and the command line, set what is in a recipe."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cogalign.study.settings import StudySettings

FIXED = ("name", "out", "seed", "stages", "evaluate.models", "audit.models", "sft.start", "sft.checkpoint")
"""Keys that the study gives to each of its runs."""
OF_ARMS = ("sft", "grpo", "model", "trainer", "tracking")
"""Sections that an arm may set; the cases and the way of judging are the same for all."""
OF_SETS = ("counterfactual",)


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys as dotted ones."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def laid_over(content: Mapping[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with some keys set; a mapping as a value sets the keys below, and leaves the others."""
    found = dict(content)
    for key, value in dotted.items():
        first, _, rest = key.partition(".")
        below = found.get(first)
        below = below if isinstance(below, Mapping) else {}
        if rest:
            found[first] = laid_over(below, {rest: value})
        else:
            found[first] = laid_over(below, value) if isinstance(value, Mapping) else value
    return found


def without(study: StudySettings, over: Collection[str]) -> StudySettings:
    """The study without the keys that the command line sets."""

    def left(own: Mapping[str, object]) -> dict[str, object]:
        return {key: value for key, value in flat(own) if key not in over}

    arms = {name: replace(arm, set=left(arm.set)) for name, arm in study.arms.items()}
    return replace(study, arms=arms, sets={name: left(own) for name, own in study.sets.items()})


def check_keys(study: StudySettings, over: Collection[str], source: str) -> None:
    """Refuse unknown keys, and keys that a part of a study cannot set.

    Args:
        study: the study.
        over: dotted keys of the command line.
        source: the study's file, for messages.

    Raises:
        ValueError: the first of them; the nearest key is named.
    """
    for key in over:
        _check_key(key, None, f"{source}: the command line")
    for name, arm in study.arms.items():
        for key, _ in flat(arm.set):
            _check_key(key, OF_ARMS, f"{source}: arms.{name}.set")
    for name, own in study.sets.items():
        for key, _ in flat(own):
            _check_key(key, OF_SETS, f"{source}: sets.{name}")


def _check_key(key: str, sections: tuple[str, ...] | None, where: str) -> None:
    from cogalign.recipe_file import nearest_key, recipe_keys

    if key not in recipe_keys():
        near = nearest_key(key, recipe_keys())
        raise ValueError(f"{where}: unknown key `{key}`" + (f"; did you mean `{near}`?" if near else ""))
    if key in FIXED:
        raise ValueError(f"{where}: found `{key}`, which the study itself gives to each of its runs")
    if sections is not None and key.split(".")[0] not in sections:
        raise ValueError(
            f"{where}: found `{key}`, wanted keys of {', '.join(sections)}: all arms share their cases and are judged alike"
        )
