"""Drafts: how a completion may go on, guessed from texts that are known. A guess costs no pass of the model."""

from __future__ import annotations

from collections.abc import Sequence

START = -1
"""Stands before the first token."""
CONTEXTS = (16, 8, 4, 2, 1)
"""Numbers of last tokens that are looked up, the longest first."""
MOST = 256
"""Texts that are kept in mind (half a kilobyte a token); what a model writes is known by then."""


class Drafts:
    """Knows texts, and which token followed their last few tokens most often (prompt lookup, over many texts)."""

    def __init__(self, texts: Sequence[Sequence[int]] = ()) -> None:
        # by the context's hash: two that share one only make a guess worse. Tokens and their counts side by side
        self._following: dict[int, list[int]] = {}
        self._learned = 0
        for text in texts:
            self.learn(text)

    def __bool__(self) -> bool:
        """Whether any text is known."""
        return bool(self._following)

    def learn(self, text: Sequence[int]) -> None:
        """Know one more text, by its token ids; the token that ends it belongs to it. Beyond `MOST` nothing is learned."""
        if self._learned >= MOST:
            return
        self._learned += 1
        tokens = (START, *text)
        for place in range(1, len(tokens)):
            for context in {tokens[max(0, place - size) : place] for size in CONTEXTS}:
                counts = self._following.setdefault(hash(context), [])
                if tokens[place] in counts[::2]:
                    counts[2 * counts[::2].index(tokens[place]) + 1] += 1
                else:
                    counts += (tokens[place], 1)

    def after(self, text: Sequence[int], most: int, ends: Sequence[int]) -> list[int]:
        """At most `most` tokens that may follow the beginning `text` of a completion, up to one of `ends`."""
        tokens = [START, *text]
        begun = len(tokens)
        while len(tokens) - begun < most and (len(tokens) == begun or tokens[-1] not in ends):
            found = (self._following.get(hash(tuple(tokens[-size:]))) for size in CONTEXTS)
            counts = next(filter(None, found), None)
            if counts is None:
                break
            tokens.append(counts[2 * counts[1::2].index(max(counts[1::2]))])  # of equals the one that was seen first
        return tokens[begun:]
