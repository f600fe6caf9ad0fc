from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import read_case_set
from cogalign.data.collator import SftCollator, pad_on_the_right, question_of
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import encode_prompts

QUESTION = "Based on the image, what is the diagnosis?"


@pytest.fixture
def samples(phantom_set: Path) -> list[tuple[Case, Image.Image]]:
    case_set = read_case_set(phantom_set)
    chosen = case_set.split("train")[:3]
    chosen[1] = replace(chosen[1], question="What is it?", answer="A wall.")
    return [(case, case_set.image(case)) for case in chosen]


def test_the_loss_is_taken_on_the_answers_and_their_ends(
    tiny: LoadedModel, samples: list[tuple[Case, Image.Image]]
) -> None:
    batch = SftCollator(tiny.processor, QUESTION, 2048)(samples)
    for row, (case, image) in enumerate(samples):
        answer = batch["labels"][row][batch["labels"][row] != -100].tolist()
        assert answer[-1] == tiny.tokenizer.eos_token_id
        assert tiny.tokenizer.decode(answer[:-1]) == case.answer
        prompt = encode_prompts(tiny.processor, [image], [case.question or QUESTION])["input_ids"][0].tolist()
        whole = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        assert whole == prompt + answer
    assert torch.equal(batch["labels"] != -100, (batch["labels"] == batch["input_ids"]) & (batch["labels"] != -100))
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "labels",
        "mm_token_type_ids",
        "pixel_values",
        "image_grid_thw",
    }


def test_a_cases_own_question_replaces_the_recipes() -> None:
    case = Case("a", "images/a.png", ("polyp",), "train")
    assert question_of(case, QUESTION) == QUESTION
    assert question_of(replace(case, question="Why?"), QUESTION) == "Why?"


def test_a_sequence_that_is_too_long_is_an_error_that_names_the_case(
    tiny: LoadedModel, samples: list[tuple[Case, Image.Image]]
) -> None:
    lengths = SftCollator(tiny.processor, QUESTION, 2048)(samples)["attention_mask"].sum(1).tolist()
    longest = max(lengths)
    SftCollator(tiny.processor, QUESTION, longest)(samples)
    with pytest.raises(
        ValueError, match=rf"found {longest} tokens, wanted at most sft.max_length = {longest - 1}"
    ) as e:
        SftCollator(tiny.processor, QUESTION, longest - 1)(samples)
    assert samples[lengths.index(longest)][0].id in str(e.value)


def test_a_case_without_an_answer_is_named(tiny: LoadedModel, samples: list[tuple[Case, Image.Image]]) -> None:
    broken = [(replace(samples[0][0], answer=""), samples[0][1])]
    with pytest.raises(ValueError, match=f"case '{samples[0][0].id}': field 'answer' is empty"):
        SftCollator(tiny.processor, QUESTION, 2048)(broken)


def test_all_padding_is_behind_and_no_longer_than_needed(
    tiny: LoadedModel, samples: list[tuple[Case, Image.Image]]
) -> None:
    batch = SftCollator(tiny.processor, QUESTION, 2048)(samples)
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"].shape[1] == int(lengths.max()) and len(set(lengths.tolist())) > 1
    assert torch.equal(batch["attention_mask"], (torch.arange(int(lengths.max())) < lengths[:, None]).long())
    image = tiny.core.config.image_token_id
    assert torch.equal(batch["mm_token_type_ids"] == 1, batch["input_ids"] == image)


def test_padding_moves_behind_and_the_order_of_the_tokens_stays() -> None:
    ids, mask = torch.tensor([[0, 5, 6, 0, 7], [0, 0, 8, 9, 0]]), torch.tensor([[0, 1, 1, 0, 1], [0, 0, 1, 1, 0]])
    pixels = torch.ones(2, 3)
    moved = pad_on_the_right({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
    assert moved["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert moved["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert moved["pixel_values"] is pixels


def test_lengths_for_grouping_count_question_and_answer(
    tiny: LoadedModel, samples: list[tuple[Case, Image.Image]]
) -> None:
    collate = SftCollator(tiny.processor, QUESTION, 2048)
    batch = collate(samples)
    real = batch["attention_mask"].sum(1) - batch["mm_token_type_ids"].sum(1)  # without the image
    found = torch.tensor(collate.text_lengths([case for case, _ in samples]))
    assert len(set((real - found).tolist())) == 1  # but for the template, which is the same for all
