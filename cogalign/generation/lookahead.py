"""Several tokens a pass: a draft of how each completion goes on is checked at once, instead of token by token.

At each place a token is drawn from the model's distribution after the draft so far, with the random number that sampling
token by token takes there. As long as the token is the draft's, the draft is what would have been sampled; the first that is
not is sampled too, since all before it is. So drafts change the time and, but for rounding, nothing else. (Speculative decoding
as in Leviathan et al., arXiv 2211.17192, with a draft that is certain of its tokens, coupled by common random numbers.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cogalign.generation.drafts import Drafts
from cogalign.models.draft_attention import DraftAttention
from cogalign.models.load import LoadedModel
from cogalign.models.prefill import Prefill
from cogalign.models.prompts import pad_completions
from cogalign.models.shared_prefix import attention_through
from cogalign.training.heartbeat import beat

CHUNK = 256
"""Places whose logits exist at once."""
LONGEST = 64
"""Tokens of a guess at most: it bounds what a pass of many completions keeps in memory."""
DrawTokens = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From hidden states [K, hidden], numbers of completions [K] and places in them [K] to tokens [K]."""


class Growing:
    """One completion as it grows; all its tokens but the last have been fed to the model."""

    def __init__(self, limit: int) -> None:
        self.ids: list[int] = []
        self.ended, self.limit = False, limit
        self.trust = LONGEST
        """Tokens that are guessed at most: fewer after a guess that failed, more after one that held."""

    @property
    def open(self) -> bool:
        """Whether it goes on."""
        return not self.ended and len(self.ids) < self.limit

    def guess(self, drafts: Drafts, ends: Sequence[int]) -> list[int]:
        """How it may go on; what is drawn behind the guess belongs to it, too."""
        return drafts.after(self.ids, min(self.trust, self.limit - len(self.ids) - 1), ends)

    def grow(self, drawn: Sequence[int], guess: Sequence[int], ends: Sequence[int]) -> None:
        """Append what was drawn, up to the first token that was not guessed."""
        for index, token in enumerate(drawn):
            self.ids.append(token)
            self.ended = token in ends
            if self.ended or index >= len(guess):
                self.trust = min(2 * max(1, self.trust), LONGEST)
                return
            if token != guess[index]:
                self.trust = min(2 * index, LONGEST) if index else self.trust // 2
                return


def look_ahead(
    loaded: LoadedModel,
    start: Prefill,
    owner: Tensor,
    limit: int,
    ends: Sequence[int],
    draw_tokens: DrawTokens,
    drafts: Drafts,
) -> list[Growing]:
    """Sample N completions with drafts.

    Args:
        loaded: the model; its prompts can be shared.
        start: P prompts.
        owner: [N], the prompt of each completion, ascending.
        limit: longest completion in tokens.
        ends: tokens that end a completion.
        draw_tokens: draws from hidden states.
        drafts: texts that are known; completions are added as they end.
    """
    growing = [Growing(limit) for _ in owner]
    every = torch.arange(len(owner), device=owner.device)
    for some in every.split(CHUNK):
        tokens = draw_tokens(start.last[owner[some]], some, torch.zeros_like(some)).tolist()
        for number, token in zip(some.tolist(), tokens, strict=True):
            growing[number].grow([token], [], ends)
    rows = _going_on(growing, range(len(growing)), drafts)
    attention = DraftAttention(start.prefix, owner, limit)
    text = loaded.family.text_model(loaded.core)
    with attention_through(text):
        while rows:
            beat()  # long completions of many rows may take longer than the watchdog waits
            guesses = [growing[row].guess(drafts, ends) for row in rows]
            going = [growing[row] for row in rows]
            hidden = _pass(loaded, text, start.position[owner[rows]], attention, rows, going, guesses)
            _grow(hidden, rows, going, guesses, ends, draw_tokens)
            rows = _going_on(growing, rows, drafts)
    return growing


def _going_on(growing: Sequence[Growing], rows: Sequence[int], drafts: Drafts) -> list[int]:
    """Those of the completions `rows` that go on; the others become drafts."""
    for row in rows:
        if not growing[row].open:
            drafts.learn(growing[row].ids)
    return [row for row in rows if growing[row].open]


def _pass(
    loaded: LoadedModel,
    text: Any,
    position: Tensor,
    attention: DraftAttention,
    rows: Sequence[int],
    some: Sequence[Growing],
    guesses: Sequence[Sequence[int]],
) -> Tensor:
    """Hidden states [N, T, hidden] after each completion's last token and its guess."""
    ids, mask = pad_completions([[one.ids[-1], *guess] for one, guess in zip(some, guesses, strict=True)], 0)
    device = position.device
    fed = torch.tensor([len(one.ids) - 1 for one in some], device=device)
    attention.place(torch.tensor(rows, device=device), fed, mask.bool().to(device))
    steps = torch.arange(ids.shape[1], device=device)
    out: Tensor = text(
        input_ids=ids.to(device),
        position_ids=loaded.family.spread_position_ids(position + fed[:, None] + steps),
        use_cache=False,
        shared_prefix=attention,
    ).last_hidden_state
    return out


def _grow(
    hidden: Tensor,
    rows: Sequence[int],
    some: Sequence[Growing],
    guesses: Sequence[list[int]],
    ends: Sequence[int],
    draw_tokens: DrawTokens,
) -> None:
    """Draw after every token that was fed, and lengthen the completions by what holds."""
    # row of the batch, column of the batch, number of the completion, place in it
    table = [
        (row, column, rows[row], len(one.ids) + column)
        for row, (one, guess) in enumerate(zip(some, guesses, strict=True))
        for column in range(len(guess) + 1)
        if not (column and guess[column - 1] in ends)
    ]
    drawn: list[int] = []
    for first in range(0, len(table), CHUNK):
        row, column, number, place = torch.tensor(table[first : first + CHUNK], device=hidden.device).unbind(1)
        drawn += draw_tokens(hidden[row, column], number, place).tolist()
    tokens: list[list[int]] = [[] for _ in some]
    for (batch_row, *_), token in zip(table, drawn, strict=True):
        tokens[batch_row].append(token)
    for one, own, guess in zip(some, tokens, guesses, strict=True):
        one.grow(own, guess, ends)
