"""Write a recipe out in full, every key with its comment: `python tools/comment_recipe.py [--missing] recipes/NAME.yaml`.

The comments are the first lines of the docstrings in `cogalign/recipe.py`. The header (the comment lines on
top of the file) stays as it is; comments behind keys are replaced. With `--missing` lines that are there stay as they
are, and only keys that are not there are added, each behind the key before it. The section of a segmenter is left out
where the recipe trains none.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

import cogalign.cluster.profile
import cogalign.recipe
import cogalign.recipe_counterfactual
import cogalign.recipe_grpo
import cogalign.recipe_segmenter
from cogalign.recipe_file import read_recipe
from cogalign.training.atomic import write_text

OPTIONAL = ("segmenter",)
"""Sections that a recipe leaves out whose stages do not name them."""


def docstrings() -> dict[tuple[str, str], str]:
    """Docstring under each field of each dataclass of recipes and cluster profiles, by class and field."""
    parts = (
        cogalign.cluster.profile,
        cogalign.recipe,
        cogalign.recipe_counterfactual,
        cogalign.recipe_grpo,
        cogalign.recipe_segmenter,
    )
    files = [str(part.__file__) for part in parts]
    statements = [node for file in files for node in ast.parse(Path(file).read_text(encoding="utf-8")).body]
    found = {}
    for node in statements:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement, following in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_text:
                text = " ".join(str(following.value.value).split())  # type: ignore[attr-defined]
                found[node.name, statement.target.id] = text.rstrip(".")
    return found


def lines_of(settings: Any, comments: dict[tuple[str, str], str], indent: str = "") -> list[str]:
    """YAML lines of a dataclass, each key with its comment."""
    lines: list[str] = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        comment = comments.get((type(settings).__name__, field.name), "")
        comment = f"  # {comment}" if comment else ""
        if field.name in OPTIONAL and field.name not in getattr(settings, "stages", OPTIONAL):
            continue
        if is_dataclass(value):
            if not indent:
                lines.append("")
            lines += [f"{indent}{field.name}:{comment}", *lines_of(value, comments, indent + "  ")]
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            lines.append(f"{indent}{field.name}:{comment}")
            for item in value:
                first, *rest = lines_of(item, comments, indent + "    ")
                lines += [f"{indent}  - {first.strip()}", *rest]
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
            lines.append(f"{indent}{field.name}: {text.removesuffix(chr(10)).removesuffix('...').strip()}{comment}")
    return lines


def with_keys(lines: list[str]) -> list[tuple[str, str]]:
    """Dotted key and line of the lines of a recipe; other lines (comments, items of lists) have the key ''."""
    stack: list[tuple[int, str]] = []
    keyed = []
    for line in lines:
        match = re.match(r"( *)([A-Za-z_]\w*):", line)
        if match is None:
            keyed.append(("", line))
            continue
        depth = len(match.group(1))
        stack = [(d, key) for d, key in stack if d < depth] + [(depth, match.group(2))]
        keyed.append((".".join(key for _, key in stack), line))
    return keyed


def add_missing(old: list[str], new: list[str]) -> list[str]:
    """`old` with the lines of `new` whose keys it has not, each behind the key before it in `new`."""
    result, there = with_keys(old), {key for key, _ in with_keys(old) if key}
    before, item = "", 0
    for key, line in with_keys(new):
        if line.lstrip().startswith("- "):
            item = len(line) - len(line.lstrip())
        elif len(line) - len(line.lstrip()) <= item:
            item = 0
        if item:
            continue  # the items of a list are the recipe's own
        section = key.rpartition(".")[0]
        if key and key not in there and (not section or section in there):
            place = max(i for i, (k, _) in enumerate(result) if k == before or k.startswith(before + "."))
            result.insert(place + 1, (key, line))
            there.add(key)
        before = key or before
    return [line for _, line in result]


def main() -> None:
    """Command line."""
    missing_only = "--missing" in sys.argv
    for name in (argument for argument in sys.argv[1:] if argument != "--missing"):
        path = Path(name)
        if missing_only:
            old = path.read_text(encoding="utf-8").splitlines()
            write_text(path, "\n".join(add_missing(old, lines_of(read_recipe(path), docstrings()))) + "\n")
            continue
        header = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            header.append(line)
        body = lines_of(read_recipe(path), docstrings())
        write_text(path, "\n".join([*header, *body]) + "\n")


if __name__ == "__main__":
    main()
