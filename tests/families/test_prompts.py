"""In every family prompts can be taken apart, put together again, and told apart by content."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from cogalign.models.inputs import left_padded
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, distinct_prompts, encode_prompts
from tests.families import twins
from tests.families.whole import QUESTIONS, Rows


def same(a: Inputs, b: Inputs) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_padded_on_the_left_whatever_the_tokenizer_says(
    twin: LoadedModel, image_rows: Rows, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = twins.encode(twin, image_rows, QUESTIONS)
    monkeypatch.setattr(twin.tokenizer, "padding_side", side)
    found = encode_prompts(twin.processor, image_rows, QUESTIONS)
    assert same(found, expected)
    assert found["attention_mask"][:, -1].all() and not found["attention_mask"][:, 0].all()


def test_an_image_may_stand_alone_or_in_a_list(twin: LoadedModel, image_rows: Rows) -> None:
    images = [row[0] for row in image_rows]
    assert same(
        encode_prompts(twin.processor, images, QUESTIONS),
        encode_prompts(twin.processor, [[image] for image in images], QUESTIONS),
    )


def test_padding_on_the_right_is_turned_to_the_left(twin: LoadedModel, image_rows: Rows) -> None:
    left, right = (twins.encode(twin, image_rows, QUESTIONS, side) for side in ("left", "right"))
    assert not torch.equal(left["input_ids"], right["input_ids"])
    assert same(left_padded(right), left)
    assert left_padded(left) is left


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_taken_apart_is_the_prompt_encoded_alone(
    adapted_twin: LoadedModel, image_rows: Rows, side: str
) -> None:
    twin, core = adapted_twin, adapted_twin.core
    batch = twins.encode(twin, image_rows, QUESTIONS, side)
    apart = twin.family.split(core, batch)
    for part, images, question in zip(apart, image_rows, QUESTIONS, strict=True):
        assert same(part, encode_prompts(twin.processor, [images], [question]))
    pad = twin.tokenizer.pad_token_id
    assert same(twin.family.join(apart, pad), left_padded(batch))
    turned = twin.family.join(apart[::-1], pad)
    assert same(turned, encode_prompts(twin.processor, image_rows[::-1], QUESTIONS[::-1]))


def test_prompts_without_images_are_taken_apart_too(adapted_twin: LoadedModel, image_rows: Rows) -> None:
    twin, core, pad = adapted_twin, adapted_twin.core, adapted_twin.tokenizer.pad_token_id
    pictured = encode_prompts(twin.processor, image_rows[:2], QUESTIONS[:2])
    bare = encode_prompts(twin.processor, [[], []], QUESTIONS[2:])
    assert not any(name in bare for name in twin.family.image_names)
    parts = [*twin.family.split(core, pictured), *twin.family.split(core, bare)]
    mixed = twin.family.join([parts[i] for i in (2, 0, 3, 1)], pad)
    again = twin.family.split(core, mixed)
    assert all(same(again[place], parts[i]) for place, i in enumerate((2, 0, 3, 1)))
    with torch.no_grad():  # the images still belong to their prompts
        logits = [twin.model(**each).logits[:, -1] for each in (mixed, pictured, bare)]
    expected = torch.cat(logits[1:])[[2, 0, 3, 1]]
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)


def test_prompts_that_differ_are_found_by_tokens_and_by_images(adapted_twin: LoadedModel, image_rows: Rows) -> None:
    twin, core = adapted_twin, adapted_twin.core
    (a,), (b, c) = image_rows[0], image_rows[1]
    rows = [[a], [b, c], [mirrored(a)], [a], [c, b], [b, c], [a]]
    questions = ["What?", "Where is it?", "What?", "What?", "Where is it?", "Where is it?", "Why?"]
    batch = encode_prompts(twin.processor, rows, questions)
    found, places = distinct_prompts(twin.family, core, batch)
    assert places.tolist() == [0, 1, 2, 0, 3, 1, 4]
    first = [0, 1, 2, 4, 6]
    assert same(found, encode_prompts(twin.processor, [rows[i] for i in first], [questions[i] for i in first]))


def test_prompts_that_all_differ_are_left_as_they_are(adapted_twin: LoadedModel, image_rows: Rows) -> None:
    twin = adapted_twin
    a = image_rows[0][0]
    for rows, questions in (
        ([[a], [mirrored(a)]], ["What?"] * 2),  # only the image differs
        ([[a], [a]], ["What?", "Where?"]),  # only the text differs
    ):
        batch = encode_prompts(twin.processor, rows, questions)
        found, places = distinct_prompts(twin.family, twin.core, batch)
        assert found is batch and places.tolist() == [0, 1]


def test_padding_does_not_make_a_prompt_another(adapted_twin: LoadedModel, image_rows: Rows) -> None:
    """Right padding, and an equal prompt twice beside a longer one with more images."""
    twin = adapted_twin
    rows, questions = [image_rows[0], image_rows[1], image_rows[0]], ["What?", "Where is it, do you think?", "What?"]
    batch = twins.encode(twin, rows, questions, "right")
    found, places = distinct_prompts(twin.family, twin.core, batch)
    assert places.tolist() == [0, 1, 0]
    assert same(found, encode_prompts(twin.processor, rows[:2], questions[:2]))


def test_prompts_of_an_unknown_family_count_as_different(gemma: LoadedModel, image_rows: Rows) -> None:
    batch = encode_prompts(gemma.processor, [image_rows[0]] * 2, ["What?"] * 2)
    found, places = distinct_prompts(gemma.family, gemma.core, batch)
    assert found is batch and places.tolist() == [0, 1]
    with pytest.raises(TypeError, match="prompts with pixel_values cannot be taken apart"):
        gemma.family.split(gemma.core, batch)


def test_images_that_do_not_fit_their_prompts_are_refused(adapted_twin: LoadedModel, image_rows: Rows) -> None:
    twin = adapted_twin
    batch = encode_prompts(twin.processor, image_rows, QUESTIONS)
    place = (batch["input_ids"][2] == twin.core.config.image_token_id).nonzero()
    fewer = {**batch, "input_ids": batch["input_ids"].clone()}
    # SmolVLM: a part of a crop is missing; elsewhere a whole image: of one token less nothing could be said there
    gone = place[:1] if "pixel_attention_mask" in batch else place
    fewer["input_ids"][2, gone] = 20
    with pytest.raises(ValueError, match=r"visual tokens|have places for"):
        twin.family.split(twin.core, fewer)
