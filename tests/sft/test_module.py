import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cogalign.data.caseset import read_case_set
from cogalign.data.collator import SftCollator
from cogalign.models.inputs import padding_is_behind
from cogalign.models.load import LoadedModel
from cogalign.recipe import SftSettings
from cogalign.sft.module import SftModule, answer_loss, answer_tokens
from cogalign.sft.short import computes_short
from cogalign.training.schedules import warmup_cosine


def test_the_loss_is_the_mean_over_the_answers_tokens() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, 2, 6, 5]])
    logp = logits.log_softmax(-1)
    terms = [
        -logp[row, place - 1, labels[row, place]]
        for row in range(2)
        for place in range(1, 5)
        if labels[row, place] != -100
    ]
    torch.testing.assert_close(answer_loss(logits, labels), torch.stack(terms).mean())


def test_leaving_out_the_prompts_logits_changes_no_loss_and_no_gradient(
    adapted: LoadedModel, phantom_set: Path
) -> None:
    case_set = read_case_set(phantom_set)
    chosen = case_set.split("train")[:3]
    batch = SftCollator(adapted.processor, "What?", 2048)([(case, case_set.image(case)) for case in chosen])
    module = SftModule(adapted, SftSettings())
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    loss = module._loss(batch)
    gradients = torch.autograd.grad(loss, trained)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    expected = answer_loss(adapted.model(**inputs).logits, batch["labels"])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, trained), strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    torch.testing.assert_close(adapted.model(**batch).loss, expected, rtol=1e-5, atol=0)  # transformers' own


@pytest.mark.parametrize("layout", ["right", "left"])
def test_in_bfloat16_the_loss_and_its_gradient_are_those_of_float32_but_for_rounding(
    adapted: LoadedModel, phantom_set: Path, layout: str
) -> None:
    case_set = read_case_set(phantom_set)
    chosen = case_set.split("train")[:3]
    batch = SftCollator(adapted.processor, "What?", 2048)([(case, case_set.image(case)) for case in chosen])
    if layout == "left":
        order, tokens = batch["attention_mask"].argsort(dim=1, stable=True), batch["input_ids"].shape
        batch = {name: v.gather(1, order) if v.shape == tokens else v for name, v in batch.items()}
    module = SftModule(adapted, SftSettings())
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    loss = module._loss(batch)
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])
    assert not computes_short(adapted)
    for name, values in (*adapted.model.named_parameters(), *adapted.model.named_buffers()):
        if "lora_" not in name and "inv_freq" not in name:
            values.data = values.data.bfloat16()
    assert computes_short(adapted)
    rows: list[torch.Size] = []
    handle = adapted.family.head(adapted.core).register_forward_pre_hook(lambda _, args: rows.append(args[0].shape))
    short = module._loss(batch)
    handle.remove()
    assert rows == [(answer_tokens(batch["labels"]), 128)]  # nothing but what the loss is taken of
    assert float(short.detach()) == pytest.approx(float(loss.detach()), rel=0.02)
    found = torch.cat([g.flatten() for g in torch.autograd.grad(short, trained)])
    assert (found - wanted).norm() <= 0.2 * wanted.norm()


@pytest.mark.parametrize("layout", ["right", "left"])
def test_padding_changes_neither_loss_nor_gradient_and_behind_it_needs_no_mask(
    adapted: LoadedModel, phantom_set: Path, layout: str
) -> None:
    case_set = read_case_set(phantom_set)
    answers = (
        "A wall.",
        "A round polyp with a smooth surface, left of the middle.",
        "A wall and a fold.",
    )
    samples = [
        (replace(case, answer=answer), case_set.image(case))
        for case, answer in zip(case_set.split("train"), answers, strict=False)
    ]
    collate = SftCollator(adapted.processor, "What?", 2048)
    module = SftModule(adapted, SftSettings())
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    total, summed = 0, [torch.zeros_like(p) for p in trained]
    expected = 0.0
    for sample in samples:  # one by one there is no padding
        alone = collate([sample])
        count = int((alone["labels"] != -100).sum())
        loss = module._loss(alone)
        for have, gradient in zip(summed, torch.autograd.grad(loss, trained), strict=True):
            have += count * gradient
        total, expected = total + count, expected + count * float(loss.detach())
    batch = collate(samples)
    assert len(set(batch["attention_mask"].sum(1).tolist())) == 3
    if layout == "left":
        order = batch["attention_mask"].argsort(dim=1, stable=True)
        tokens = batch["input_ids"].shape
        batch = {name: v.gather(1, order) if v.shape == tokens else v for name, v in batch.items()}
    masks: list[bool] = []
    handle = adapted.core.model.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs.get("attention_mask") is not None), with_kwargs=True
    )
    loss = module._loss(batch)
    handle.remove()
    assert masks == [layout == "left"]
    assert float(loss.detach()) == pytest.approx(expected / total, rel=1e-5)
    for found, wanted in zip(torch.autograd.grad(loss, trained), summed, strict=True):
        assert (found - wanted / total).norm() <= 1e-5 * (wanted / total).norm()


def test_only_masks_of_ones_then_zeros_are_behind() -> None:
    assert padding_is_behind(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert not padding_is_behind(torch.tensor([[1, 1, 1], [0, 1, 1]]))
    assert not padding_is_behind(torch.tensor([[1, 0, 1]]))


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    factors = [warmup_cosine(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert max(factors) == 1 and factors[100] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(factors[9:]))
    assert factors[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert warmup_cosine(0, 1, 0.0) == 1 and warmup_cosine(150, 100, 0.1) == pytest.approx(0, abs=1e-12)


def test_a_checkpoint_holds_what_is_trained_and_the_token_count(adapted: LoadedModel) -> None:
    module = SftModule(adapted, SftSettings())
    module.tokens_seen = 123
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(checkpoint["state_dict"]) == trained and all("lora_" in name for name in trained)
    other = SftModule(adapted, SftSettings())
    other.on_load_checkpoint(checkpoint)
    assert other.tokens_seen == 123
