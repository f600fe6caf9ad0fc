"""Scoring for families whose prompts cannot be shared: a full forward of prompt and completion."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cogalign.generation.plain import warn_plain
from cogalign.models.families import Family
from cogalign.models.head import hidden_logps
from cogalign.models.inputs import Inputs, left_padded
from cogalign.models.prompts import append_completions


def plain_logps(
    family: Family,
    core: Any,
    prompt: Inputs,
    ids: Tensor,
    mask: Tensor,
    owner: Tensor,
    banned: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and (without gradient) entropies [N, T] of completions; 0 at padding.

    One completion of each prompt at a time, so that no prompt has to be cut out of its batch. With gradient and more
    than one completion a prompt, activations are kept for one such round only and computed again going backward.

    Args:
        family: of the model.
        core: the transformers model.
        prompt: tensors of P prompts, padded on either side.
        ids: [N, T], right padded.
        mask: [N, T], 1 for the tokens of the completions.
        owner: [N], the prompt of each.
        banned: ids of tokens that are never sampled.
        temperature: the sampling temperature.
    """
    warn_plain(core.config.model_type)
    prompt = left_padded(prompt)
    every = list(rounds(owner, len(prompt["input_ids"])))
    logps, entropies = (torch.zeros(ids.shape, dtype=torch.float32, device=ids.device) for _ in range(2))
    for rows, prompts in every:
        chosen = ids.new_zeros((len(prompt["input_ids"]), ids.shape[1])).index_copy(0, prompts, ids[rows])
        kept = torch.zeros_like(chosen).index_copy(0, prompts, mask[rows].to(chosen.dtype))
        arguments = (family, core, prompt, chosen, kept, banned, temperature)
        if torch.is_grad_enabled() and len(every) > 1:
            found = checkpoint(_round, *arguments, use_reentrant=False)
        else:
            found = _round(*arguments)
        logps = logps.to(found[0].dtype).index_copy(0, rows, found[0][prompts])
        entropies = entropies.to(found[1].dtype).index_copy(0, rows, found[1][prompts])
    return logps, entropies


def rounds(owner: Tensor, prompts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their prompts, so that each prompt occurs at most once in a round; all rows occur in the end."""
    order = owner.argsort(stable=True)
    counts = owner.bincount(minlength=prompts)
    rank = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
    for number in range(int(counts.max()) if len(owner) else 0):
        rows = order[rank == number]
        yield rows, owner[rows]


def _round(
    family: Family, core: Any, prompt: Inputs, ids: Tensor, mask: Tensor, banned: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [P, T] of one completion of each prompt."""
    full, _ = append_completions(prompt, ids, mask)
    length = ids.shape[1]
    few = {"logits_to_keep": length + 1} if "logits_to_keep" in inspect.signature(core.forward).parameters else {}
    # the model's own logits: how it gets from hidden states to them is not known
    logits = core(**full, **family.full_positions(core, full), **few, use_cache=False).logits[:, -length - 1 : -1]
    kept = mask.bool()
    found = hidden_logps(_same, logits[kept], ids[kept], banned, temperature, logits.shape[-1])
    logps, entropies = (values.new_zeros(kept.shape).masked_scatter(kept, values) for values in found)
    return logps, entropies


def _same(logits: Tensor) -> Tensor:
    return logits
