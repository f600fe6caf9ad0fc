"""Checks of a cluster profile's values: whatever is refused here cannot break a job script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from cogalign.recipe_checks import require

SECRET = {
    "KEY",
    "KEYS",
    "APIKEY",
    "TOKEN",
    "TOKENS",
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIALS",
}
"""Parts of a variable's name (between underscores) that tell a secret; TOKENIZERS_PARALLELISM is none."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SIZE = re.compile(r"\d+[KMGT]?")
TIME = re.compile(r"\d+|\d+:\d{1,2}|\d+:\d{1,2}:\d{1,2}|\d+-\d{1,2}(:\d{1,2}){0,2}")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def require_line(name: str, value: str | None) -> None:
    """Refuse an empty text, and one with line ends or other control characters.

    Raises:
        ValueError: names the key.
    """
    good = value is None or (bool(value.strip()) and CONTROL.search(value) is None)
    require(good, name, value, "one line of text, or null")


def require_lines(name: str, values: Sequence[str]) -> None:
    """`require_line` for each item of a list."""
    for index, value in enumerate(values):
        require_line(f"{name}[{index}]", value)


def require_words(name: str, value: str) -> None:
    """Refuse a command that is no list of shell words."""
    require_line(name, value)
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{name}: found {value!r}, wanted a command ({error})") from None
    require(bool(words), name, value, "a command")


def require_size(name: str, value: str | None) -> None:
    """Refuse what sbatch does not take as memory."""
    require(value is None or SIZE.fullmatch(value) is not None, name, value, "a number with K, M, G or T, e.g. 64G")


def require_time(name: str, value: str | int | None) -> None:
    """Refuse what sbatch does not take as a time limit.

    YAML reads 12:00:00 without quotes as a number to the base 60, which sbatch would take for minutes.
    """
    good = value is None or (isinstance(value, str) and TIME.fullmatch(value) is not None)
    require(good, name, value, 'a time in quotes: "MINUTES", "HH:MM:SS" or "D-HH:MM:SS"')


def seconds_of_limit(text: str) -> int | None:
    """Seconds of a time limit as sbatch reads it (`MINUTES`, `M:S`, `H:M:S`, `D-H`, `D-H:M`, `D-H:M:S`); None for no limit."""
    days, dash, rest = text.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if not dash:
        numbers = [0, *numbers] if len(numbers) < 3 else numbers
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or None


def require_options(name: str, values: Sequence[str]) -> None:
    """Refuse what is no long option of sbatch."""
    require_lines(name, values)
    for index, value in enumerate(values):
        require(re.match(r"--[a-z]", value) is not None, f"{name}[{index}]", value, "an option such as --exclusive")


def require_mounts(name: str, values: Sequence[str]) -> None:
    """Refuse what is no mount; commas would separate two of them."""
    require_lines(name, values)
    for index, value in enumerate(values):
        good = "," not in value and re.fullmatch(r"/[^:]*:/[^:]*(:\w+)?", value) is not None
        require(good, f"{name}[{index}]", value, "/OUTSIDE:/INSIDE, absolute paths without commas")


def require_variables(name: str, values: Mapping[str, object]) -> None:
    """Refuse names that no variable can have, and secrets, which would lie in a script that others may read.

    Raises:
        ValueError: names the variable; a secret's value is never shown.
    """
    for variable, value in values.items():
        require(VARIABLE.fullmatch(variable) is not None, name, variable, "the name of an environment variable")
        if SECRET & set(variable.upper().split("_")):
            raise ValueError(
                f"{name}.{variable}: looks like a secret, which would be written into the job scripts; "
                f"leave it out and `export {variable}=...` in the shell that calls `cogalign submit`: jobs inherit it"
            )
        require(CONTROL.search(str(value)) is None, f"{name}.{variable}", value, "one line of text")
