import pytest
import torch
from PIL import Image

from cogalign.generation.drafts import Drafts
from cogalign.generation.hf import decode, generate
from cogalign.generation.sampling import Rollout, SamplingSettings, sample
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import encode_prompts


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_completions_do_not_depend_on_the_batch_size(
    tiny: LoadedModel, pictures: list[Image.Image], questions: list[str], batch_size: int
) -> None:
    found = generate(tiny, pictures, questions, max_completion_length=6, batch_size=batch_size)
    prompt = encode_prompts(tiny.processor, pictures, questions)
    expected = sample(tiny, prompt, SamplingSettings(6, temperature=0.0)).ids.tolist()
    assert [list(group[0].token_ids) for group in found] == expected
    assert [len(group) for group in found] == [1] * 4
    assert not any(group[0].finished for group in found)


@pytest.mark.parametrize(("batch_size", "known"), [(3, False), (8, False), (8, True)])
def test_answers_are_the_same_whether_they_are_guessed_from_those_before_or_not(
    tiny: LoadedModel, pictures: list[Image.Image], questions: list[str], batch_size: int, known: bool
) -> None:
    images, asked = [*pictures[2:], *pictures, *pictures[:2]], [*questions[1:], *questions, *questions[:1]]
    prompt = encode_prompts(tiny.processor, images, asked)
    expected = sample(tiny, prompt, SamplingSettings(9, temperature=0.0)).ids.tolist()
    drafts = Drafts([expected[0], [*expected[3][:4], 5]]) if known else None
    found = generate(tiny, images, asked, max_completion_length=9, batch_size=batch_size, drafts=drafts)
    assert [list(group[0].token_ids) for group in found] == expected
    assert len({tuple(row) for row in expected}) >= 4


def test_a_group_for_each_prompt_in_the_order_of_the_prompts(
    tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    found = generate(tiny, pictures, questions, max_completion_length=5, batch_size=3, num_generations=2)
    assert [len(group) for group in found] == [2, 2, 2, 2]
    assert all(a == b for a, b in found)
    single = generate(tiny, pictures, questions, max_completion_length=5)
    assert [group[:1] for group in found] == single


def test_sampling_is_repeatable_by_its_seed(
    tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    a, b, c = (
        generate(tiny, pictures, questions, max_completion_length=5, num_generations=2, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert a == b != c
    assert all(first != second for first, second in a)


def test_the_text_is_what_the_tokens_say_without_the_special_ones(tiny: LoadedModel) -> None:
    words = tiny.tokenizer("Colon, white light.\nThe diagnosis result is Polyp.")["input_ids"]
    end, pad = tiny.tokenizer.eos_token_id, tiny.tokenizer.pad_token_id
    rows = [[*words, end, pad], [*words[:3], end, *[pad] * (len(words) - 2)], [*words, words[0], words[1]]]
    mask = [[1] * (len(words) + 1) + [0], [1] * 4 + [0] * (len(words) - 2), [1] * (len(words) + 2)]
    full, short, cut = decode(tiny, Rollout(torch.tensor(rows), torch.tensor(mask), torch.tensor([True, True, False])))
    assert full.text == "Colon, white light.\nThe diagnosis result is Polyp." and full.finished
    assert full.token_ids == (*words, end)
    assert short.text == tiny.tokenizer.decode(words[:3]) and len(short.token_ids) == 4
    assert not cut.finished and len(cut.token_ids) == len(words) + 2


def test_progress_is_shown_under_the_name_that_is_given(
    tiny: LoadedModel, pictures: list[Image.Image], questions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    silent = generate(tiny, pictures, questions, max_completion_length=2, batch_size=2)
    assert capsys.readouterr().err == ""
    shown = generate(tiny, pictures, questions, max_completion_length=2, batch_size=2, description="reading")
    assert shown == silent and "reading" in capsys.readouterr().err


def test_nothing_asked_gives_nothing(tiny: LoadedModel) -> None:
    assert generate(tiny, [], [], max_completion_length=2) == []
