"""Blocks computed again in the backward pass, and compiled blocks: the same numbers, gradients too."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._dynamo.utils import counters

from cogalign.generation.sampling import SamplingSettings, sample
from cogalign.grpo.scoring import completion_logps
from cogalign.models.blocks import language_blocks, prepare_blocks
from cogalign.models.load import LoadedModel
from cogalign.models.merged import fused_adapter
from cogalign.models.prefill import prefill
from cogalign.models.prompts import encode_prompts
from cogalign.recipe import TrainerSettings


@pytest.fixture
def prompts(adapted: LoadedModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (2, 48, 48, 3), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(values.numpy()) for values in pixels]
    return dict(encode_prompts(adapted.processor, images, ["What is seen?", "Which finding does this image show?"]))


def trained(adapted: LoadedModel) -> LoadedModel:
    for name, p in adapted.model.named_parameters():
        p.requires_grad_("lora_" in name)
    return adapted


def again(loaded: LoadedModel, **settings: bool) -> LoadedModel:
    """A copy with blocks as the settings ask."""
    other = LoadedModel(copy.deepcopy(loaded.model), loaded.processor, loaded.family)
    return prepare_blocks(other, TrainerSettings(**settings), "sft")  # type: ignore[arg-type]


def gradients(loaded: LoadedModel, loss: Tensor) -> dict[str, Tensor]:
    loaded.model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}


def sft_loss(loaded: LoadedModel, prompts: dict[str, Tensor]) -> Tensor:
    with fused_adapter(loaded.model):  # is left before the backward pass, as in training
        return loaded.model(**prompts, labels=prompts["input_ids"], use_cache=False).loss


def grpo_loss(loaded: LoadedModel, prompts: dict[str, Tensor], keep: bool) -> Tensor:
    start = prefill(loaded.family, loaded.model, prompts) if keep else None
    rollout = sample(loaded, prompts, SamplingSettings(7, 3), torch.Generator().manual_seed(1), start)
    owner = torch.arange(len(rollout.ids)) // 3
    logps, _ = completion_logps(loaded, loaded.model, prompts, rollout.ids, rollout.mask, owner, 1.0, start)
    return (logps * torch.linspace(-1, 1, len(rollout.ids))[:, None] * rollout.mask).sum()


def same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    assert first.keys() == second.keys() and len(first) >= 14
    assert max(float(g.abs().max()) for g in first.values()) > 1e-3
    for name, g in first.items():
        torch.testing.assert_close(g, second[name], rtol=tolerance, atol=tolerance * float(g.abs().max()), msg=name)


class Runs:
    """Counts how often a block's attention ran."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.count = 0
        language_blocks(loaded)[0].self_attn.register_forward_pre_hook(self._note)  # type: ignore[union-attr]

    def _note(self, *_: Any) -> None:
        self.count += 1


def test_recomputed_blocks_give_the_gradient_of_sft(adapted: LoadedModel, prompts: dict[str, Tensor]) -> None:
    loaded = trained(adapted)
    other = again(loaded, activation_checkpointing=True)
    runs = Runs(other)
    same(gradients(loaded, sft_loss(loaded, prompts)), gradients(other, sft_loss(other, prompts)), 1e-6)
    assert runs.count == 2


@pytest.mark.parametrize("keep", [False, True], ids=["own prompt pass", "the pass that sampled"])
def test_recomputed_blocks_give_the_gradient_through_shared_prompts(
    adapted: LoadedModel, prompts: dict[str, Tensor], keep: bool
) -> None:
    loaded = trained(adapted)
    other = again(loaded, activation_checkpointing=True)
    expected, found = grpo_loss(loaded, prompts, keep), grpo_loss(other, prompts, keep)
    runs = Runs(other)
    assert torch.equal(expected, found)
    same(gradients(loaded, expected), gradients(other, found), 1e-6)
    assert runs.count == 2  # the prompts' pass and that of the completions, each once more


def test_recomputed_blocks_keep_the_dropout_that_was_drawn(adapted: LoadedModel, prompts: dict[str, Tensor]) -> None:
    loaded = trained(adapted)
    for part in loaded.model.modules():
        if hasattr(part, "lora_dropout"):
            part.lora_dropout["default"] = torch.nn.Dropout(0.5)
    loaded.model.train()
    other = again(loaded, activation_checkpointing=True)
    found = []
    for one in (loaded, other):
        torch.manual_seed(0)
        found.append(gradients(one, sft_loss(one, prompts)))
    same(*found, 1e-6)


def test_saved_memory_is_the_inside_of_blocks(adapted: LoadedModel, prompts: dict[str, Tensor]) -> None:
    def kept(loaded: LoadedModel) -> int:
        numbers = 0

        def note(values: Tensor) -> Tensor:
            nonlocal numbers
            numbers += values.numel()
            return values

        with torch.autograd.graph.saved_tensors_hooks(note, lambda values: values):
            sft_loss(loaded, prompts)
        return numbers

    loaded = trained(adapted)
    assert kept(again(loaded, activation_checkpointing=True)) < kept(loaded) / 3


def test_without_gradient_blocks_run_as_they_were(adapted: LoadedModel, prompts: dict[str, Tensor]) -> None:
    loaded = trained(adapted)
    other = again(loaded, activation_checkpointing=True)
    how = SamplingSettings(9, 2)
    first, second = (sample(one, prompts, how, torch.Generator().manual_seed(3)) for one in (loaded, other))
    assert torch.equal(first.ids, second.ids)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_give_loss_and_gradient_for_any_length(
    adapted: LoadedModel, prompts: dict[str, Tensor], checkpointing: bool
) -> None:
    loaded = trained(adapted)
    del loaded.core.model.language_model.layers[1:]  # compiling one takes long enough
    other = again(loaded, compile=True, activation_checkpointing=checkpointing)
    torch._dynamo.reset()  # else the graph of the test before serves
    counters.clear()
    for length in (30, 23, 27):
        part = {name: prompts[name][:, -length:] for name in ("input_ids", "attention_mask")}
        part["input_ids"] = part["input_ids"].clamp(max=500)  # text only
        expected, found = sft_loss(loaded, part), sft_loss(other, part)
        assert abs(expected.item() - found.item()) < 1e-5
        same(gradients(loaded, expected), gradients(other, found), 1e-4)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_compile_is_left_out_of_grpo_with_a_note(adapted: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    before = [type(block) for block in language_blocks(adapted)]
    prepare_blocks(adapted, TrainerSettings(compile=True), "grpo")
    assert [type(block) for block in language_blocks(adapted)] == before
    assert "trainer.compile does nothing in grpo" in "".join(capsys.readouterr())
