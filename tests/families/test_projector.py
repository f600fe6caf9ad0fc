"""In every family a projector is trained beside an adapter, on a base in bfloat16, and read again as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from cogalign.export import merged
from cogalign.models.adapt import POLICY, REFERENCE, Reference, add_lora, save_checkpoint, set_trainable
from cogalign.models.load import LoadedModel, load_model
from cogalign.models.prompts import Inputs
from cogalign.models.whole_parts import trained_whole
from cogalign.recipe import LoraSettings, ModelSettings
from tests.families import twins
from tests.families.whole import QUESTIONS, Rows

LORA = LoraSettings(r=4, alpha=8, dropout=0.0)


@pytest.fixture
def base(twin: LoadedModel) -> LoadedModel:
    """A copy in bfloat16, as it is opened from a checkpoint in it."""
    model = copy.deepcopy(twin.model).requires_grad_(False)
    for values in (*model.parameters(), *(v for name, v in model.named_buffers() if name in model.state_dict())):
        if values.is_floating_point():
            values.data = values.data.bfloat16()
    return LoadedModel(model, twin.processor, twin.family)


@pytest.fixture
def trained(base: LoadedModel) -> LoadedModel:
    """With an adapter and a projector, both moved by one step of an optimizer."""
    own = LoadedModel(copy.deepcopy(base.model), base.processor, base.family)
    loaded = add_lora(own, LORA, seed=1, freeze_projector=False)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return LoadedModel(loaded.model.eval(), base.processor, base.family)


@pytest.fixture
def prompt(base: LoadedModel, image_rows: Rows) -> Inputs:
    return twins.encode(base, image_rows[:2], QUESTIONS[:2])


@torch.no_grad()
def logits(model: Any, prompt: Inputs) -> Tensor:
    found: Tensor = model(**prompt).logits.float()
    return found


def policy_state(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: p for name, p in loaded.model.named_parameters() if f".{POLICY}." in name}


def reopened(base: LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """As every stage opens a checkpoint, on a copy of the base."""
    from cogalign.models import load

    monkeypatch.setattr(load, "_open_base", lambda _: (copy.deepcopy(base.model), base.processor))
    return load_model(ModelSettings(name="twin"), folder, device="cpu")


def test_projector_and_adapter_are_trained_in_float32_and_nothing_else_is(trained: LoadedModel) -> None:
    names = {name: p for name, p in trained.model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in names.values())
    assert all("lora_" in name or trained.family.is_projector(name) for name in names)
    assert any(trained.family.is_projector(name) for name in names)
    assert not any(trained.family.is_vision(name) for name in names)


def test_a_gradient_reaches_the_projector(trained: LoadedModel, prompt: Inputs) -> None:
    loss = trained.model(**prompt).logits.float()[:, -1].log_softmax(-1)[:, 20].sum()
    weights = [p for part in trained_whole(trained.model) for p in part.parameters() if p.dim() > 1]
    assert weights and all(float(g.norm()) > 0 for g in torch.autograd.grad(loss, weights))


def test_a_saved_projector_is_read_to_the_last_bit(
    base: LoadedModel, trained: LoadedModel, prompt: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(trained.model, prompt)
    assert not torch.equal(expected, logits(base.model, prompt))
    folder = save_checkpoint(trained, tmp_path)
    again = reopened(base, folder, monkeypatch)
    wanted, found = policy_state(trained), policy_state(again)
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[name], values) and found[name].dtype == values.dtype for name, values in wanted.items()
    )
    assert torch.equal(logits(again.model, prompt), expected)
    assert any(not torch.equal(values, values.bfloat16().float()) for values in load_file(
        folder / "adapter_model.safetensors").values())  # fmt: skip


@pytest.mark.parametrize("freeze", [True, False])
def test_the_policy_trains_the_projector_as_told_and_the_reference_keeps_it(
    trained: LoadedModel, prompt: Inputs, freeze: bool
) -> None:
    set_trainable(trained, freeze_projector=freeze)
    flags = {name: p.requires_grad for name, p in trained.model.named_parameters()}
    before = logits(trained.model, prompt)
    reference = Reference(trained)
    assert {name: p.requires_grad for name, p in trained.model.named_parameters() if REFERENCE not in name} == flags
    with torch.no_grad():
        for part in trained_whole(trained.model):
            for parameter in part.parameters():
                parameter.add_(0.3)
    changed = logits(trained.model, prompt)
    assert not torch.equal(changed, before)
    with reference.active() as model:
        assert torch.equal(logits(model, prompt), before)
    assert torch.equal(logits(trained.model, prompt), changed)
    after = {name: p.requires_grad for name, p in trained.model.named_parameters()}
    assert {name: flag for name, flag in after.items() if REFERENCE not in name} == flags
    assert not any(flag for name, flag in after.items() if REFERENCE in name)
    assert any(flags[name] for name in flags if trained.family.is_projector(name)) == (not freeze)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_an_export_holds_the_trained_projector_in_the_type_of_all_weights(
    trained: LoadedModel, prompt: Inputs, dtype: str
) -> None:
    expected = logits(trained.model, prompt)
    wanted = [{n: p.clone() for n, p in part.named_parameters()} for part in trained_whole(trained.model)]
    paths = [n for n, part in trained.core.named_modules() if any(part is w for w in trained_whole(trained.model))]
    model = merged(trained.model, dtype)
    kind = torch.bfloat16 if dtype == "auto" else torch.float32
    assert not isinstance(model, PeftModel)
    assert {p.dtype for p in model.parameters()} == {kind}
    for path, weights in zip(paths, wanted, strict=True):
        part = model.get_submodule(path.partition(".modules_to_save.")[0])
        assert all(torch.equal(p, weights[name].to(kind)) for name, p in part.named_parameters())
    assert all(part is None or not part._forward_pre_hooks for part in model.modules())
    found = logits(model, prompt)
    assert (found - expected).norm() <= 0.2 * expected.norm()
