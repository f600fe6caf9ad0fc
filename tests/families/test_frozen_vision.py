"""A tower with batch norm that is not trained stays as it is, whatever runs between training steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from cogalign.generation.sampling import SamplingSettings, sample
from cogalign.grpo.scoring import completion_logps
from cogalign.models.adapt import Reference, add_lora, keep_frozen_in_eval
from cogalign.models.load import LoadedModel
from cogalign.recipe import LoraSettings, SftSettings
from cogalign.sft.module import SftModule
from tests.families import twins
from tests.families.conftest import built
from tests.families.whole import QUESTIONS, Rows


@pytest.fixture
def loaded() -> LoadedModel:
    """A projector and an adapter are trained, with dropout, so that the mode shows."""
    base = built("fast_vlm")
    own = LoadedModel(copy.deepcopy(base.model).requires_grad_(False), base.processor, base.family)
    found = add_lora(own, LoraSettings(r=4, alpha=8, dropout=0.1), seed=1, freeze_projector=False)
    keep_frozen_in_eval(found, freeze_vision=True)
    return found


def statistics(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in loaded.core.named_buffers() if "running_" in name}


def modes(loaded: LoadedModel) -> dict[str, bool]:
    return {name: part.training for name, part in loaded.core.named_modules()}


def test_no_pass_moves_the_statistics_and_sampling_gives_every_part_its_mode_back(
    loaded: LoadedModel, image_rows: Rows
) -> None:
    before, own = statistics(loaded), modes(loaded)
    assert len(before) > 10 and any(own.values())
    assert not any(mode for name, mode in own.items() if loaded.family.is_vision(name))
    batch = twins.encode(loaded, image_rows[:3], QUESTIONS[:3], "right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :4] = -100
    module = SftModule(loaded, SftSettings())
    for _ in range(2):
        module._loss({**batch, "labels": labels}).backward()
        rollout = sample(loaded, batch, SamplingSettings(4, 2), torch.Generator().manual_seed(0))
        assert modes(loaded) == own
    owner = torch.arange(3).repeat_interleave(2)
    completion_logps(loaded, loaded.model, batch, rollout.ids, rollout.mask, owner, 1.0)[0].sum().backward()
    with Reference(loaded).active() as model:
        completion_logps(loaded, model, batch, rollout.ids, rollout.mask, owner, 1.0)
    after = statistics(loaded)
    assert all(torch.equal(after[name], values) for name, values in before.items())
    loaded.core.model.vision_tower.train()
    loaded.model(**batch)
    assert any(not torch.equal(values, before[name]) for name, values in statistics(loaded).items())  # else no proof
