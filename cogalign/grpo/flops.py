"""Floating-point operations that a step cannot avoid, from the model's sizes: the floor under every engine.

A product of matrices [m, k] and [k, n] counts 2 m k n; norms, activations and softmax are left out. Attention is
counted by pairs of a query and a key (4 operations a pair and channel), so that causal and shared attention count
what they need. Backward: a weight that is trained costs its forward twice, a frozen one once (the gradient of its
input), attention twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class TextShape:
    """Sizes of a language model with gated MLPs; `lora_rank` > 0 means adapters on all its linear layers."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    lora_rank: int = 0

    def _weights(self) -> tuple[int, int, int, int]:
        """Weights of one layer: of keys and values, of all else, and the adapters of both."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        kv = 2 * self.hidden * key
        rest = 2 * self.hidden * query + 3 * self.hidden * self.intermediate
        kv_lora = 2 * self.lora_rank * (self.hidden + key)
        rest_lora = self.lora_rank * (2 * (self.hidden + query) + 3 * (self.hidden + self.intermediate))
        return kv, rest, kv_lora, rest_lora

    def forward(self, tokens: float, pairs: float, logits: float, cut: float = 0, cut_pairs: float = 0) -> Work:
        """Work of one forward pass.

        Args:
            tokens: tokens that go through the layers.
            pairs: pairs of a query and a key that attend, in each layer.
            logits: positions whose logits are computed.
            cut: tokens of which the last layer only makes keys and values, because nothing reads its output there.
            cut_pairs: pairs that the last layer leaves out for them.
        """
        kv, rest, kv_lora, rest_lora = self._weights()
        outer = self.layers * tokens - cut
        return Work(
            frozen=2 * (self.layers * tokens * kv + outer * rest) if self.lora_rank else 0,
            trained=2 * (self.layers * tokens * kv_lora + outer * rest_lora)
            if self.lora_rank
            else 2 * (self.layers * tokens * kv + outer * rest),
            attention=4 * (self.layers * pairs - cut_pairs) * self.heads * self.head_dim,
            head=2 * logits * self.hidden * self.vocabulary,
        )


@dataclass(frozen=True)
class VisionShape:
    """Sizes of Qwen-VL's vision tower; `mergers` counts the projector and those of deepstack."""

    depth: int
    hidden: int
    intermediate: int
    patch: int
    merge: int
    mergers: int
    out_hidden: int

    def forward(self, patches: int) -> float:
        """Operations for one image of so many patches."""
        block = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        wide = self.hidden * self.merge**2
        merged = patches / self.merge**2 * self.mergers * (wide**2 + wide * self.out_hidden)
        attention = 4 * self.depth * patches**2 * self.hidden
        return 2 * (patches * (self.patch * self.hidden + self.depth * block) + merged) + attention


@dataclass(frozen=True)
class Work:
    """Forward operations by what their backward costs."""

    frozen: float
    trained: float
    attention: float
    head: float

    @property
    def forward(self) -> float:
        """Operations of the forward pass."""
        return self.frozen + self.trained + self.attention + self.head

    @property
    def backward(self) -> float:
        """Operations of the backward pass; the output layer is frozen with adapters, trained without."""
        return self.frozen + 2 * self.trained + 2 * self.attention + (1 if self.frozen else 2) * self.head


@dataclass(frozen=True)
class GrpoStep:
    """Sizes of one optimizer step on fresh completions."""

    prompts: int
    images: int
    patches: int
    prompt_tokens: float
    group: int
    completion_tokens: float
    reference: bool


def shapes(config: Any, lora_rank: int = 0) -> tuple[TextShape, VisionShape]:
    """Sizes of a Qwen3-VL from its configuration of transformers."""
    text, vision = config.text_config, config.vision_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return (
        TextShape(
            text.num_hidden_layers,
            text.hidden_size,
            text.num_attention_heads,
            text.num_key_value_heads,
            head_dim,
            text.intermediate_size,
            text.vocab_size,
            lora_rank,
        ),
        VisionShape(
            vision.depth,
            vision.hidden_size,
            vision.intermediate_size,
            vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            vision.spatial_merge_size,
            1 + len(getattr(vision, "deepstack_visual_indexes", ())),
            vision.out_hidden_size,
        ),
    )


def causal_pairs(tokens: float, before: float = 0) -> float:
    """Pairs of a query and a key for `tokens` tokens behind `before` others."""
    return tokens * (tokens + 1) / 2 + tokens * before


def completions_forward(text: TextShape, step: GrpoStep) -> Work:
    """One pass over all completions behind prompts whose keys and values are there.

    A completion's last token is never an input; its first comes from the prompt's pass.
    """
    rest, rows = step.completion_tokens - 1, step.prompts * step.group
    return text.forward(rows * rest, rows * causal_pairs(rest, step.prompt_tokens), rows * rest)


def prompts_forward(text: TextShape, step: GrpoStep) -> Work:
    """One pass over all prompts, each once; the last layer reads of a prompt only its last token."""
    unread = step.prompt_tokens - 1
    return text.forward(
        step.prompts * step.prompt_tokens,
        step.prompts * causal_pairs(step.prompt_tokens),
        step.prompts,
        step.prompts * unread,
        step.prompts * causal_pairs(unread),
    )


def grpo_floor(text: TextShape, vision: VisionShape, step: GrpoStep) -> dict[str, float]:
    """Operations of an on-policy step by phase, and their sum `total`: nothing is computed twice without need.

    Each image goes through the (frozen) tower once. The policy runs each prompt once, with gradient: sampling starts
    from the same pass. Each completion token runs once for decoding, once for the policy's pass, and once, behind the
    reference's own pass over the prompt, for the reference if there is one; the backward pass follows the policy's.
    Where no gradient is wanted adapters can be merged into the weights and cost nothing.
    """
    merged = replace(text, lora_rank=0)
    prompts, completions = prompts_forward(text, step), completions_forward(text, step)
    again = prompts_forward(merged, step).forward + completions_forward(merged, step).forward
    phases = {
        "vision": step.images * vision.forward(step.patches),
        "decode": completions_forward(merged, step).forward,
        "reference": again if step.reference else 0.0,
        "policy_forward": prompts.forward + completions.forward,
        "policy_backward": prompts.backward + completions.backward,
    }
    return {**phases, "total": sum(phases.values())}


def sft_floor(
    text: TextShape, vision: VisionShape, samples: int, patches: int, tokens: float, answer: float
) -> dict[str, float]:
    """Operations of an SFT step of `samples` sequences of `tokens` tokens, `answer` of them with a loss, one image each.

    The last layer reads of a sequence only the positions with a loss.
    """
    unread = tokens - answer
    work = text.forward(
        samples * tokens,
        samples * causal_pairs(tokens),
        samples * answer,
        samples * unread,
        samples * causal_pairs(unread),
    )
    phases = {"vision": samples * vision.forward(patches), "policy": work.forward + work.backward}
    return {**phases, "total": sum(phases.values())}
