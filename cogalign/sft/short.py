"""The loss of stage 1 where the weights are bfloat16: the head computes nothing but what the loss is taken of.

transformers hands the head a slice of the hidden states. In a short type torch then copies the whole weight for every
sample, and all logits of the slice are written in float32, those of the padding too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cogalign.models.causal import short_attention
from cogalign.models.load import LoadedModel
from cogalign.models.merged import fused_adapter


def computes_short(loaded: LoadedModel) -> bool:
    """Whether the head's weight is bfloat16 and its product is all that makes logits of hidden states."""
    weight = getattr(loaded.family.head(loaded.core), "weight", None)
    return weight is not None and weight.dtype == torch.bfloat16 and loaded.family.shares_prompts(loaded.core)


def short_loss(loaded: LoadedModel, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Mean next-token loss over the answers' tokens: `answer_loss` without the logits that it leaves out.

    Args:
        loaded: the model.
        inputs: tensors of the batch but for the labels; without `attention_mask` if all padding is behind.
        labels: [B, L], -100 where no loss is taken.
    """
    family, core = loaded.family, loaded.core
    with fused_adapter(loaded.model), short_attention(core, family.text_model(core), inputs.get("attention_mask")):
        hidden = family.body(core)(**inputs, use_cache=False).last_hidden_state
    following = labels[:, 1:]
    wanted = following != -100
    logits = family.head(core)(hidden[:, :-1][wanted])
    return functional.cross_entropy(logits.float(), following[wanted])
