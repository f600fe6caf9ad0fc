"""Frozen dataclasses from YAML: unknown keys and wrong types are errors that name file, key and the nearest key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def named(key: str, **options: Any) -> Any:
    """A field that is written as `key` in the file (`from`, `class` are words of Python)."""
    return field(metadata={"key": key}, **options)


def nearest_of(name: str, known: list[str]) -> str:
    """The end of a message: the known name which is most like `name`, or all names."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"nearest: {near[0]!r}" if near else f"known: {', '.join(known)}"


def build(cls: type[T], content: Any, where: str, source: str) -> T:
    """A dataclass from a mapping.

    Args:
        cls: its fields may be texts, numbers, truth values, `Literal`, other dataclasses, `tuple[X, ...]`,
            `dict[str, X]`, and unions of these.
        content: plain values of a YAML file.
        where: dotted path of the content, for messages; empty at the top.
        source: the file, for messages.

    Raises:
        ValueError: unknown or missing key, wrong type, or a `ValueError` of the dataclass itself.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{source}: {where or 'the card'}: found {_shown(content)}, wanted keys and values")
    known = {_key(one): one for one in fields(cls)}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise ValueError(f"{source}: unknown key `{_join(where, key)}` ({nearest_of(str(key), list(known))})")
    hints = get_type_hints(cls)
    values = {}
    for key, one in known.items():
        if key in content:
            values[one.name] = _value(hints[one.name], content[key], _join(where, key), source)
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{source}: `{_join(where, key)}` is missing")
    try:
        return cls(**values)
    except ValueError as error:
        text = str(error)
        raise ValueError(
            text if text.startswith(f"{source}:") else f"{source}: {where or 'the card'}: {text}"
        ) from None


def _key(one: Field[Any]) -> str:
    return str(one.metadata.get("key", one.name))


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _value(hint: Any, value: Any, where: str, source: str) -> Any:
    """A value of the type `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where, source)
    if origin in (Union, types.UnionType):
        return _one_of(hint, value, where, source)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_value(kind, item, f"{where}[{index}]", source) for index, (kind, item) in pairs)
    elif origin is dict and isinstance(value, Mapping):
        return {
            _dict_key(key, where, source): _value(arguments[1], item, _join(where, key), source)
            for key, item in value.items()
        }
    elif origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        near = f"; {nearest_of(str(value), [str(one) for one in arguments])}"
        raise ValueError(f"{source}: `{where}`: found {_shown(value)}, wanted {_wanted(hint)}{near}")
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{source}: `{where}`: found {_shown(value)}, wanted {_wanted(hint)}")


def _one_of(hint: Any, value: Any, where: str, source: str) -> Any:
    """A value of one of several types: the type is chosen by the kind of the value."""
    for kind in get_args(hint):
        plain = get_origin(kind) or kind
        if value is None and kind is type(None):
            return None
        if isinstance(value, Mapping) and (plain is dict or is_dataclass(kind)):
            return _value(kind, value, where, source)
        if isinstance(value, list) and plain is tuple:
            return _value(kind, value, where, source)
        if plain is Literal and value in get_args(kind):
            return value
        if isinstance(plain, type) and type(value) is plain:
            return value
    raise ValueError(f"{source}: `{where}`: found {_shown(value)}, wanted {_wanted(hint)}")


def _dict_key(key: Any, where: str, source: str) -> str:
    """Keys are texts; whole numbers become texts; YAML's yes, no, on and off are not texts."""
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise ValueError(f"{source}: `{where}`: found the key {_shown(key)}, wanted a text (in quotes)")
    return str(key)


def _wanted(hint: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in words:
        return words[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(one) for one in arguments)
    if origin is tuple:
        many = "" if arguments[1:] == (...,) else f" of {len(arguments)}"
        return f"a list{many}, each item {_wanted(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_wanted(kind) for kind in arguments))
    return "keys and values"


def _shown(value: Any) -> str:
    """A value in a message; a truth value is most often a text that lacks quotes."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{value} (true or false; a text such as yes or no needs quotes)"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
