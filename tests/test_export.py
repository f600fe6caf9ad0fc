"""Export: merged, written, reopened by plain transformers in a fresh process, compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from cogalign import export
from cogalign.models.adapt import add_lora, save_checkpoint
from cogalign.models.load import LoadedModel, load_model
from cogalign.recipe import ExportSettings, LoraSettings, ModelSettings, Recipe
from cogalign.training.context import StageContext

TINY = ModelSettings(name="tiny", dtype="float32")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained_adapter(folder: Path, value: float | None = None) -> LoadedModel:
    """A LoRA checkpoint that changes the model, as the stage GRPO writes it; `value` fills one of its weights."""
    loaded = add_lora(load_model(TINY, device="cpu"), LoraSettings(r=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
            if value is not None:
                parameter.data.fill_(value)
    save_checkpoint(loaded, folder)
    return loaded


def context_of(run_dir: Path, **settings: Any) -> StageContext:
    recipe = Recipe(name="tiny-run", out=str(run_dir), model=TINY, export=ExportSettings(**settings))
    return StageContext(recipe, run_dir, "export")


def write_run(run_dir: Path) -> None:
    """A case set and the two stages that the card reads."""
    (run_dir / "data").mkdir(parents=True)
    rows = [{"dataset": "HyperKvasir", "split": split, "licence": "CC BY 4.0"} for split in ("train", "train", "test")]
    (run_dir / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    figures = {"accuracy": 0.875, "accuracy_ci": [0.8, 0.95], "macro_f1": None, "n": 300}
    rates = {"removal_normal_rate": 0.5, "removal_normal_rate_ci": [0.25, 0.75], "removal_normal_rate_n": 40}
    for stage, models in (("evaluate", {"aligned": {"test": figures}}), ("audit", {"aligned": rates})):
        (run_dir / stage).mkdir()
        content = {"status": "finished", "metrics": {"models": models}}
        (run_dir / stage / "stage.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageContext, dict[str, Any], LoadedModel]:
    """An export of an aligned adapter, shared by the tests that only look at it."""
    run_dir = tmp_path_factory.mktemp("run")
    adapter = trained_adapter(run_dir / "grpo")
    write_run(run_dir)
    context = context_of(run_dir)
    return context, export.run(context), adapter


def test_the_reloaded_export_has_the_logits_of_the_model_in_memory(exported: Any) -> None:
    context, metrics, _ = exported
    assert metrics["max_abs_difference"] <= 1e-5
    assert metrics["mean_abs_difference"] <= metrics["max_abs_difference"]
    assert metrics["same_argmax"] is True
    files = [path for path in (context.folder / "model").rglob("*") if path.is_file()]
    assert metrics["bytes"] == sum(path.stat().st_size for path in files)
    assert sorted(path.name for path in context.folder.iterdir()) == ["model"]


def test_the_adapter_is_merged_into_the_weights(exported: Any) -> None:
    context, metrics, adapter = exported
    model = AutoModelForImageTextToText.from_pretrained(context.folder / "model")
    base = load_model(TINY, device="cpu").model
    assert metrics["parameters"] == sum(parameter.numel() for parameter in base.parameters())
    tokens = torch.arange(20, 40).unsqueeze(0)
    with torch.no_grad():
        ours, theirs, before = (each(input_ids=tokens).logits for each in (model, adapter.model, base))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - before).abs().max() > 0.01


def test_weights_have_the_base_models_names(exported: Any) -> None:
    context, _, _ = exported
    keys = export.file_keys(context.folder / "model")
    assert keys == export.file_keys(export.base_folder(TINY))


def test_the_folder_is_complete_and_ready_to_generate(exported: Any) -> None:
    context, _, adapter = exported
    folder = context.folder / "model"
    generation = json.loads((folder / "generation_config.json").read_text())
    tokenizer = adapter.tokenizer
    ends = generation["eos_token_id"]
    assert (ends if isinstance(ends, int) else ends[0]) == tokenizer.eos_token_id
    assert generation["pad_token_id"] == tokenizer.pad_token_id
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert config["text_config"]["use_cache"] is True
    for name in ("chat_template.jinja", "tokenizer.json", "processor_config.json"):
        assert (folder / name).is_file()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["grpo"]["num_generations"] == 8
    assert str(context.run_dir) not in (folder / "recipe.yaml").read_text()


def test_the_model_card_tells_recipe_data_metrics_and_limits(exported: Any) -> None:
    context, metrics, _ = exported
    card = (context.folder / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "image-text-to-text"
    assert "Not a medical device" in card
    assert "| HyperKvasir | train | 2 | CC BY 4.0 |" in card
    assert "| aligned | test | 0.875 [0.800, 0.950] | – | – | – | – | 300 |" in card
    assert "| aligned | 0.500 [0.250, 0.750] |" in card
    assert f"{metrics['parameters']:,} parameters" in card
    assert "GRPO: 200 steps" in card
    assert "{{" not in card and "{%" not in card


def test_a_difference_above_the_tolerance_fails_and_keeps_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distort(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        name = next(key for key in weights if key.endswith("embed_tokens.weight"))
        weights[name] = weights[name] * 1.5
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    earlier = tmp_path / "export" / "model"
    earlier.mkdir(parents=True)
    (earlier / "mark").write_text("earlier")
    spoil_before_reload(monkeypatch, distort)
    with pytest.raises(ValueError, match=r"export\.tolerance: .* differs by up to \d.*wanted at most 0\.001"):
        export.run(context_of(tmp_path, model="base"))
    assert [path.name for path in earlier.parent.iterdir()] == ["model"]
    assert [path.name for path in earlier.iterdir()] == ["mark"]


def test_a_process_that_cannot_open_the_export_fails_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such architecture' >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(RuntimeError, match=r"fresh process could not open the export(.|\n)*no such architecture"):
        export.run(context_of(tmp_path, model="base"))
    assert list((tmp_path / "export").iterdir()) == []


def test_an_export_replaces_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "compare_reloaded", lambda *_: export.Difference(0.0, 0.0, True))
    earlier = tmp_path / "export" / "model"
    earlier.mkdir(parents=True)
    (earlier / "mark").write_text("earlier")
    export.run(context_of(tmp_path, model="base"))
    assert [path.name for path in earlier.parent.iterdir()] == ["model"]
    assert (earlier / "config.json").is_file() and not (earlier / "mark").exists()


def test_another_processor_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def darken(folder: Path) -> None:
        path = folder / "processor_config.json"
        path.write_text(path.read_text().replace("0.5", "0.25"))

    spoil_before_reload(monkeypatch, darken)
    with pytest.raises(ValueError, match="the reloaded processor gives another 'pixel_values'"):
        export.run(context_of(tmp_path, model="base"))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "grpo", value=float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        export.run(context_of(tmp_path))
    assert not (tmp_path / "export" / "model").exists()


def test_other_names_of_weights_are_refused(tmp_path: Path) -> None:
    model = load_model(TINY, device="cpu").model
    model.save_pretrained(tmp_path)
    known = export.file_keys(tmp_path)
    assert known is not None
    export.check_keys(model, tmp_path, known)
    moved = {f"old.{name}" for name in known}
    with pytest.raises(ValueError, match=rf"{len(known)} missing \(first: old\..*{len(known)} unknown"):
        export.check_keys(model, tmp_path, moved)


def test_a_base_without_files_is_compared_by_its_architecture(tmp_path: Path) -> None:
    context = context_of(tmp_path, model="base", dtype="bfloat16")
    recipe = replace(context.recipe, model=ModelSettings(name="tiny-random"))
    metrics = export.run(replace(context, recipe=recipe))
    assert metrics["max_abs_difference"] <= 1e-3
    weights = load_file(tmp_path / "export" / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    card = (tmp_path / "export" / "model" / "README.md").read_text()
    assert "had not been evaluated" in card and "case set was not at hand" in card


def test_a_model_that_was_not_trained_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage grpo first"):
        export.run(context_of(tmp_path))


def test_not_a_number_is_a_difference() -> None:
    logits = torch.zeros(1, 2, 3)
    other = logits.clone()
    other[0, 0, 0] = float("nan")
    assert not export.difference_of(logits, other).max_abs_difference <= 1e9
    with pytest.raises(ValueError, match=r"have the shape \[1, 2, 4\]"):
        export.difference_of(logits, torch.zeros(1, 2, 4))


def spoil_before_reload(monkeypatch: pytest.MonkeyPatch, damage: Any) -> None:
    """Damage the written folder before the fresh process opens it."""
    compare = export.compare_reloaded

    def spoiled(model: Any, processor: Any, folder: Path, question: str) -> export.Difference:
        damage(folder)
        return compare(model, processor, folder, question)

    monkeypatch.setattr(export, "compare_reloaded", spoiled)
