import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cogalign.generation.vllm_server import require_adapter
from cogalign.models.adapt import (
    POLICY,
    REFERENCE,
    Reference,
    add_lora,
    parameter_groups,
    save_checkpoint,
    set_trainable,
    train_all,
)
from cogalign.models.load import LoadedModel, load_model
from cogalign.models.prompts import Inputs, encode_prompts
from cogalign.recipe import LoraSettings, ModelSettings, SftSettings
from cogalign.sft.module import SftModule
from cogalign.training.checkpoint_content import keep_trainable

RANDOM = ModelSettings(name="tiny-random", dtype="float32")


@pytest.fixture(scope="session")
def prompt(tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]) -> Inputs:
    return encode_prompts(tiny.processor, pictures[:2], questions[:2])


@torch.no_grad()
def logits(model: Any, prompt: Inputs) -> torch.Tensor:
    return model(**prompt).logits


def flags(loaded: LoadedModel) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in loaded.model.named_parameters()}


def shake(loaded: LoadedModel) -> None:
    """Change all that is trained."""
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_a_fresh_adapter_is_trainable_alone_and_changes_nothing(
    own_tiny: LoadedModel, tiny: LoadedModel, prompt: Inputs
) -> None:
    state = torch.get_rng_state()
    loaded = add_lora(own_tiny, LoraSettings(r=4, alpha=8), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    trained = [name for name, trainable in flags(loaded).items() if trainable]
    assert len(trained) == 2 * 4 * 7
    assert all("language_model.layers" in name and ".lora_" in name for name in trained)
    assert torch.equal(logits(loaded.model, prompt), logits(tiny.model, prompt))


def test_an_adapters_start_depends_on_the_seed_alone(own_tiny: LoadedModel) -> None:
    bases = [LoadedModel(copy.deepcopy(own_tiny.model), own_tiny.processor, own_tiny.family) for _ in range(3)]
    one, same, other = (
        dict(add_lora(base, LoraSettings(r=2), seed).model.named_parameters())
        for base, seed in zip(bases, (5, 5, 6), strict=True)
    )
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_the_reference_stays_what_the_adapter_was(adapted: LoadedModel, prompt: Inputs) -> None:
    before = logits(adapted.model, prompt)
    reference = Reference(adapted)
    assert torch.equal(logits(adapted.model, prompt), before)
    trained = flags(adapted)
    shake(adapted)
    changed = logits(adapted.model, prompt)
    assert (changed - before).abs().max() > 0.1
    with reference.active() as model:
        assert not torch.is_grad_enabled()
        assert torch.equal(model(**prompt).logits, before)
    assert torch.equal(logits(adapted.model, prompt), changed)
    assert flags(adapted) == trained and torch.is_grad_enabled()


def test_the_policy_is_trained_after_the_reference_and_the_reference_never(adapted: LoadedModel) -> None:
    reference = Reference(adapted)
    expected = {name: f".{POLICY}." in name and "lora_" in name for name in flags(adapted)}
    assert flags(adapted) == expected and any(expected.values())
    with pytest.raises(KeyError), reference.active():
        raise KeyError("a reward failed")
    assert flags(adapted) == expected
    assert adapted.model.active_adapter == POLICY
    assert any(f".{REFERENCE}." in name for name in expected)


def test_the_reference_of_full_weights_is_a_frozen_copy(own_tiny: LoadedModel, prompt: Inputs) -> None:
    loaded = train_all(own_tiny, freeze_vision=True, freeze_projector=True)
    before, trained = logits(loaded.model, prompt), flags(loaded)
    reference = Reference(loaded)
    shake(loaded)
    loaded.model.to(torch.float64)  # as a precision plugin does with what belongs to the LightningModule
    with reference.active() as model:
        assert next(model.parameters()).dtype is torch.float64
        assert not any(parameter.requires_grad for parameter in model.parameters())
        torch.testing.assert_close(model(**prompt).logits.float(), before, rtol=1e-4, atol=1e-4)
    assert (logits(loaded.model, prompt) - before).abs().max() > 0.1
    assert flags(loaded) == trained


@pytest.mark.parametrize(("vision", "projector"), [(True, True), (True, False), (False, False)])
def test_full_training_freezes_what_it_is_told(own_tiny: LoadedModel, vision: bool, projector: bool) -> None:
    loaded = train_all(own_tiny, vision, projector)
    for name, trainable in flags(loaded).items():
        is_projector = "merger" in name
        is_vision = name.startswith("model.visual.") and not is_projector
        assert trainable == (not ((vision and is_vision) or (projector and is_projector))), name


def test_an_adapter_is_written_in_pefts_format(adapted: LoadedModel, prompt: Inputs, tmp_path: Path) -> None:
    from peft import PeftModel

    Reference(adapted)
    shake(adapted)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/old.txt").write_text("of a run before")
    folder = save_checkpoint(adapted, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (folder / "old.txt").exists() and not (folder / REFERENCE).exists()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    base = copy.deepcopy(adapted.model).unload()
    opened = PeftModel.from_pretrained(base, str(folder)).eval()
    assert torch.equal(logits(opened, prompt), logits(adapted.model, prompt))


def test_an_opened_adapter_is_trained_on(tmp_path: Path, prompt: Inputs) -> None:
    made = add_lora(load_model(RANDOM, device="cpu"), LoraSettings(r=2), seed=0)
    shake(made)
    folder = save_checkpoint(made, tmp_path)
    opened = load_model(RANDOM, folder, device="cpu")
    assert torch.equal(logits(opened.model, prompt), logits(made.model.eval(), prompt))
    assert not any(flags(opened).values())
    set_trainable(opened)
    assert sum(flags(opened).values()) == 2 * 4 * 7


def test_full_weights_are_written_in_hub_layout(own_tiny: LoadedModel, prompt: Inputs, tmp_path: Path) -> None:
    loaded = train_all(own_tiny, True, True)
    shake(loaded)
    folder = save_checkpoint(loaded, tmp_path)
    assert folder == tmp_path / "model" and [path.name for path in tmp_path.iterdir()] == ["model"]
    opened = load_model(RANDOM, folder, device="cpu")
    assert torch.equal(logits(opened.model, prompt), logits(loaded.model, prompt))
    assert opened.processor.chat_template == loaded.processor.chat_template
    again = encode_prompts(opened.processor, [Image.new("RGB", (100, 60))], ["What?"])
    first = encode_prompts(loaded.processor, [Image.new("RGB", (100, 60))], ["What?"])
    assert all(torch.equal(value, first[name]) for name, value in again.items())


def test_an_adapter_with_a_projector_is_refused_where_a_server_samples(own_tiny: LoadedModel) -> None:
    loaded = add_lora(own_tiny, LoraSettings(r=2), seed=0, freeze_projector=False)
    with pytest.raises(ValueError, match=r"holds a trained projector \(sft.freeze_projector: false\), wanted hf"):
        require_adapter(loaded)


@pytest.mark.parametrize("whole", [False, True])
def test_the_projector_gets_a_learning_rate_of_its_own(own_tiny: LoadedModel, whole: bool) -> None:
    loaded = train_all(own_tiny, True, False) if whole else add_lora(own_tiny, LoraSettings(r=2), 0, False)
    trained = {id(p) for p in loaded.model.parameters() if p.requires_grad}
    (one,) = parameter_groups(loaded, 1e-4, None)
    assert one["lr"] == 1e-4 and {id(p) for p in one["params"]} == trained
    rest, projector = parameter_groups(loaded, 1e-4, 1e-3)
    assert (rest["lr"], projector["lr"]) == (1e-4, 1e-3)
    parts = [{id(p) for p in group["params"]} for group in (rest, projector)]
    assert parts[0] | parts[1] == trained and not parts[0] & parts[1]
    names = {name for name, p in loaded.core.named_parameters() if id(p) in parts[1]}
    assert names and all(loaded.family.is_projector(name) for name in names)


def test_refuses_a_learning_rate_of_a_projector_that_is_not_trained(own_tiny: LoadedModel) -> None:
    with pytest.raises(ValueError, match=r"found 0\.001, but the projector is not trained; set it to null"):
        parameter_groups(add_lora(own_tiny, LoraSettings(r=2), 0), 1e-4, 1e-3)


def test_a_training_checkpoint_holds_the_projector_and_gives_it_back_exactly(own_tiny: LoadedModel) -> None:
    base = copy.deepcopy(own_tiny.model).bfloat16()
    one, other = (
        add_lora(LoadedModel(copy.deepcopy(base), own_tiny.processor, own_tiny.family), LoraSettings(r=2), seed, False)
        for seed in (0, 1)
    )
    shake(one)
    checkpoint = {"state_dict": SftModule(one, SftSettings()).state_dict()}
    keep_trainable(checkpoint, SftModule(one, SftSettings()))
    assert any(".modules_to_save.default." in name for name in checkpoint["state_dict"])
    SftModule(other, SftSettings()).load_state_dict(checkpoint["state_dict"], strict=False)
    wanted = {name: p for name, p in one.model.named_parameters() if p.requires_grad}
    found = dict(other.model.named_parameters())
    assert all(torch.equal(found[name], values) for name, values in wanted.items())
