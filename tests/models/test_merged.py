"""Adapters folded or fused for a while: the same numbers, and layers left as they were whatever happens."""

from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn

from cogalign.models import merged
from cogalign.models.load import LoadedModel
from cogalign.models.merged import fused_adapter, sampling_weights
from cogalign.models.prompts import Inputs, encode_prompts


@pytest.fixture
def prompt(adapted: LoadedModel, pictures: list[Image.Image], questions: list[str]) -> Inputs:
    return encode_prompts(adapted.processor, pictures[:2], questions[:2])


def parts(loaded: LoadedModel) -> tuple[nn.Module, nn.Module]:
    return loaded.family.text_model(loaded.core), loaded.family.head(loaded.core)


def overridden(loaded: LoadedModel) -> int:
    return sum("forward" in vars(part) for part in loaded.model.modules())


@torch.no_grad()
def test_folded_weights_give_the_adapters_logits_and_leave_it_as_it_was(adapted: LoadedModel, prompt: Inputs) -> None:
    expected = adapted.model(**prompt).logits
    with adapted.model.disable_adapter():
        assert (adapted.model(**prompt).logits - expected).abs().max() > 0.1
    with sampling_weights(adapted.model, parts(adapted)) as count:
        found = adapted.model(**prompt).logits
        assert count == overridden(adapted) == 4 * 7 + 1
    assert not torch.equal(found, expected)  # it did take another way
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert overridden(adapted) == 0 and torch.equal(adapted.model(**prompt).logits, expected)


def test_a_fused_adapter_gives_the_same_logits_and_gradients(adapted: LoadedModel, prompt: Inputs) -> None:
    results = []
    for fused in (False, True):
        adapted.model.zero_grad()
        if fused:
            with fused_adapter(adapted.model) as count:
                assert count == overridden(adapted) == 4 * 7
                logits = adapted.model(**prompt).logits
        else:
            logits = adapted.model(**prompt).logits
        logits.square().mean().backward()
        gradients = {n: p.grad.clone() for n, p in adapted.model.named_parameters() if p.grad is not None}
        results.append((logits.detach(), gradients))
    (logits, gradients), (found, found_gradients) = results
    assert overridden(adapted) == 0 and gradients.keys() == found_gradients.keys() and len(gradients) == 2 * 4 * 7
    assert (found - logits).norm() <= 1e-5 * logits.norm()
    for name, gradient in gradients.items():
        assert (found_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_nothing_is_folded_or_fused_where_the_sum_would_be_rounded(adapted: LoadedModel) -> None:
    model, layers = adapted.model, parts(adapted)
    with (
        torch.autocast("cpu", torch.bfloat16),
        sampling_weights(model, layers) as folded,
        fused_adapter(model) as fused,
    ):
        assert (folded, fused) == (0, 0)


def test_a_failure_while_weights_are_copied_leaves_no_layer_changed(
    adapted: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def no_room(*arguments: object, **named: object) -> partial[torch.Tensor]:
        if next(calls) == 19:
            raise MemoryError
        return partial(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(merged, "partial", no_room)
    with pytest.raises(MemoryError), sampling_weights(adapted.model, parts(adapted)):
        pass
    assert overridden(adapted) == 0
