"""A batch of prompts as tensors: what is one a token, what comes with the images, and how rows come and go.

Nothing here knows a family; `cogalign.models.families` says which image belongs to which row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Inputs = dict[str, Tensor]


def token_names(prompt: Inputs) -> list[str]:
    """Names of the tensors [P, L] that hold one whole number a token: ids, mask, types."""
    shape = prompt["input_ids"].shape
    return [name for name, value in prompt.items() if value.shape == shape and not value.is_floating_point()]


def padding_is_behind(mask: Tensor) -> bool:
    """Whether each row of `mask` [B, L] is ones, then zeros: causal attention needs no such mask."""
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


def left_padded(prompt: Inputs) -> Inputs:
    """The same prompts with their padding on the left; the same object where it stands there already."""
    mask = prompt["attention_mask"]
    return prompt if padding_is_behind(mask.flip(1)) else _moved(prompt, mask.argsort(dim=1, stable=True))


def right_padded(prompt: Inputs) -> Inputs:
    """The same prompts with their padding on the right; the same object where it stands there already."""
    mask = prompt["attention_mask"]
    return prompt if padding_is_behind(mask) else _moved(prompt, mask.argsort(dim=1, stable=True, descending=True))


def _moved(prompt: Inputs, order: Tensor) -> Inputs:
    """The tensors of tokens in another order [P, L] of each row."""
    return {**prompt, **{name: prompt[name].gather(1, order) for name in token_names(prompt)}}


def split_tokens(prompt: Inputs) -> list[Inputs]:
    """The tensors of tokens [1, L of its own] of each prompt, without padding."""
    mask = prompt["attention_mask"].bool()
    return [{name: prompt[name][row][keep][None] for name in token_names(prompt)} for row, keep in enumerate(mask)]


def join_tokens(prompts: Sequence[Inputs], pad_id: int) -> Inputs:
    """Tensors of tokens [P, L] of prompts that were apart: ids padded with `pad_id` on the left, all else with 0."""
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    joined: Inputs = {}
    for name in token_names(prompts[0]):
        fill = pad_id if name == "input_ids" else 0
        rows = [functional.pad(p[name], (longest - p[name].shape[1], 0), value=fill) for p in prompts]
        joined[name] = torch.cat(rows)
    return joined


def tiled(prompt: Inputs, times: int) -> Inputs:
    """The whole batch `times` times, one after the other.

    It needs no family: in all of them the first axis counts rows, images or patches in the order of the rows.
    """
    return {name: torch.cat([value] * times) for name, value in prompt.items()} if times > 1 else prompt


def stacked(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors one after the other along axis 0; where they differ along `axis`, zeros are put behind the shorter."""
    longest = max(part.shape[axis] for part in parts)
    padded = []
    for part in parts:
        shape = list(part.shape)
        shape[axis] = longest - part.shape[axis]
        padded.append(torch.cat([part, part.new_zeros(shape)], axis) if shape[axis] else part)
    return torch.cat(padded)
