"""A study: one recipe trained in several ways (arms), each with several seeds, all judged alike."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cogalign.recipe_checks import require as _require

Trains = Literal["sft", "grpo"]
ROLES: dict[str, str] = {"sft": "sft", "grpo": "aligned"}
"""The model role that an arm is judged as, by the stage that it trains."""
RESERVED = ("set", "shared", "recipe")
"""Names that no arm may have: files in `recipes/` begin with them."""
OWN = "audit"
"""Where a measure of the study's own pairs is; that of an audit set is at the set's name, which must be another."""
PRIMARY = f"{OWN}/lesion_read_rate"
_ARM = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SET = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class ArmSettings:
    """One way of training."""

    title: str
    """Its name in tables and plots."""
    trains: Trains
    """The stage that it trains: `sft` or `grpo`."""
    after: str | None = None
    """The arm at whose checkpoint of the same seed it starts; null starts from the base model."""
    set: dict[str, object] = field(default_factory=dict)
    """Keys of the recipe that it sets, dotted, e.g. `grpo.mix.removal`."""


@dataclass
class StudySettings:
    """A whole study."""

    name: str
    """Its name; its folder is `runs/<name>` unless `--out` is given."""
    recipe: str
    """The recipe that all runs share, relative to the study's file."""
    seeds: list[int]
    """Seeds; each arm is trained once with each."""
    arms: dict[str, ArmSettings]
    """The ways of training, by a short name."""
    sets: dict[str, dict[str, object]] = field(default_factory=dict)
    """Audit sets: the keys `counterfactual.*` with which each is made of the same cases, by a short name."""
    reference: str | None = None
    """The arm from which differences are taken; null is the first."""
    compare: list[list[str]] = field(default_factory=list)
    """Pairs of arms that are tested against each other."""
    primary: str = PRIMARY
    """The measure that decides, chosen before the results are seen: `audit`, a set or a split, and a name, as in `study.json`."""
    equal_steps: bool = True
    """All arms, but those that others start from, must have as many optimizer steps, those before them included."""

    def __post_init__(self) -> None:
        _require(bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "each seed once")
        _require(bool(self.arms), "arms", self.arms, "at least one arm")
        for name in self.arms:
            fine = _ARM.fullmatch(name) is not None and name not in RESERVED
            _require(fine, "arms", name, f"a name of letters, digits and _, none of {', '.join(RESERVED)}")
        for name in self.sets:
            fine = _SET.fullmatch(name) is not None and name != OWN
            _require(fine, "sets", name, f"a name of letters, digits, - and _, but not {OWN}")
        titles = [arm.title for arm in self.arms.values()]
        for name, arm in self.arms.items():
            _require(titles.count(arm.title) == 1, f"arms.{name}.title", arm.title, "a title that no other arm has")
            self._require_arm(arm.after, f"arms.{name}.after")
            _require(arm.trains == "sft" or arm.after is not None, f"arms.{name}.after", arm.after,
                     "an arm: grpo starts where one of them ended")  # fmt: skip
            self.before(name)
        self._require_arm(self.reference, "reference")
        for pair in self.compare:
            _require(len(pair) == 2 and pair[0] != pair[1], "compare", pair, "two arms in each pair")
            for name in pair:
                self._require_arm(name, "compare")

    def _require_arm(self, name: str | None, key: str) -> None:
        """Raise a `ValueError` that names the nearest arm where there is none of this name."""
        from cogalign.recipe_file import nearest_key

        if name is None or name in self.arms:
            return
        near = nearest_key(name, list(self.arms))
        _require(
            False, key, name, f"one of the arms {', '.join(self.arms)}" + (f"; did you mean {near}?" if near else "")
        )

    def before(self, name: str) -> list[str]:
        """The arms that an arm builds on, the first one first, without itself.

        Raises:
            ValueError: it builds on itself.
        """
        found: list[str] = []
        after = self.arms[name].after
        while after is not None:
            _require(after != name and after not in found, f"arms.{name}.after", self.arms[name].after,
                     "an arm that does not itself start from this one")  # fmt: skip
            found.insert(0, after)
            after = self.arms[after].after
        return found

    @property
    def ordered(self) -> list[str]:
        """The arms, each after those that it builds on, else in the file's order."""
        return list(dict.fromkeys(one for name in self.arms for one in (*self.before(name), name)))


def read_study(path: Path) -> StudySettings:
    """Read and validate a study's file; `OUT/study.yaml`, the resolved one, is such a file too.

    Raises:
        FileNotFoundError: there is no such file; the message names the nearest one.
        ValueError: not YAML, an unknown key (the nearest one is named), a wrong type or value.
    """
    from cogalign.recipe_file import build_settings, read_mapping

    return build_settings(StudySettings, read_mapping(path, "study", "`recipe:` and `arms:`"), str(path))
