"""Write the tables of all keys in `docs/recipes.md` anew: `python tools/recipe_keys.py`.

Everything from the heading `## The run` to the end of the file is replaced.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from comment_recipe import docstrings

from cogalign import recipe as settings
from cogalign.training.atomic import write_text

DOCS = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
START = "## The run"
LISTS = {
    "data.phantom": settings.PhantomSettings,
    "data.imports": settings.ImportSettings,
    "grpo.reward_schedules": settings.RewardSchedule,
    "grpo.custom_rewards": settings.CustomReward,
}


def shown(value: Any) -> str:
    """A default as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)


def tables(cls: Any, prefix: str, title: str, intro: str, help_: dict[tuple[str, str], str]) -> list[str]:
    """The section of a class and, after it, those of the classes in its fields."""
    rows, later = ["| key | default | meaning |", "|---|---|---|"], []
    for field in fields(cls):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        key = prefix + field.name
        meaning = (
            help_[cls.__name__, field.name].replace("|", "or").replace("None", "null").replace("null (null)", "null")
        )
        if is_dataclass(default):
            later += tables(type(default), f"{key}.", f"`{key}`", meaning + ".", help_)
            continue
        rows.append(f"| `{key}` | {'(needed)' if default is MISSING else f'`{shown(default)}`'} | {meaning}. |")
        if key in LISTS:
            inner = LISTS[key]
            mark, kind = (".", "") if key == "data.phantom" else ("[].", ", a list")
            later += tables(inner, key + mark, f"`{key}`{kind}", (inner.__doc__ or "").splitlines()[0], help_)
    own = [f"## {title}\n\n{intro}\n\n" + "\n".join(rows)] if len(rows) > 2 else []
    return own + later


def main() -> None:
    """Replace the tables."""
    text = DOCS.read_text(encoding="utf-8")
    intro = "A recipe is a mapping of these keys and of the sections below."
    found = tables(settings.Recipe, "", START.removeprefix("## "), intro, docstrings())
    write_text(DOCS, text[: text.index(START)] + "\n\n".join(found) + "\n")


if __name__ == "__main__":
    main()
