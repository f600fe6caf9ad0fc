import re

from torch import nn

from cogalign.models.families import Family, QwenVL, family_of
from cogalign.models.load import LoadedModel


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
