"""Cards on the console: `cogalign data cards`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cogalign.data.cards.card import Card
from cogalign.data.cards.find import cards_folder, list_cards, read_card

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 100


def card_table() -> Table:
    """All cards: id, images, what a case can have beside its class, licence."""
    from rich.table import Table

    table = Table("id", "images", "annotated", "pass on", "commercial use", title=f"cards in {cards_folder()}")
    for card in list_cards():
        images = "" if card.expected.images is None else f"{card.expected.images:,}"
        table.add_row(
            card.id, images, ", ".join(_annotated(card)), card.licence.redistribution, card.licence.commercial
        )
    table.caption = "`cogalign data cards ID` shows one whole"
    return table


def card_lines(name: str) -> list[str]:
    """What a card says, for people; see `read_card` for the errors."""
    card = read_card(name)
    return [line for title, text in _facts(card) for line in _wrapped(title, text)]


def _annotated(card: Card) -> list[str]:
    """What is annotated."""
    parts = card.layout.parts
    found = {
        "class": any(part.label is not None for part in parts),
        "masks": any(part.mask is not None for part in parts),
        "boxes": any(part.boxes is not None for part in parts),
        "groups": any(part.group is not None for part in parts),
        "split": any(part.split is not None for part in parts),
        "questions": card.expected.questions is not None,
    }
    return [name for name, there in found.items() if there]


def _facts(card: Card) -> Iterator[tuple[str, str]]:
    """Title and text of each fact."""
    licence = card.licence
    yield "id", card.id
    yield "title", card.title
    yield "summary", card.summary
    yield "homepage", card.homepage
    yield "obtain", card.obtain
    yield "licence", f"{licence.name} (pass on: {licence.redistribution}; commercial use: {licence.commercial})"
    if licence.note:
        yield "note", licence.note
    yield "annotated", ", ".join(_annotated(card))
    yield "wanted in SRC", ", ".join(card.layout.root_markers)
    if card.expected.images is not None:
        yield "images", f"{card.expected.images:,}"
    for name, count in card.expected.classes.items():
        yield "class", f"{name}: {count:,}"
    for text in card.defects:
        yield "defect", text
    for text in card.unknowns:
        yield "not verified", text
    yield "citation", card.citation


def _wrapped(title: str, text: str) -> list[str]:
    """A fact as lines, its title in a column of its own."""
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH - 15, break_long_words=False) or [""]
    return [f"{title if number == 0 else '':<14} {line}" for number, line in enumerate(lines)]
