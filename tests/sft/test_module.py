import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cogalign.data.caseset import read_case_set
from cogalign.data.collator import SftCollator
from cogalign.models.load import LoadedModel
from cogalign.recipe import SftSettings
from cogalign.sft.module import SftModule, answer_loss, warmup_cosine


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
