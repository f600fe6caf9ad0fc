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


@pytest.fixture
def short(adapted: LoadedModel) -> LoadedModel:
    """The base in bfloat16, the adapter in float32."""
    for name, values in (*adapted.model.named_parameters(), *adapted.model.named_buffers()):
        if "lora_" not in name and "inv_freq" not in name:
            values.data = values.data.bfloat16()
    return adapted


def short_logits(loaded: LoadedModel, prompt: Inputs) -> torch.Tensor:
    logits: torch.Tensor = loaded.model(**prompt).logits.float()
    return logits


@torch.no_grad()
def test_on_bfloat16_sampling_and_scoring_compute_the_same_bits(short: LoadedModel, prompt: Inputs) -> None:
    """They read the base's weights in other orders, and add the adapter in the same way."""
    expected = short_logits(short, prompt)
    with short.model.disable_adapter():
        assert (short_logits(short, prompt) - expected).norm() > 0.1 * expected.norm()
    with fused_adapter(short.model) as fused:
        scored = short_logits(short, prompt)
    with sampling_weights(short.model, parts(short)) as copied:
        sampled = short_logits(short, prompt)
    assert (fused, copied) == (4 * 7, 4 * 7 + 1) and overridden(short) == 0
    assert torch.equal(sampled, scored)
    assert (scored - expected).norm() <= 0.05 * expected.norm()
    assert torch.equal(short_logits(short, prompt), expected)


def test_on_bfloat16_a_fused_adapter_has_the_gradients_of_float32(short: LoadedModel, prompt: Inputs) -> None:
    trained = {name: p for name, p in short.model.named_parameters() if p.requires_grad}
    with fused_adapter(short.model):
        loss = short_logits(short, prompt)[:, -1].log_softmax(-1)[:, 20].sum()
    found = torch.autograd.grad(loss, list(trained.values()))
    short.model.float()
    loss = short_logits(short, prompt)[:, -1].log_softmax(-1)[:, 20].sum()
    wanted = torch.autograd.grad(loss, list(trained.values()))
    assert all(gradient.dtype == torch.float32 for gradient in found)
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (found, wanted))
    assert (a - b).norm() <= 0.15 * b.norm()
