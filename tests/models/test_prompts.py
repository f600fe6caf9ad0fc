import pytest
import torch
from PIL import Image

from cogalign.models.load import LoadedModel
from cogalign.models.prompts import (
    append_completions,
    chat_prompt,
    encode_answers,
    encode_prompts,
    pad_completions,
)

ANSWERS = ["Colon, white light.", "A raised red bump with a stalk.", "", "Nothing on the wall."]


@torch.no_grad()
def test_each_row_of_a_batch_has_the_logits_of_its_sample_alone(
    tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    ids, mask = pad_completions(encode_answers(tiny.processor, ANSWERS), tiny.tokenizer.pad_token_id)
    batch, _ = append_completions(encode_prompts(tiny.processor, pictures, questions), ids, mask)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) == 4 and len({int(grid.prod()) for grid in batch["image_grid_thw"]}) > 1
    together = tiny.model(**batch).logits
    for row, (picture, question, length) in enumerate(zip(pictures, questions, lengths, strict=True)):
        alone, _ = append_completions(
            encode_prompts(tiny.processor, [picture], [question]), *(t[row : row + 1] for t in (ids, mask))
        )
        here, there = batch["attention_mask"][row].bool(), alone["attention_mask"][0].bool()
        assert int(there.sum()) == length
        assert torch.equal(batch["input_ids"][row][here], alone["input_ids"][0][there])
        expected = tiny.model(**alone).logits[0][there]
        assert expected.std() > 1
        torch.testing.assert_close(together[row][here], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_prompt_sees_its_own_image(tiny: LoadedModel, pictures: list[Image.Image]) -> None:
    same = [picture.resize((128, 128)) for picture in pictures]
    logits = tiny.model(**encode_prompts(tiny.processor, same, ["What?"] * 4)).logits[:, -1]
    for a in range(4):
        for b in range(a):
            assert (logits[a] - logits[b]).abs().max() > 0.1
    turned = tiny.model(**encode_prompts(tiny.processor, same[::-1], ["What?"] * 4)).logits[:, -1]
    torch.testing.assert_close(turned, logits.flip(0), rtol=1e-4, atol=1e-4)


def test_prompts_are_padded_on_the_left_and_completions_on_the_right(
    tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    prompt = encode_prompts(tiny.processor, pictures, questions)
    assert prompt["attention_mask"][:, -1].all() and not prompt["attention_mask"][:, 0].all()
    assert (prompt["attention_mask"].diff(dim=1) >= 0).all()
    ids, mask = pad_completions([[5, 6, 7], [8], []], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert [t.shape for t in pad_completions([], 0)] == [(0, 1), (0, 1)]


def test_labels_are_the_answer_and_nothing_else(
    tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    prompt = encode_prompts(tiny.processor, pictures, questions)
    answers = encode_answers(tiny.processor, ANSWERS)
    full, labels = append_completions(prompt, *pad_completions(answers, tiny.tokenizer.pad_token_id))
    length = prompt["input_ids"].shape[1]
    assert labels.shape == full["input_ids"].shape == full["attention_mask"].shape == full["mm_token_type_ids"].shape
    assert (labels[:, :length] == -100).all()
    assert (labels[:, length:][full["attention_mask"][:, length:] == 0] == -100).all()
    for row, answer in enumerate(answers):
        assert labels[row][labels[row] != -100].tolist() == answer
        assert answer[-1] == tiny.tokenizer.eos_token_id
        assert tiny.tokenizer.decode(answer[:-1]) == ANSWERS[row]


def test_an_answer_has_the_same_tokens_as_in_the_chat_template(tiny: LoadedModel) -> None:
    question, answer = "What is it?", "Colon, white light, clear view.\nThe diagnosis result is Polyp."
    whole = chat_prompt(tiny.processor, question) + answer + tiny.tokenizer.eos_token
    expected = tiny.tokenizer(whole, add_special_tokens=False)["input_ids"]
    head = tiny.tokenizer(chat_prompt(tiny.processor, question), add_special_tokens=False)["input_ids"]
    assert head + encode_answers(tiny.processor, [answer])[0] == expected


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>"])
def test_a_question_with_a_placeholder_is_refused(tiny: LoadedModel, pictures: list[Image.Image], token: str) -> None:
    with pytest.raises(ValueError, match=r"placeholder .* may not occur"):
        encode_prompts(tiny.processor, pictures[:1], [f"What is {token} this?"])


def test_as_many_questions_as_images_are_wanted(tiny: LoadedModel, pictures: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="2 images and 1 questions"):
        encode_prompts(tiny.processor, pictures[:2], ["What?"])
