"""Write the tables of all keys anew, of recipes in `docs/recipes.md` and of cluster profiles in `docs/profiles.md`.

`python tools/recipe_keys.py`. In both files everything from the heading `## The run` or `## The cluster` to the end is
replaced.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from comment_recipe import docstrings

from cogalign import recipe as settings
from cogalign.cluster import profile
from cogalign.training.atomic import write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
LISTS = {
    "data.phantom": settings.PhantomSettings,
    "data.imports": settings.ImportSettings,
    "audit.sets": settings.AuditSet,
    "grpo.reward_schedules": settings.RewardSchedule,
    "grpo.custom_rewards": settings.CustomReward,
    "rollout_server": profile.RolloutServer,
    "stages": profile.Resources,
}

MARKS = {"data.phantom": (".", ""), "rollout_server": (".", ""), "stages": (".JOB.", ", by the names of jobs")}
WITHOUT = (settings.Recipe,)
"""Classes with a key `stages` of their own."""


def shown(value: Any) -> str:
    """A default as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)


def _meaning(cls: Any, name: str, help_: dict[tuple[str, str], str]) -> str:
    """The docstring of a field, of the class itself or of one that it comes from."""
    return next(help_[one.__name__, name] for one in cls.__mro__ if (one.__name__, name) in help_)


def tables(cls: Any, prefix: str, title: str, intro: str, help_: dict[tuple[str, str], str]) -> list[str]:
    """The section of a class and, after it, those of the classes in its fields."""
    rows, later = ["| key | default | meaning |", "|---|---|---|"], []
    for field in fields(cls):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        key = prefix + field.name
        meaning = (
            _meaning(cls, field.name, help_).replace("|", "or").replace("None", "null").replace("null (null)", "null")
        )
        if is_dataclass(default):
            later += tables(type(default), f"{key}.", f"`{key}`", meaning + ".", help_)
            continue
        rows.append(f"| `{key}` | {'(needed)' if default is MISSING else f'`{shown(default)}`'} | {meaning}. |")
        if key in LISTS and cls not in WITHOUT:
            inner = LISTS[key]
            mark, kind = MARKS.get(key, ("[].", ", a list"))
            later += tables(inner, key + mark, f"`{key}`{kind}", (inner.__doc__ or "").splitlines()[0], help_)
    own = [f"## {title}\n\n{intro}\n\n" + "\n".join(rows)] if len(rows) > 2 else []
    return own + later


def replace_tables(path: Path, start: str, intro: str, cls: Any) -> None:
    """Replace everything from a heading on by the tables of a class."""
    text = path.read_text(encoding="utf-8")
    found = tables(cls, "", start.removeprefix("## "), intro, docstrings())
    write_text(path, text[: text.index(start)] + "\n\n".join(found) + "\n")


def main() -> None:
    """Replace the tables."""
    intro = "A recipe is a mapping of these keys and of the sections below."
    replace_tables(DOCS / "recipes.md", "## The run", intro, settings.Recipe)
    intro = "A profile is a mapping of these keys and of the sections below."
    replace_tables(DOCS / "profiles.md", "## The cluster", intro, profile.Profile)


if __name__ == "__main__":
    main()
