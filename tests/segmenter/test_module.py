"""Loss and optimizer of the segmenter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from cogalign.models.segmenter import Segmenter, build, config_of
from cogalign.recipe import SegmenterSettings
from cogalign.segmenter.best import best_of, best_path, best_paths, drop_old, only_best
from cogalign.segmenter.losses import dice_loss, dice_sums, segmentation_loss, summed_over_ranks
from cogalign.segmenter.module import SegmenterModule
from cogalign.training.checkpoints import path_of

SMALL = SegmenterSettings(
    encoder="tu-test_efficientnet", decoder_channels=[8, 8, 8, 8, 8], side=32, pretrained=False, weight_decay=0.1
)


def masks(seed: int) -> torch.Tensor:
    return (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def test_a_right_and_sure_answer_costs_nothing_and_a_wrong_one_all() -> None:
    truth = masks(1)
    sure = (2 * truth - 1) * 40
    assert float(dice_loss(dice_sums(sure, truth))) == pytest.approx(0, abs=1e-5)
    assert float(dice_loss(dice_sums(-sure, truth))) == pytest.approx(1, abs=0.05)
    assert float(segmentation_loss(sure, truth, 0.5)) == pytest.approx(0, abs=1e-5)


def test_an_empty_mask_costs_nothing_where_none_is_wanted() -> None:
    nothing = torch.zeros(1, 1, 8, 8)
    assert float(dice_loss(dice_sums(torch.full_like(nothing, -40), nothing))) == pytest.approx(0, abs=1e-5)
    assert float(dice_loss(dice_sums(torch.full_like(nothing, 40), nothing))) > 0.9


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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.floats(0, 1))
def test_the_mean_of_the_ranks_gradients_is_that_of_all_their_images(seed: int, ranks: int, weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(4, 1, 8, 8, generator=generator) < 0.3).float()
    images = torch.randn(4, 1, 8, 8, generator=generator)
    parameter = torch.tensor([1.3, -0.2], requires_grad=True)

    def loss(part: slice, over_ranks: Any = None) -> torch.Tensor:
        return segmentation_loss(images[part] * parameter[0] + parameter[1], truth[part], weight, over_ranks)

    whole = loss(slice(None))
    (wanted,) = torch.autograd.grad(whole, parameter)
    with torch.no_grad():
        total = dice_sums(images * parameter[0] + parameter[1], truth)
    parts = [slice(rank * 4 // ranks, (rank + 1) * 4 // ranks) for rank in range(ranks)]
    losses = [loss(part, lambda sums: summed_over_ranks(sums, ranks, lambda mine: total)) for part in parts]
    gradients = [torch.autograd.grad(one, parameter)[0] for one in losses]
    torch.testing.assert_close(torch.stack(losses).mean(), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.stack(gradients).mean(0), wanted, rtol=1e-5, atol=1e-6)


def test_the_best_weights_stay_for_every_checkpoint_to_which_a_run_may_go_back(tmp_path: Path) -> None:
    history = {step: {"dice": dice} for step, dice in ((2, 0.1), (4, 0.5), (6, 0.4), (8, 0.6), (10, 0.6))}
    assert best_of(history) == 8 and best_of({}) is None
    (tmp_path / "checkpoints").mkdir()
    for step in (6, 10):
        path_of(tmp_path, step).touch()
    for step in history:
        best_path(tmp_path, step).touch()
    drop_old(tmp_path, history)
    assert list(best_paths(tmp_path)) == [4, 6, 8, 10]  # the checkpoint of step 6 goes back to the best at 4
    left = tmp_path / ".best-00000008.safetensors.1-ab.tmp"
    left.touch()
    assert only_best(tmp_path, history) == (8, best_path(tmp_path, 8)) and list(best_paths(tmp_path)) == [8]
    assert not left.exists()
    best_path(tmp_path, 8).unlink()
    with pytest.raises(FileNotFoundError, match=r"best validation \(step 8\) are gone"):
        only_best(tmp_path, history)


def test_a_checkpoint_of_steps_with_other_images_is_refused(tmp_path: Path) -> None:
    config = config_of(SMALL)
    module = SegmenterModule(build(config, pretrained=False), config, SMALL, 4, 2, tmp_path)
    module.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(
        ValueError, match=r"16 on 1 devices make 16 images a step, .* made with 32; wanted .* product is 32"
    ):
        module.on_load_checkpoint({"samples_a_step": 32, "validations": {}})
