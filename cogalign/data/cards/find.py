"""Where cards are, and reading them."""

from __future__ import annotations

import difflib
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cogalign.data.cards.card import Card
from cogalign.data.cards.strict import build

_REPOSITORY = Path(__file__).resolve().parents[3] / "datasets"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key which is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class; the second of two equal keys is an error."""
        seen = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def cards_folder() -> Path:
    """The folder of the cards: `datasets/` of the repository, else the one that was installed with the package.

    Raises:
        FileNotFoundError: neither is there.
    """
    installed = Path(sys.prefix) / "share" / "cogalign" / "datasets"
    for folder in (_REPOSITORY, installed):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no cards: wanted a folder {_REPOSITORY} or {installed}")


def card_ids() -> list[str]:
    """Ids of all cards, sorted."""
    return sorted(path.stem for path in cards_folder().glob("*.yaml"))


def read_card(name_or_path: str | Path) -> Card:
    """The card of an id (`kvasir-seg`), or of a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no card has this id (the nearest is named), or the file has an error (file and key are named).
    """
    path = Path(name_or_path)
    if path.suffix.lower() in (".yaml", ".yml"):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such card")
        return _read(path)
    known = card_ids()
    if str(name_or_path) not in known:
        near = difflib.get_close_matches(str(name_or_path).lower(), known, n=1, cutoff=0.4)
        hint = f"nearest: {near[0]!r}; " if near else ""
        raise ValueError(f"card: found {str(name_or_path)!r}, {hint}wanted one of {', '.join(known)}")
    return _read(cards_folder() / f"{name_or_path}.yaml")


def list_cards() -> list[Card]:
    """All cards by id.

    Raises:
        ValueError: as `read_card`.
    """
    return [_read(cards_folder() / f"{name}.yaml") for name in card_ids()]


def _read(path: Path) -> Card:
    stat = path.stat()
    card = _parsed(path, stat.st_mtime_ns, stat.st_size)
    if card.id != path.stem:
        raise ValueError(f"{path}: `id`: found {card.id!r}, wanted {path.stem!r} as the file's name")
    return card


@cache
def _parsed(path: Path, _time: int, _size: int) -> Card:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8, wanted a card (YAML)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ValueError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    return build(Card, content, "", str(path))
