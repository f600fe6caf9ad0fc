"""Write a recipe out in full, every key with its comment: `python tools/comment_recipe.py recipes/NAME.yaml`.

The comments are the first lines of the docstrings in `cogalign/recipe.py`. The header (the comment lines on
top of the file) stays as it is; comments behind keys are replaced.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

import cogalign.recipe
from cogalign.recipe_file import read_recipe
from cogalign.training.atomic import write_text


def docstrings() -> dict[tuple[str, str], str]:
    """Docstring under each field of each dataclass of `cogalign.recipe`, by class and field."""
    tree = ast.parse(Path(cogalign.recipe.__file__).read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
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


def main() -> None:
    """Command line."""
    for name in sys.argv[1:]:
        path = Path(name)
        header = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            header.append(line)
        body = lines_of(read_recipe(path), docstrings())
        write_text(path, "\n".join([*header, *body]) + "\n")


if __name__ == "__main__":
    main()
