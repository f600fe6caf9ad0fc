"""Recipes as YAML: read one into typed settings with errors that help, write one out."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from cogalign.recipe import Recipe

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads `1e-4` as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(str(key))
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_mapping(path: Path, kind: str = "recipe", keys: str = "`name:` and `sft:`") -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file.
        kind: what it should be, for messages.
        keys: two of its keys, for messages.

    Raises:
        FileNotFoundError: there is no such file; the message names the nearest one.
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        names = [str(found) for found in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        raise FileNotFoundError(f"{path}: no such {kind}{_hint(str(path), names)}") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a folder, wanted a {kind} (a YAML file)") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file, wanted a {kind} (YAML)") from None
    try:
        content = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ValueError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {_kind(content)}, wanted keys such as {keys}")
    return content


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML, an unknown key (the nearest one is named), a wrong type or value.
    """
    return build_recipe(read_mapping(path), str(path))


def build_recipe(content: Mapping[str, Any], source: str) -> Recipe:
    """Typed settings from plain ones.

    Args:
        content: nested mappings, as in the YAML file.
        source: where they come from, for messages.

    Raises:
        ValueError: as in `read_recipe`.
    """
    return build_settings(Recipe, content, source)


def build_settings(cls: type[T], content: Mapping[str, Any], source: str) -> T:
    """A dataclass of typed settings from plain ones; `build_recipe` for other files in YAML.

    Raises:
        ValueError: as in `read_recipe`.
    """
    return _build(cls, content, "", source)


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True, width=120)


@cache
def recipe_keys() -> tuple[str, ...]:
    """All dotted keys of a recipe, e.g. `sft.lora.r`."""
    return tuple(_keys(Recipe, ""))


def nearest_key(key: str, known: list[str] | tuple[str, ...]) -> str | None:
    """The known key that an unknown one most likely means; None if none is near."""
    found = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not found:  # a key at the wrong level: `learning_rate` for `sft.learning_rate`
        tail = key.rsplit(".", 1)[-1]
        found = [name for name in known if name.rsplit(".", 1)[-1] == tail][:1]
    return found[0] if found else None


def _hint(name: str, known: list[str]) -> str:
    """The part of a message that names the nearest valid thing."""
    near = nearest_key(name, known)
    return f"; did you mean {near}?" if near else ""


def _keys(cls: type, prefix: str) -> list[str]:
    found = []
    for name, hint in get_type_hints(cls).items():
        found.append(prefix + name)
        inner = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind) and get_origin(hint) is not list]
        for kind in inner:
            found += _keys(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found


def _build(cls: type[T], content: Any, prefix: str, source: str) -> T:
    """A dataclass from a mapping; keys below it are named with `prefix`."""
    section = prefix.rstrip(".") or "the recipe"
    if not isinstance(content, Mapping):
        raise ValueError(f"{source}: {section}: found {_shown(content)}, wanted keys and values")
    hints = get_type_hints(cls)
    for key in content:
        if key not in hints:
            elsewhere = recipe_keys() if cls.__module__.startswith("cogalign.recipe") else ()
            near = nearest_key(f"{prefix}{key}", [prefix + name for name in hints]) or nearest_key(
                f"{prefix}{key}", elsewhere
            )
            raise ValueError(
                f"{source}: unknown key `{prefix}{key}`" + (f"; did you mean `{near}`?" if near else
                f" (known: {', '.join(hints)})")
            )  # fmt: skip
    for field in fields(cls):  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING and field.name not in content:
            raise ValueError(f"{source}: {prefix}{field.name} is missing")
    values = {key: _value(hints[key], value, prefix + key, source) for key, value in content.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _value(hint: Any, value: Any, key: str, source: str) -> Any:
    """A value of the type `hint`, or an error that names the key, what was found and what is wanted."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, key + ".", source)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        if len(kinds) == 1:
            return _value(kinds[0], value, key, source)
        if any(_fits(kind, value) for kind in kinds):
            return value
    elif origin is list and isinstance(value, list | tuple):
        return [_value(arguments[0], item, f"{key}[{index}]", source) for index, item in enumerate(value)]
    elif origin is dict and isinstance(value, Mapping):
        return {str(name): _value(arguments[1], item, f"{key}.{name}", source) for name, item in value.items()}
    elif _fits(hint, value):
        return float(value) if hint is float else value
    near = _hint(str(value), [str(choice) for choice in arguments]) if origin is Literal else ""
    raise ValueError(f"{source}: {key}: found {_shown(value)}, wanted {_wanted(hint)}{near}")


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _wanted(hint: Any) -> str:
    """A type in words."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) is list:
        return f"a list; each item {_wanted(get_args(hint)[0])}"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_wanted(kind) for kind in get_args(hint))
    return "keys and values"


def _kind(value: Any) -> str:
    names = {int: "a number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "keys"}
    return names.get(type(value), type(value).__name__) if value is not None else "nothing"


def _shown(value: Any) -> str:
    text = repr(value)
    return "nothing (null)" if value is None else f"{text if len(text) <= 60 else text[:57] + '...'} ({_kind(value)})"
