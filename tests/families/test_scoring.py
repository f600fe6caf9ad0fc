"""In every family a prompt computed once for its group gives what each whole sequence gives by itself."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from cogalign.generation.plain import warn_plain
from cogalign.grpo import scoring
from cogalign.grpo.plain import rounds
from cogalign.grpo.scoring import completion_logps
from cogalign.models.adapt import add_lora
from cogalign.models.features import shared_image_features
from cogalign.models.load import LoadedModel
from cogalign.models.packing import PackedAttention
from cogalign.recipe import LoraSettings
from tests.families.whole import Batch, Rows, batch_of, error, whole_logps

TOLERANCE, TEMPERATURE = 1e-5, 0.7
_EXPECTED: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]] = {}


def loss_of(logps: Tensor, batch: Batch) -> Tensor:
    """Every token weighs another amount."""
    return (logps * torch.linspace(0.5, 1.5, logps.numel()).view_as(logps) * batch.mask).sum()


def gradients(loaded: LoadedModel, loss: Tensor) -> dict[str, Tensor]:
    """Of all weights, the vision encoder's included, which only the prompts reach."""
    named = dict(loaded.model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


def expected(loaded: LoadedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, entropies, loss and gradients of whole sequences, computed once a family and group."""
    key = (loaded.core.config.model_type, batch.group)
    if key not in _EXPECTED:
        logps, entropies = whole_logps(loaded, batch, TEMPERATURE)
        loss = loss_of(logps, batch)
        _EXPECTED[key] = logps.detach(), entropies.detach(), loss.detach(), gradients(loaded, loss)
    return _EXPECTED[key]


def scored(loaded: LoadedModel, batch: Batch, temperature: float, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """By the package; with `order` [N] the completions are given in another order than that of their prompts."""
    owner = torch.arange(len(batch.alone)).repeat_interleave(batch.group)
    order = torch.arange(len(owner)) if order is None else order
    logps, entropies = completion_logps(
        loaded, loaded.model, batch.prompt, batch.ids[order], batch.mask[order], owner[order], temperature
    )
    return logps[order.argsort()], entropies[order.argsort()]


def check(loaded: LoadedModel, batch: Batch, order: Tensor | None = None) -> None:
    logps, entropies = scored(loaded, batch, TEMPERATURE, order)
    loss = loss_of(logps, batch)
    wanted_logps, wanted_entropies, wanted_loss, wanted = expected(loaded, batch)
    assert logps.shape == batch.ids.shape and not entropies.requires_grad
    assert (logps[batch.mask == 0] == 0).all() and (entropies[batch.mask == 0] == 0).all()
    assert error(logps, wanted_logps) <= TOLERANCE
    assert error(entropies, wanted_entropies) <= TOLERANCE
    assert error(loss, wanted_loss) <= TOLERANCE
    found = gradients(loaded, loss)
    assert found.keys() == wanted.keys()
    largest = max(gradient.norm() for gradient in wanted.values())
    # the gradient of a key's bias is zero but for rounding: softmax does not change with it
    real = {name: gradient for name, gradient in wanted.items() if gradient.norm() > 1e-6 * largest}
    assert len(real) > 50 and any(loaded.family.is_vision(name) for name in real)
    for name, gradient in real.items():
        assert error(found[name], gradient) <= TOLERANCE, name


@pytest.mark.parametrize(("side", "merge"), [("left", True), ("left", False), ("right", True)])
@pytest.mark.parametrize("group", [1, 3])
def test_shared_prompts_give_the_scores_and_gradients_of_whole_sequences(
    adapted_twin: LoadedModel, image_rows: Rows, group: int, side: str, merge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One and two images a prompt, prompts and completions of unequal length; `merge=False` is what a GPU does."""
    assert adapted_twin.family.shares_prompts(adapted_twin.core)
    monkeypatch.setattr(scoring, "PackedAttention", partial(PackedAttention, merge=merge))
    batch = batch_of(adapted_twin, image_rows[:3], group, side)
    assert len(set(batch.prompt["attention_mask"].sum(1).tolist())) == 3
    mixed = torch.randperm(len(batch.ids), generator=torch.Generator().manual_seed(0))
    check(adapted_twin, batch, mixed if side == "right" else None)


def test_an_adapter_is_scored_as_in_whole_sequences(twin: LoadedModel, image_rows: Rows) -> None:
    own = add_lora(LoadedModel(copy.deepcopy(twin.model), twin.processor, twin.family), LoraSettings(r=4), seed=1)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in own.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    own.model.eval()
    batch = batch_of(own, image_rows[:2], 2)
    wanted_logps = whole_logps(own, batch, 1.0)[0]
    assert error(whole_logps(twin, batch, 1.0)[0], wanted_logps) > 0.01
    with shared_image_features(own) as features:
        logps = scored(own, batch, 1.0)[0]
    assert bool(features.images_encoded) == own.family.shares_prompts(own.core)
    assert error(logps, wanted_logps) <= TOLERANCE
    chosen = [parameter for parameter in own.model.parameters() if parameter.requires_grad]
    found, wanted = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(each, batch), chosen)])
        for each in (logps, wanted_logps)
    )
    assert error(found, wanted) <= TOLERANCE


def test_gradient_checkpointing_is_refused_where_prompts_are_shared(
    adapted_twin: LoadedModel, image_rows: Rows
) -> None:
    own = LoadedModel(copy.deepcopy(adapted_twin.model), adapted_twin.processor, adapted_twin.family)
    own.model.gradient_checkpointing_enable()
    own.model.train()
    batch = batch_of(own, image_rows[:1], 2)
    with pytest.raises(TypeError, match="no keys and values after the prompts, as with gradient checkpointing"):
        scored(own, batch, 1.0)


@pytest.mark.parametrize("group", [1, 3])
def test_a_family_without_a_class_is_scored_by_whole_sequences(
    gemma: LoadedModel, image_rows: Rows, group: int
) -> None:
    assert not gemma.family.shares_prompts(gemma.core)
    check(gemma, batch_of(gemma, image_rows[:3], group, "right" if group == 3 else "left"))


def test_the_plain_path_says_once_what_it_costs(
    gemma: LoadedModel, image_rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_plain.cache_clear()
    batch = batch_of(gemma, image_rows[:1], 1)
    for _ in range(2):
        with torch.no_grad():
            completion_logps(gemma, gemma.model, batch.prompt, batch.ids, batch.mask, torch.arange(1), 1.0)
    said = capsys.readouterr().err
    assert said.count("gemma3: prompts of this kind of model are not shared") == 1
    assert "once for every completion, in sampling and again in every scoring pass" in said


def test_every_completion_is_in_one_round_with_no_other_of_its_prompt() -> None:
    owner = torch.tensor([2, 0, 2, 2, 0])
    found = [(rows.tolist(), prompts.tolist()) for rows, prompts in rounds(owner, 4)]
    assert found == [([1, 0], [0, 2]), ([4, 2], [0, 2]), ([3], [2])]
    assert list(rounds(owner[:0], 4)) == []
