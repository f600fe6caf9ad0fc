"""The documents say what is there: keys, commands, fields, files and examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

from cogalign.cli import OTHER_COMMANDS, RECIPE_COMMANDS
from cogalign.cli_data import COMMANDS as DATA_COMMANDS
from cogalign.cognition.report import parse
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.case import Case
from cogalign.recipe import INTERVENTIONS, Fill, ImportSettings, PhantomSettings, Recipe
from cogalign.recipe_file import build_recipe, recipe_keys, recipe_yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

each_doc = pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def examples(text: str, language: str) -> list[str]:
    """Code blocks of a language, also indented ones."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def defaults() -> dict[str, object]:
    """Every key with its default; those of a section that is null by default are read from its class."""
    content = yaml.safe_load(recipe_yaml(build_recipe({"data": {"phantom": {}}}, "defaults")))

    def flat(part: dict[str, object], prefix: str) -> Iterator[tuple[str, object]]:
        for name, value in part.items():
            yield prefix + name, value
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")

    return dict(flat(content, "")) | {"data.phantom": None}


def test_the_list_of_keys_is_whole_and_its_defaults_are_true() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.0-9]+)` \| `(.*?)` \|", text_of("docs/recipes.md"), re.MULTILINE))
    known = defaults()
    wanted = {key for key in recipe_keys() if not isinstance(known[key], dict)}
    assert set(rows) == wanted
    assert {key: rows[key] for key in rows if not _same(rows[key], known[key])} == {}


def _same(told: str, value: object) -> bool:
    """Whether a default as the table tells it is the value (YAML 1.1 reads 1e-06 as a text)."""
    return float(told) == value if isinstance(value, float) else yaml.safe_load(told) == value


def test_sections_and_imports_are_in_the_list_of_keys() -> None:
    text = text_of("docs/recipes.md")
    assert all(f"`data.imports[].{field.name}`" in text for field in fields(ImportSettings))
    assert all(f"`data.phantom.{field.name}`" in text for field in fields(PhantomSettings))
    sections = [field.name for field in fields(Recipe) if isinstance(defaults()[field.name], dict)]
    assert all(f"## `{section}`" in text for section in sections)


def test_every_command_is_described() -> None:
    text = text_of("docs/commands.md")
    assert [name for name in RECIPE_COMMANDS if f"| `{name}` |" not in text] == []
    assert [name for name in OTHER_COMMANDS if f"`cogalign {name}" not in text] == []


def test_every_field_of_a_case_is_described() -> None:
    text = text_of("docs/data.md")
    assert [field.name for field in fields(Case) if f"`{field.name}`" not in text] == []


def test_every_data_command_is_described() -> None:
    text = text_of("docs/commands.md")
    assert [name for name in DATA_COMMANDS if f"`cogalign data {name}" not in text] == []


def test_every_intervention_and_fill_is_described() -> None:
    text = text_of("docs/counterfactuals.md")
    names = [*INTERVENTIONS, *get_args(Fill)]
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", ["README.md", "docs/data.md"])
def test_the_example_row_is_a_valid_case_with_a_whole_report(name: str) -> None:
    rows = examples(text_of(name), "json")
    assert rows
    for row in rows:
        case = Case.from_row(json.loads(row))
        report = parse(case.answer)
        assert set(case.findings) <= set(FINDINGS)
        assert report.missing == () and report.agrees_with(case.findings)
        assert all(word.lower() in case.answer.lower() for words in case.keywords.values() for word in words)
        assert [len(words) for words in case.keywords.values()] == [3, 3, 3]


@each_doc
def test_commands_and_options_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    commands = set(re.findall(r"\bcogalign ([a-z]+)\b", "\n".join(re.findall(r"`([^`\n]+)`", text))))
    commands |= {
        found for block in examples(text, "(?:bash|sh)") for found in re.findall(r"\bcogalign ([a-z]+)\b", block)
    }
    assert commands <= {*RECIPE_COMMANDS, *OTHER_COMMANDS}
    dotted = set(re.findall(r"--([a-z_]+\.[a-z_.]+)\b", text))
    assert dotted - {"key.subkey"} <= set(recipe_keys())


@each_doc
def test_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:cogalign|tests|recipes|docs|datasets)/[\w/.-]+\.(?:py|yaml|md))`", text)) - {
        "recipes/NAME.yaml",
        "datasets/NAME.yaml",
    }
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'src="([^":]+)"', text)
    missing += [link for link in links if not (path.parent / link).exists()]
    assert missing == []


@each_doc
def test_python_examples_compile(path: Path) -> None:
    for block in examples(path.read_text(encoding="utf-8"), "python"):
        indent = len(block) - len(block.lstrip(" "))
        compile("\n".join(line[indent:] for line in block.splitlines()), str(path), "exec")
