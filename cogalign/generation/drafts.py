"""Drafts: how a completion may go on, guessed from texts that are known. A guess costs no pass of the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

START = -1
"""Stands before the first token."""
CONTEXTS = (16, 8, 4, 2, 1)
"""Numbers of last tokens that are looked up, the longest first."""


class Drafts:
    """Knows texts, and which token followed their last few tokens most often (prompt lookup, over many texts)."""

    def __init__(self, texts: Sequence[Sequence[int]] = ()) -> None:
        self._following: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            self.learn(text)

    def __bool__(self) -> bool:
        """Whether any text is known."""
        return bool(self._following)

    def learn(self, text: Sequence[int]) -> None:
        """Know one more text, by its token ids; the token that ends it belongs to it."""
        tokens = (START, *text)
        for place in range(1, len(tokens)):
            for context in {tokens[max(0, place - size) : place] for size in CONTEXTS}:
                self._following[context][tokens[place]] += 1

    def after(self, text: Sequence[int], most: int, ends: Sequence[int]) -> list[int]:
        """At most `most` tokens that may follow the beginning `text` of a completion, up to one of `ends`."""
        tokens = [START, *text]
        begun = len(tokens)
        while len(tokens) - begun < most and (len(tokens) == begun or tokens[-1] not in ends):
            found = (self._following.get(tuple(tokens[-size:])) for size in CONTEXTS)
            known = next((counts for counts in found if counts), None)
            if known is None:
                break
            tokens.append(max(known, key=known.__getitem__))  # of equals the one that was seen first
        return tokens[begun:]
