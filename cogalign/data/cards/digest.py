"""What a run knows of the cards that it imported by: another card makes another case set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cogalign.data.cards.find import read_card
from cogalign.recipe import ImportSettings


def cards_digest(imports: Sequence[ImportSettings]) -> str:
    """SHA-256 of what the cards of some imports say, as 64 hexadecimal digits.

    Raises:
        FileNotFoundError, ValueError: as `read_card`.
    """
    return hashlib.sha256("\n".join(repr(read_card(item.card)) for item in imports).encode()).hexdigest()
