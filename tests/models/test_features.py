"""Keeping image features: while the encoder is frozen, by content, and without a trace afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cogalign.models.adapt import train_all
from cogalign.models.content import Distinct, fingerprints
from cogalign.models.features import shared_image_features, vision_is_frozen
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, encode_prompts


@pytest.fixture
def frozen(own_tiny: LoadedModel) -> LoadedModel:
    return train_all(own_tiny, freeze_vision=True, freeze_projector=True)


@pytest.fixture(scope="session")
def prompt(tiny: LoadedModel, pictures: list[Image.Image]) -> Inputs:
    return encode_prompts(tiny.processor, pictures[:2], ["What?", "Where is it?"])


@torch.no_grad()
def last(loaded: LoadedModel, prompt: Inputs) -> Tensor:
    logits: Tensor = loaded.model(**prompt).logits[:, -1]
    return logits


def test_the_same_tensors_are_known_without_a_look_at_them(
    frozen: LoadedModel, prompt: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shared_image_features(frozen) as features:
        first = last(frozen, prompt)
        monkeypatch.setattr(frozen.family, "pieces", None)  # would be called to look at their content
        assert torch.equal(last(frozen, prompt), first)
    assert (features.images_asked, features.images_encoded) == (4, 2)


def test_pixels_changed_in_place_are_other_images(frozen: LoadedModel, prompt: Inputs) -> None:
    own = {name: value.clone() for name, value in prompt.items()}
    with shared_image_features(frozen) as features:
        before = last(frozen, own)
        own["pixel_values"].neg_()
        assert (last(frozen, own) - before).abs().max() > 0.1
        own["pixel_values"].neg_()
        assert torch.equal(last(frozen, own), before)
    assert features.images_encoded == 4


def test_one_number_makes_another_image(frozen: LoadedModel, prompt: Inputs) -> None:
    own = {name: value.clone() for name, value in prompt.items()}
    own["pixel_values"][0, 0] += 1
    with shared_image_features(frozen) as features:
        last(frozen, prompt), last(frozen, own)
    assert features.images_encoded == 3


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_nothing_is_kept_while_the_encoder_is_trained(own_tiny: LoadedModel, prompt: Inputs, part: str) -> None:
    loaded = train_all(own_tiny, freeze_vision=part != "vision", freeze_projector=part != "projector")
    assert not vision_is_frozen(loaded)
    with shared_image_features(loaded) as features:
        assert "get_image_features" not in vars(loaded.core.model)
        last(loaded, prompt)
    assert features.images_encoded == 0


def test_a_copy_of_the_model_can_use_the_same_features(frozen: LoadedModel, prompt: Inputs) -> None:
    reference = copy.deepcopy(frozen.model)
    expected = reference(**prompt).logits[:, -1].detach()
    with shared_image_features(frozen, [reference]) as features:
        last(frozen, prompt)
        assert torch.equal(reference(**prompt).logits[:, -1], expected)
    assert (features.images_asked, features.images_encoded) == (4, 2)
    assert "get_image_features" not in vars(reference.model)


def test_the_model_is_left_as_it_was_even_after_an_error(frozen: LoadedModel, prompt: Inputs) -> None:
    owner = frozen.core.model
    with shared_image_features(frozen) as outer:
        last(frozen, prompt)
        with pytest.raises(RuntimeError, match="enough"), shared_image_features(frozen) as inner:
            last(frozen, prompt)
            raise RuntimeError("enough")
        last(frozen, prompt)
        assert (inner.images_asked, outer.images_encoded, outer.images_asked) == (2, 2, 6)
    assert "get_image_features" not in vars(owner)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), kinds=st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_things_are_told_apart_by_their_numbers(seed: int, kinds: list[int]) -> None:
    """Turned round they have the same fingerprint, and are other things all the same."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((3, 8), generator=generator)
    known = [values, values.flip(0), values.to(torch.bfloat16).float(), values[:2]]
    things = [{"a": known[kind].clone(), "b": torch.tensor([1])} for kind in kinds]
    places = Distinct().add(things)
    assert [places[kinds.index(kind)] for kind in kinds] == places
    assert sorted(set(places)) == list(range(len(set(kinds))))
    one, other = fingerprints([{"a": known[0]}, {"a": known[1]}])
    assert one == other != fingerprints([{"a": known[0]}, {"a": known[3]}])[1]


def test_other_types_and_shapes_are_other_things() -> None:
    zeros = [torch.zeros(4, dtype=kind) for kind in (torch.float32, torch.int64, torch.bfloat16)]
    things = [{"a": each} for each in (*zeros, torch.zeros(2, 2), torch.zeros(4))]
    assert Distinct().add(things) == [0, 1, 2, 3, 0]
    assert Distinct().add([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}]) == [0, 1]
