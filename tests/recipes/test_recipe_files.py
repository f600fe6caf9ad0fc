"""Every file in recipes/: valid, whole, explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cogalign.cli import main
from cogalign.recipe import STAGES
from cogalign.recipe_file import build_recipe, read_mapping, read_recipe, recipe_keys

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
HEADER = ("Hardware:", "Expected time:", "Expected metrics:")

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def header_of(path: Path) -> str:
    """The comment block at the top of a file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return "\n".join(lines)


def keys_with_lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int, bool]]:
    """Dotted key, line (from 0) and whether its value is a mapping, for each key of a block mapping."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            yield prefix + key.value, key.start_mark.line, isinstance(value, yaml.MappingNode)
            yield from keys_with_lines(value, f"{prefix}{key.value}.")


def test_the_recipes_of_the_readme_are_there() -> None:
    wanted = {"quickstart", "quickstart-paper", "tiny-base", "kvasir-cpu", "paper-2b", "paper-4b", "paper-8b"}
    assert wanted <= {path.stem for path in RECIPES}


@each_recipe
def test_prints_its_resolved_settings_through_the_command_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(path), "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert build_recipe(printed, "printed") == read_recipe(path)


@each_recipe
def test_is_named_after_its_file(path: Path) -> None:
    recipe = read_recipe(path)
    assert (recipe.name, recipe.out) == (path.stem, None)


@each_recipe
def test_holds_every_key(path: Path) -> None:
    content = read_mapping(path)
    unused = [stage for stage in STAGES if stage not in content["stages"]]
    unused += ["model"] if content["stages"] == ["segmenter"] else []
    missing = []
    for key in recipe_keys():
        *sections, name = key.split(".")
        if (sections or [name])[0] in unused and (sections or [name])[0] not in content:
            continue  # the settings of a stage that the recipe does not run
        inner = content
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        if inner is None:
            continue  # a whole section that is null, such as data.phantom
        if name not in inner:
            missing.append(key)
    assert not missing


@each_recipe
def test_explains_every_key_beside_or_above_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    bare = [
        key
        for key, line, _ in keys_with_lines(yaml.compose(text))
        if " # " not in lines[line] and not (line and lines[line - 1].lstrip().startswith("# "))
    ]
    assert not bare


@each_recipe
def test_says_above_how_to_launch_it_and_what_to_expect(path: Path) -> None:
    header = header_of(path)
    assert f"recipes/{path.name}" in header
    assert [word for word in HEADER if word not in header] == []


@each_recipe
def test_holds_no_absolute_path(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))

    def texts(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from texts(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from texts(inner)
        elif isinstance(value, str):
            yield value

    assert [text for text in texts(values) if text.startswith(("/", "~"))] == []
