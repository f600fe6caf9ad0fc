"""Templates with placeholders: patterns of paths (`images/{class}/{stem}.{suffix}`) and texts (`video-{t.id}`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

SUFFIXES = ("jpg", "jpeg", "png", "bmp", "tif", "tiff")
"""What `{suffix}` matches, without regard to case."""
_SUFFIX = "(?i:" + "|".join(SUFFIXES) + ")"


@dataclass(frozen=True)
class Slot:
    """A placeholder: `{name}` or `{name:regular expression}`."""

    name: str
    regex: str | None = None


@cache
def parse(template: str) -> tuple[str | Slot, ...]:
    """The literal texts and placeholders of a template, in order. Braces inside an expression must be balanced.

    Raises:
        ValueError: a brace is not closed or a placeholder has no name.
    """
    parts: list[str | Slot] = []
    literal, index = "", 0
    while index < len(template):
        if template[index] != "{":
            literal += template[index]
            index += 1
            continue
        end = _closing(template, index)
        name, colon, regex = template[index + 1 : end].partition(":")
        if not name.strip():
            raise ValueError(f"template {template!r}: found a placeholder without a name, wanted e.g. {{stem}}")
        if literal:
            parts.append(literal)
        parts.append(Slot(name.strip(), regex if colon else None))
        literal, index = "", end + 1
    if literal:
        parts.append(literal)
    return tuple(parts)


def _closing(template: str, start: int) -> int:
    """Where the brace that opens at `start` is closed."""
    depth = 0
    for index in range(start, len(template)):
        if template[index] == "\\":
            continue
        depth += {"{": 1, "}": -1}.get(template[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"template {template!r}: a brace is not closed")


def alternatives(template: str) -> list[str]:
    """The templates that a text `a|b` gives; a `|` inside a placeholder's expression separates nothing."""
    found, depth = [""], 0
    for character in template:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def placeholders(template: str) -> tuple[str, ...]:
    """Names of the placeholders of a template, each once, in order.

    Raises:
        ValueError: as `parse`.
    """
    return tuple(dict.fromkeys(part.name for part in parse(template) if isinstance(part, Slot)))


def expand(template: str, fields: Mapping[str, str]) -> str | None:
    """The text of a template; None if a field is missing or empty."""
    texts = []
    for part in parse(template):
        text = part if isinstance(part, str) else fields.get(part.name)
        if not text:
            return None
        texts.append(text)
    return "".join(texts)


def expand_all(template: str, fields: Mapping[str, str], rows: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """Every text of a template, where a table has several rows for an image: one for each row, without repetition.

    Args:
        template: it may name columns of one such table.
        fields: what is the same for all rows.
        rows: rows by name of the table; columns without the table's name.
    """
    names = [name.partition(".")[0] for name in placeholders(template)]
    table = next((name for name in names if name in rows), None)
    if table is None:
        text = expand(template, fields)
        return [] if text is None else [text]
    texts = (
        expand(template, {**fields, **{f"{table}.{name}": value for name, value in row.items()}}) for row in rows[table]
    )
    return list(dict.fromkeys(text for text in texts if text is not None))


@cache
def regex_of(template: str) -> re.Pattern[str]:
    """The expression that matches a whole path (with `/`) and has a group (`group_name`) for each placeholder.

    `*` and `?` match within one component, `**/` any folders; a placeholder matches within one component.

    Raises:
        ValueError: the template or an expression in it is not valid, or could take for ever.
    """
    return filled_regex(template, {})


def filled_regex(template: str, known: Mapping[str, str]) -> re.Pattern[str]:
    """As `regex_of`; the `known` placeholders stand for their texts and have no group."""
    seen: set[str] = set()
    expression = ""
    for part in parse(template):
        if isinstance(part, str):
            expression += _glob(part)
        elif part.name in known:
            expression += re.escape(known[part.name])
        elif part.name in seen:
            expression += f"(?P={group_name(part.name)})"
        else:
            seen.add(part.name)
            _refuse_endless(template, part.regex or "")
            inside = part.regex or (_SUFFIX if part.name == "suffix" else "[^/]+")
            expression += f"(?P<{group_name(part.name)}>{inside})"
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(f"template {template!r}: not a valid pattern ({error})") from None


def _refuse_endless(template: str, expression: str) -> None:
    """Refuse a repeated group which itself may match in several ways: such a search can take for ever.

    A group that is repeated (`*`, `+`, `{...}`) may hold neither a repetition nor `|`: `(a+)+`, `(a|ab)*`.

    Raises:
        ValueError: it does; the message names the expression.
    """
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", expression)  # escaped characters and sets are single characters
    choices: list[bool] = []
    for place, character in enumerate(plain):
        if character == "(":
            choices.append(False)
        elif character == ")" and choices:
            inner = choices.pop()
            if inner and re.match(r"[*+]|\{", plain[place + 1 :]):
                raise ValueError(
                    f"template {template!r}: the expression {expression!r} repeats a group that holds a repetition or "
                    "a choice, which can take for ever; wanted one without"
                )
            if choices and inner:
                choices[-1] = True
        elif character in "*+|{" and choices:
            choices[-1] = True


def group_name(name: str) -> str:
    """A placeholder's name as the name of a group: letters, digits and `_`."""
    return "g_" + re.sub(r"\W", "_", name)


def _glob(text: str) -> str:
    """The regular expression of a literal text with wildcards."""
    found = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?)", text):
        found += {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))
    return found
