"""From cases to training tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from cogalign.data.case import Case
from cogalign.models.inputs import right_padded, token_names
from cogalign.models.prompts import append_completions, encode_answers, encode_prompts, pad_completions


def question_of(case: Case, question: str) -> str:
    """The case's own question, else the recipe's."""
    return case.question or question


def pad_on_the_right(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same sequences with all padding behind them, cut to the longest one.

    Causal attention never looks ahead, so padding on the right needs no attention mask.

    Args:
        inputs: tensors of a batch; those of tokens [B, L], labels among them, are moved, the rest is kept.
    """
    longest = int(inputs["attention_mask"].sum(1).max())
    moved = right_padded(inputs)
    return {**moved, **{name: moved[name][:, :longest] for name in token_names(moved)}}


@dataclass
class SftCollator:
    """Sequences with labels on the answer only, padded on the right, for next-token training."""

    processor: Any
    question: str
    max_length: int

    def __call__(self, samples: Sequence[tuple[Case, Image.Image]]) -> dict[str, Tensor]:
        """Tensors of a batch: those of the processor and `labels` [B, L] (-100 where no loss is taken).

        Raises:
            ValueError: a case has no answer, or its sequence is longer than `max_length`; names the case.
        """
        for case, _ in samples:
            if not case.answer:
                raise ValueError(f"case {case.id!r}: field 'answer' is empty, there is nothing to learn from")
        questions = [question_of(case, self.question) for case, _ in samples]
        prompt = encode_prompts(self.processor, [image for _, image in samples], questions)
        answers = encode_answers(self.processor, [case.answer for case, _ in samples])
        ids, mask = pad_completions(answers, self.processor.tokenizer.pad_token_id)
        inputs, labels = append_completions(prompt, ids, mask)
        batch = pad_on_the_right({**inputs, "labels": labels})
        lengths = batch["attention_mask"].sum(1)
        longest = int(lengths.argmax())
        if int(lengths[longest]) > self.max_length:
            raise ValueError(
                f"case {samples[longest][0].id!r}: found {int(lengths[longest])} tokens, wanted at most "
                f"sft.max_length = {self.max_length}; lower model.max_pixels or raise the limit (nothing is cut)"
            )
        return batch

    def text_lengths(self, cases: Sequence[Case]) -> list[int]:
        """Tokens of each case's question and answer: its length but for the image and the chat template."""
        texts = [question_of(case, self.question) + case.answer for case in cases]
        return [len(ids) for ids in self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]
