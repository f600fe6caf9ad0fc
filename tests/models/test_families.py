import re

import pytest
import torch
from PIL import Image
from torch import nn

from cogalign.models.families import Family, QwenVL, family_of
from cogalign.models.families.base import runs
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import encode_prompts


def test_lora_goes_to_every_linear_of_the_language_model_and_to_no_other(tiny: LoadedModel) -> None:
    pattern = re.compile(tiny.family.lora_targets(tiny.model))
    chosen = {name for name, _ in tiny.model.named_modules() if pattern.fullmatch(name)}
    linears = {name for name, part in tiny.model.named_modules() if isinstance(part, nn.Linear)}
    assert chosen == {name for name in linears if name.startswith("model.language_model.")}
    assert len(chosen) == 4 * 7


def test_vision_and_projector_are_told_apart(tiny: LoadedModel) -> None:
    names = [name for name, _ in tiny.model.named_parameters()]
    vision = {name for name in names if tiny.family.is_vision(name)}
    projector = {name for name in names if tiny.family.is_projector(name)}
    assert vision and projector and not vision & projector
    assert vision | projector == {name for name in names if name.startswith("model.visual.")}
    assert all("merger" in name for name in projector)


def test_the_family_is_found_by_the_model_type(tiny: LoadedModel) -> None:
    assert isinstance(tiny.family, QwenVL)

    class Other(nn.Module):
        class config:
            model_type = "llava"

    assert type(family_of(Other())) is Family


def test_placeholders_are_the_tokens_that_stand_for_images(tiny: LoadedModel) -> None:
    found = tiny.tokenizer.convert_ids_to_tokens(tiny.family.placeholder_ids(tiny.model, tiny.tokenizer))
    assert found == ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def test_a_video_placeholder_by_its_older_name_is_one_too() -> None:
    class Other:
        class config:
            model_type = "other"
            image_token_index, video_token_index, vision_end_token_id = 7, 9, None

    assert Family().placeholder_ids(Other, None) == [7, 9]


def test_rows_without_text_are_those_that_pad_the_vocabulary(own_tiny: LoadedModel) -> None:
    core, tokenizer = own_tiny.core, own_tiny.tokenizer
    assert own_tiny.family.textless_ids(core, tokenizer) == []
    first = len(tokenizer)
    core.resize_token_embeddings(first + 5)
    assert own_tiny.family.textless_ids(core, tokenizer) == list(range(first, first + 5))
    assert not set(tokenizer.get_vocab().values()) & set(own_tiny.family.textless_ids(core, tokenizer))


@pytest.mark.parametrize(
    ("lengths", "totals", "expected"),
    [
        ([4, 6, 5], [4, 0, 11], [[0], [], [1, 2]]),
        ([], [0, 0], [[], []]),
        ([3, 3], [6], [[0, 1]]),
    ],
)
def test_images_are_dealt_out_by_their_visual_tokens(
    lengths: list[int], totals: list[int], expected: list[list[int]]
) -> None:
    assert [list(row) for row in runs(lengths, totals, "X")] == expected


@pytest.mark.parametrize(("lengths", "totals"), [([4], [3]), ([4], [5]), ([4, 4], [4]), ([], [1])])
def test_images_that_do_not_fit_are_refused(lengths: list[int], totals: list[int]) -> None:
    with pytest.raises(ValueError, match=r"X: found"):
        runs(lengths, totals, "X")


def test_positions_do_not_depend_on_the_side_of_the_padding_or_on_earlier_prompts(
    own_tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    tiny = own_tiny
    prompt = encode_prompts(tiny.processor, pictures, questions)
    tiny.model.model.rope_deltas = stale = torch.full((4, 1), 1234)
    positions, following = tiny.family.prompt_positions(tiny.model, prompt)
    assert tiny.model.model.rope_deltas is stale
    assert positions.shape == (3, *prompt["input_ids"].shape) and following.shape == (4, 1)
    for row, part in enumerate(tiny.family.split(tiny.model, prompt)):
        alone, after = tiny.family.prompt_positions(tiny.model, part)
        assert torch.equal(positions[:, row, prompt["attention_mask"][row].bool()], alone[:, 0])
        assert int(after) == int(following[row]) == int(alone.max()) + 1


def test_counted_positions_leave_the_padding_out() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    positions, following = Family().prompt_positions(None, {"input_ids": mask, "attention_mask": mask})
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]] and following.tolist() == [[2], [3]]


def test_text_without_images_has_positions_in_the_form_of_the_family(tiny: LoadedModel) -> None:
    mask = torch.tensor([[0, 1, 1]])
    positions, following = tiny.family.prompt_positions(tiny.model, {"input_ids": mask, "attention_mask": mask})
    assert positions.tolist() == [[[0, 0, 1]]] * 3 and following.tolist() == [[2]]


def test_prompts_are_shared_unless_a_layer_forgets_or_logits_are_capped(own_tiny: LoadedModel) -> None:
    family, text = own_tiny.family, own_tiny.model.config.text_config
    assert family.shares_prompts(own_tiny.model) and not Family().shares_prompts(own_tiny.model)
    text.final_logit_softcapping = 30.0
    assert not family.shares_prompts(own_tiny.model)
    text.final_logit_softcapping = None
    text.layer_types, text.sliding_window = ["full_attention", "sliding_attention"] * 2, 16
    assert not family.shares_prompts(own_tiny.model)
