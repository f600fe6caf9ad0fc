"""Parts are joined whole or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from cogalign.models.lite0 import REPEATS, TIMM_NAME, timm_key
from cogalign.models.smol.join import ROWS, join, more_rows, visual_features
from cogalign.models.smol.projector import WIDER
from cogalign.models.smol.twin import random_parts


def test_every_part_keeps_its_weights(images: list[Image.Image]) -> None:
    parts = random_parts(1)
    model, processor = join(parts, images)
    tower, text = model.model.vision_tower.timm_model.state_dict(), model.model.language_model.state_dict()
    assert all(torch.equal(tower[name], value) for name, value in parts.vision.items())
    old = parts.text["embed_tokens.weight"]
    assert all(torch.equal(text[name][: len(old)], value) for name, value in parts.text.items())
    rows = text["embed_tokens.weight"]
    assert len(rows) % ROWS == 0 and len(old) < len(processor.tokenizer) <= len(rows)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight, "tied"


def test_visual_tokens_are_spread_about_the_mean_of_the_embeddings_of_text(images: list[Image.Image]) -> None:
    parts = random_parts(1)
    model, processor = join(parts, images)
    with torch.no_grad():
        out = model.model.multi_modal_projector(visual_features(model, processor, images))
    rows = parts.text["embed_tokens.weight"]
    torch.testing.assert_close(out.mean(0), rows.mean(0), rtol=0, atol=1e-4 * WIDER)
    torch.testing.assert_close(out.var(0, unbiased=False).mean(), WIDER**2 * rows.var(0, unbiased=False).mean())


def test_joining_leaves_the_random_numbers_of_others_alone(images: list[Image.Image]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    join(random_parts(1), images)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_refuses_weights_that_are_missing_or_too_many_or_of_another_shape(part: str, images: list[Image.Image]) -> None:
    parts = random_parts()
    what = {"vision": "vision tower", "text": "language model"}[part]
    weights = getattr(parts, part)
    name = next(name for name, value in weights.items() if value.ndim > 1 and "embed" not in name)
    changes = (
        ({key: value for key, value in weights.items() if key != name}, rf"no weights for \['{name}'\]"),
        ({**weights, "stranger": weights[name]}, r"no place for \['stranger'\]"),
        ({**weights, name: weights[name][:-1]}, rf"{name} has the shape \[.*\], wanted \["),
    )
    for changed, message in changes:
        with pytest.raises(ValueError, match=f"{what}: .*{message}"):
            join(replace(parts, **{part: changed}), images)


def test_new_rows_are_the_mean_of_the_old() -> None:
    rows = more_rows(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 4)
    assert rows.tolist() == [[1, 2], [3, 6], [2, 4], [2, 4]]


def test_wants_an_image() -> None:
    with pytest.raises(ValueError, match="fitted to images, found none"):
        join(random_parts(), [])


def test_no_two_names_of_the_package_are_one_of_timms() -> None:
    import timm

    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    around = [f"{part}.{leaf}" for part in ("_bn0", "_bn1") for leaf in leaves]
    names = ["_conv_stem.weight", "_conv_head.weight", *around]
    for block in range(sum(REPEATS)):
        expands = block > 0
        convolutions = ("_expand_conv",) * expands + ("_depthwise_conv", "_project_conv")
        norms = ("_bn0",) * expands + ("_bn1", "_bn2")
        names += [f"_blocks.{block}.{part}.weight" for part in convolutions]
        names += [f"_blocks.{block}.{part}.{leaf}" for part in norms for leaf in leaves]
    mapped = [timm_key(name) for name in names]
    assert len(set(mapped)) == len(names)
    assert set(mapped) == set(timm.create_model(TIMM_NAME, pretrained=False, num_classes=0).state_dict())
