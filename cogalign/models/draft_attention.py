"""Attention of completions that grow by several tokens at once, each by its own number, to prompts that exist once."""

from __future__ import annotations

import torch
from torch import Tensor

from cogalign.models.shared_prefix import Groups, Prefix, prompt_attention


class DraftAttention:
    """Keys and values of N completions; tokens that turn out wrong are overwritten by those that come in their place.

    Args:
        prefix: of P prompts.
        owner: [N], the prompt of each completion, ascending.
        room: longest completion in tokens.
    """

    def __init__(self, prefix: Prefix, owner: Tensor, room: int) -> None:
        self.prefix, self.owner, self.room = prefix, owner, room
        self.stored: list[tuple[Tensor, Tensor]] = []

    def place(self, rows: Tensor, fed: Tensor, valid: Tensor) -> None:
        """Say what the next pass computes.

        Args:
            rows: [B], completions, ascending.
            fed: [B], tokens of each that stay from the passes before.
            valid: [B, T], which of the tokens of the pass exist.
        """
        self.rows, self.groups = rows, Groups(self.owner[rows])
        places = fed[:, None] + torch.arange(valid.shape[1], device=rows.device)
        self.places = places.masked_fill(~valid, self.room)  # one place more than there are: nobody looks there
        self.length = int(places[valid].max()) + 1
        self.seen = torch.arange(self.length, device=rows.device) <= places[..., None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `Attention.attend`; B rows of T tokens, those of `place`."""
        rows, heads, steps, width = query.shape
        shared = key.shape[1]
        keys, values = self._store(layer, key, value)
        folded = (query * scaling).reshape(rows, shared, heads // shared * steps, width)
        prompt_keys, prompt_values = (self._present(part[layer]) for part in (self.prefix.keys, self.prefix.values))
        bias = None if self.prefix.bias is None else self._present(self.prefix.bias)
        parts = prompt_attention(self.groups.together(folded), prompt_keys.transpose(-1, -2), prompt_values, bias)
        out, lse = (self.groups.apart(part) for part in parts)
        scores = (folded @ keys.transpose(-1, -2)).view(rows, shared, -1, steps, self.length)
        scores = scores.masked_fill(~self.seen[:, None, None], float("-inf")).flatten(2, 3)
        weights = torch.cat([lse, scores], -1).softmax(-1)  # the prompt as a whole is one more "key"
        result = torch.addcmul(weights[..., 1:] @ values, weights[..., :1], out)
        return result.view(rows, heads, steps, width).transpose(1, 2)

    def _present(self, values: Tensor) -> Tensor:
        """Of [P, ...] the prompts that have rows in this pass; copied only where some have none."""
        return values if len(self.groups.present) == len(values) else values[self.groups.present]

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [B, kv heads, T, D]; returns all that the rows may look at."""
        if layer == len(self.stored):
            shape = (len(self.owner), key.shape[1], self.room + 1, key.shape[3])
            self.stored.append((key.new_zeros(shape), value.new_zeros(shape)))
        both = []
        for buffer, new in zip(self.stored[layer], (key, value), strict=True):
            buffer[self.rows[:, None], :, self.places] = new.transpose(1, 2)
            both.append(buffer[self.rows, :, : self.length])
        return both[0], both[1]
