"""Tokenizer, template and processor, on the tokenizer of the packaged tiny model."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cogalign.models.smol.words import END, IMAGE, build_processor, prepare_tokenizer, split_digits
from cogalign.models.tiny import packaged_base

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is seen?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A polyp."}]},
    {"role": "user", "content": "Sure?"},
]


@pytest.fixture
def tokenizer() -> Any:
    return prepare_tokenizer(AutoTokenizer.from_pretrained(packaged_base()), 512)


def test_padding_is_never_the_end_of_a_turn(tokenizer: Any) -> None:
    assert tokenizer.eos_token == END
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, None)
    padded = tokenizer(["a polyp", "a"], padding=True)["input_ids"]
    assert padded[1][0] == tokenizer.pad_token_id, "padded on the left"


def test_preparing_twice_changes_nothing(tokenizer: Any) -> None:
    before = tokenizer.get_vocab()
    assert prepare_tokenizer(tokenizer, 512).get_vocab() == before
    assert before[IMAGE] == len(before) - 1


def test_names_the_tokens_that_a_tokenizer_lacks() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match=r"no token <\|endoftext\|>, <\|im_start\|>, <\|im_end\|>"):
        prepare_tokenizer(bare, 512)


def test_the_template_writes_turns_with_images(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>What is seen?<|im_end|>\n"
        "<|im_start|>assistant\nA polyp.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_template_marks_the_answer_and_its_end_alone(tokenizer: Any) -> None:
    found = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, is_marked in zip(found["input_ids"], found["assistant_masks"], strict=True) if is_marked]
    assert tokenizer.decode(marked) == "A polyp.<|im_end|>"


def test_digits_stand_alone_after_they_are_split() -> None:
    tokenizer = split_digits(AutoTokenizer.from_pretrained(packaged_base()))
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a 12 mm  3")]
    assert pieces == ["a", "Ġ", "1", "2", "Ġmm", "ĠĠ", "3"]
    assert tokenizer.decode(tokenizer("a 12 mm  3")["input_ids"]) == "a 12 mm  3"


def test_refuses_a_side_that_visual_tokens_do_not_fill(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="side 100: wanted a multiple of 32"):
        build_processor(tokenizer, 100, 32)
