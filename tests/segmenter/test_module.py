"""Loss and optimizer of the segmenter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.models.segmenter import Segmenter, build, config_of
from cogalign.recipe import SegmenterSettings
from cogalign.segmenter.module import SegmenterModule, dice_loss, segmentation_loss

SMALL = SegmenterSettings(
    encoder="tu-test_efficientnet", decoder_channels=[8, 8, 8, 8, 8], side=32, pretrained=False, weight_decay=0.1
)


def masks(seed: int) -> torch.Tensor:
    return (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def test_a_right_and_sure_answer_costs_nothing_and_a_wrong_one_all() -> None:
    truth = masks(1)
    sure = (2 * truth - 1) * 40
    assert float(dice_loss(sure, truth)) == pytest.approx(0, abs=1e-5)
    assert float(dice_loss(-sure, truth)) == pytest.approx(1, abs=0.05)
    assert float(segmentation_loss(sure, truth, 0.5)) == pytest.approx(0, abs=1e-5)


def test_an_empty_mask_costs_nothing_where_none_is_wanted() -> None:
    nothing = torch.zeros(1, 1, 8, 8)
    assert float(dice_loss(torch.full_like(nothing, -40), nothing)) == pytest.approx(0, abs=1e-5)
    assert float(dice_loss(torch.full_like(nothing, 40), nothing)) > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_loss_is_the_weighted_sum_of_its_parts(seed: int, weight: float) -> None:
    truth = masks(seed)
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed + 1))
    probability = torch.sigmoid(logits)
    bce = -(truth * probability.log() + (1 - truth) * (1 - probability).log()).mean()
    dice = 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    wanted = weight * bce + (1 - weight) * dice
    assert float(segmentation_loss(logits, truth, weight)) == pytest.approx(float(wanted), abs=1e-5)


def test_the_encoder_learns_more_slowly_and_every_weight_is_in_one_group(tmp_path: Path) -> None:
    config = config_of(SMALL)
    network = build(config, pretrained=False)
    module = SegmenterModule(network, config, SMALL, steps=100, steps_per_epoch=10, folder=tmp_path)
    optimizer = module.configure_optimizers()["optimizer"]
    encoder, rest = optimizer.param_groups
    assert encoder["initial_lr"] == pytest.approx(SMALL.encoder_factor * SMALL.learning_rate)
    assert rest["initial_lr"] == pytest.approx(SMALL.learning_rate)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in network.get_submodule("encoder").parameters()}
    assert len(encoder["params"]) + len(rest["params"]) == len(list(network.parameters()))


def test_pixels_are_normalised_as_the_trained_net_will_get_them(tmp_path: Path) -> None:
    config = config_of(SMALL)
    module = SegmenterModule(build(config, pretrained=False), config, SMALL, 1, 1, tmp_path).eval()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours = module(image)[0, 0].numpy()
    alone = Segmenter(module.network, replace(config, flips=False)).logits([image[0].permute(1, 2, 0).numpy()])[0]
    assert abs(ours - alone).max() < 1e-4
