"""The twins are what other tests of families take them for: whole, ragged, and sensitive to pixels and padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from cogalign.models.load import LoadedModel, load_model
from cogalign.recipe import ModelSettings
from tests.families import twins
from tests.families.conftest import built

QUESTIONS = ["What?", "Based on the image, what is the diagnosis?", "Describe what is seen in the image.", "Where?"]
Rows = list[list[Image.Image]]


@torch.no_grad()
def last_logits(loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [P, V] after the last token of left-padded prompts."""
    logits: torch.Tensor = loaded.model(**inputs).logits[:, -1]
    return logits


def test_prompts_are_ragged_in_visual_tokens_and_in_length(twin: LoadedModel, image_rows: Rows) -> None:
    inputs = twins.encode(twin, image_rows, QUESTIONS)
    assert len(set(twins.image_tokens(twin, inputs).tolist())) > 1
    assert len(set(inputs["attention_mask"].sum(1).tolist())) > 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_in_a_batch_is_scored_as_alone(twin: LoadedModel, image_rows: Rows, side: str) -> None:
    batch = twins.encode(twin, image_rows, QUESTIONS, side)
    with torch.no_grad():
        logits = twin.model(**batch).logits
    for row, (images, question) in enumerate(zip(image_rows, QUESTIONS, strict=True)):
        alone = last_logits(twin, twins.encode(twin, [images], [question]))[0]
        place = int(batch["attention_mask"][row].nonzero()[-1])
        torch.testing.assert_close(logits[row, place], alone, rtol=1e-4, atol=1e-4)


def test_pixels_and_padding_show_in_the_likelihoods(twin: LoadedModel, image_rows: Rows) -> None:
    inputs = twins.encode(twin, image_rows, QUESTIONS)
    logits = last_logits(twin, inputs)
    mirrored = last_logits(twin, {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)})
    assert ((mirrored - logits).abs().amax(1) > 0.5).all()
    seen = last_logits(twin, {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])})
    padded = inputs["attention_mask"].sum(1) < inputs["attention_mask"].shape[1]
    assert ((seen - logits).abs().amax(1)[padded] > 0.1).all()


def test_transformers_generates_different_answers_to_different_prompts(twin: LoadedModel, image_rows: Rows) -> None:
    inputs = twins.encode(twin, image_rows, QUESTIONS)
    ids = twin.model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert len({tuple(row) for row in ids.tolist()}) == len(image_rows)
    assert len(ids.unique()) > 8


def test_features_can_be_given_instead_of_pixels(twin: LoadedModel, image_rows: Rows) -> None:
    inputs = twins.encode(twin, image_rows, QUESTIONS)
    names = {"pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes", "batch_num_images"}
    with torch.no_grad():
        features = twin.core.model.get_image_features(**{k: v for k, v in inputs.items() if k in names})
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with torch.no_grad():
        given = twin.model(**rest, mm_encoder_outputs={"image": features}).logits[:, -1]
    assert torch.equal(given, last_logits(twin, inputs))


def test_logits_are_the_head_on_the_last_hidden_state(twin: LoadedModel, image_rows: Rows) -> None:
    inputs = twins.encode(twin, image_rows, QUESTIONS)
    with torch.no_grad():
        hidden = twin.core.model(**inputs).last_hidden_state
        assert torch.equal(twin.core.lm_head(hidden), twin.model(**inputs).logits)


def test_only_the_family_without_an_adapter_has_a_sliding_window(twin: LoadedModel, image_rows: Rows) -> None:
    inputs = twins.encode(twin, image_rows, QUESTIONS)
    with torch.no_grad():
        layers = twin.model(**inputs, use_cache=True).past_key_values.layers
    kinds = {type(layer) for layer in layers}
    mixed = {DynamicLayer, DynamicSlidingWindowLayer}
    assert kinds == (mixed if twin.core.config.model_type == "gemma3" else {DynamicLayer})
    assert inputs["attention_mask"].sum(1).min() > twins.WINDOW


def test_a_saved_twin_is_opened_in_hub_layout(twin: LoadedModel, image_rows: Rows, tmp_path: Path) -> None:
    twin.model.save_pretrained(tmp_path)
    twin.processor.save_pretrained(tmp_path)
    opened = load_model(ModelSettings(name=str(tmp_path), dtype="float32"), device="cpu")
    assert type(opened.processor) is type(twin.processor)
    assert type(opened.model) is type(twin.model)
    ours = twins.encode(opened, image_rows, QUESTIONS)
    inputs = twins.encode(twin, image_rows, QUESTIONS)
    assert ours.keys() == inputs.keys()
    assert all(torch.equal(ours[name], inputs[name]) for name in inputs)
    # patches are embedded by a matrix product in opened models: the order of sums differs
    torch.testing.assert_close(last_logits(opened, ours), last_logits(twin, inputs), rtol=1e-4, atol=1e-4)


def test_what_smolvlms_processor_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package (the twins put something in its place) the error says what to install."""
    from transformers.models.smolvlm import processing_smolvlm

    twin = built("smolvlm")
    twin.model.save_pretrained(tmp_path)
    twin.processor.save_pretrained(tmp_path)
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(FileNotFoundError, match=r"model\.name: .* needs a package .*pip install num2words"):
        load_model(ModelSettings(name=str(tmp_path), dtype="float32"), device="cpu")
