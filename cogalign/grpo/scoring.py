"""Log-probabilities of completions, with the prompt computed once for its group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cogalign.generation.sampling import banned_ids
from cogalign.grpo.plain import plain_logps
from cogalign.models.head import hidden_logps
from cogalign.models.load import LoadedModel, core_of
from cogalign.models.merged import fused_adapter
from cogalign.models.packing import Layout, PackedAttention
from cogalign.models.prefill import Prefill, prefill
from cogalign.models.prompts import Inputs
from cogalign.models.shared_prefix import attention_through
from cogalign.training.sharding import is_sharded


def completion_logps(
    loaded: LoadedModel,
    model: Any,
    prompt: Inputs,
    ids: Tensor,
    mask: Tensor,
    owner: Tensor,
    temperature: float,
    start: Prefill | None = None,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every token of the completions.

    The prompt runs once; its keys and values are shared by the group, and the gradient flows back
    through them. The completions of a prompt stand in one row without padding between them. The distribution is that
    of sampling: image placeholders ruled out, logits divided by the temperature. At padding both results are 0.

    Args:
        loaded: gives the family and the tokenizer.
        model: what is scored: the policy, or the reference.
        prompt: tensors of P prompts, left padded.
        ids: [N, T], completions.
        mask: [N, T], 1 for their tokens.
        owner: [N], the prompt of each completion.
        temperature: the sampling temperature.
        start: the prompts as this very model left them, if they ran before.
        with_entropy: False spares the entropies, which are 0 then.

    Returns:
        Log-probabilities [N, T] and, without gradient, entropies [N, T] in nats.
    """
    family, core = loaded.family, core_of(model)
    if not family.shares_prompts(core):
        return plain_logps(family, core, prompt, ids, mask, owner, banned_ids(loaded, ids.device), temperature)
    begun = prefill(family, model, prompt) if start is None else start
    if bool((owner.diff() < 0).any()):  # completions of one prompt stand together
        owner, order = owner.sort(stable=True)
        logps, entropies = completion_logps(
            loaded, model, prompt, ids[order], mask[order], owner, temperature, begun, with_entropy
        )
        back = order.argsort()
        return logps[back], entropies[back]
    with fused_adapter(model):
        hidden = predicting_states(loaded, core, begun, ids, mask, owner)
    kept = mask.bool()
    head = family.head(core)
    found = hidden_logps(
        head,
        hidden[kept],
        ids[kept],
        banned_ids(loaded, ids.device),
        temperature,
        core.config.get_text_config().vocab_size,
        with_entropy,
    )
    logps, entropies = (values.new_zeros(kept.shape).masked_scatter(kept, values) for values in found)
    return logps, entropies


def predicting_states(
    loaded: LoadedModel, core: Any, start: Prefill, ids: Tensor, mask: Tensor, owner: Tensor
) -> Tensor:
    """Hidden states [N, T, hidden] that predict each token of N completions; arbitrary at padding.

    Args:
        loaded: gives the family.
        core: the transformers model.
        start: P prompts.
        ids: [N, T], completions.
        mask: [N, T], 1 for their tokens.
        owner: [N], the prompt of each, ascending.
    """
    first = start.last[owner][:, None]
    family, text = loaded.family, loaded.family.text_model(core)
    inputs = (mask.sum(1) - 1).clamp(min=0)  # the last token of a completion predicts nothing that is scored
    idle = int(inputs.max()) == 0
    if idle and not is_sharded(text):
        return first.expand(-1, ids.shape[1], -1)
    if idle:  # passes through a sharded model are collectives: what other ranks run runs here, too
        inputs = inputs.clamp(min=1)
    layout = Layout.of(inputs, owner, len(start.last))
    longest = layout.valid.shape[1]
    with attention_through(text):
        packed = text(
            input_ids=layout.packed(ids[:, :longest]),
            position_ids=family.spread_position_ids(start.position + layout.offset),
            use_cache=False,
            shared_prefix=PackedAttention(start.prefix, layout),
        ).last_hidden_state
    rest = layout.unpacked(packed)
    if idle:
        return (first + 0.0 * rest.sum()).expand(-1, ids.shape[1], -1)  # so that going backward is one, too
    missing = ids.shape[1] - 1 - longest  # columns in which none of these completions has a token
    return torch.cat([first, rest, first.expand(-1, missing, -1)], 1)
