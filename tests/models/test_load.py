import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cogalign.models.adapt import save_checkpoint
from cogalign.models.load import LoadedModel, load_model, parameter_counts, pixel_limits, resolve_dtype, resolve_name
from cogalign.models.prompts import encode_prompts
from cogalign.recipe import ModelSettings

RANDOM = ModelSettings(name="tiny-random", dtype="float32")


def visual_tokens(settings: ModelSettings, size: tuple[int, int]) -> int:
    loaded = load_model(settings, device="cpu")
    inputs = encode_prompts(loaded.processor, [Image.new("RGB", size, (90, 20, 20))], ["What?"])
    return int((inputs["input_ids"] == loaded.model.config.image_token_id).sum())


def test_the_models_limits_of_pixels_reach_the_processor() -> None:
    square = 16 * 16  # pixels of one visual token of the tiny model
    assert visual_tokens(RANDOM, (128, 128)) == 64
    smaller = ModelSettings(name="tiny-random", max_pixels=16 * square)
    larger = ModelSettings(name="tiny-random", min_pixels=144 * square)
    free = ModelSettings(name="tiny-random", min_pixels=4 * square, max_pixels=400 * square)
    assert visual_tokens(smaller, (128, 128)) == 16
    assert visual_tokens(larger, (128, 128)) == 144
    assert [visual_tokens(free, (side, side)) for side in (64, 160, 640)] == [16, 100, 400]


def test_a_limit_that_is_not_given_makes_way() -> None:
    size = {"shortest_edge": 100, "longest_edge": 200}
    assert pixel_limits(size, None, None) == size
    assert pixel_limits(size, 300, None) == {"shortest_edge": 300, "longest_edge": 300}
    assert pixel_limits(size, None, 50) == {"shortest_edge": 50, "longest_edge": 50}
    assert pixel_limits(size, 10, 20) == {"shortest_edge": 10, "longest_edge": 20}
    with pytest.raises(ValueError, match=r"model\.min_pixels"):
        ModelSettings(min_pixels=20, max_pixels=10)


def test_types_by_name() -> None:
    assert resolve_dtype("float32") is torch.float32 and resolve_dtype("bfloat16") is torch.bfloat16
    assert load_model(ModelSettings(name="tiny-random", dtype="bfloat16"), device="cpu").model.dtype is torch.bfloat16


def test_a_loaded_model_is_in_eval_mode_and_a_random_one_always_the_same() -> None:
    a, b = (load_model(RANDOM, device="cpu") for _ in range(2))
    assert not any(part.training for part in a.model.modules())
    assert a.device.type == "cpu" and a.core is a.model
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))
    counts = parameter_counts(a.model)
    assert counts["parameters"] == counts["trainable_parameters"] == sum(p.numel() for p in a.model.parameters())


@pytest.mark.parametrize(
    "name", ["nobody/no-such-model", "./no/such/folder", "no-such-model"], ids=["hub id", "folder", "plain name"]
)
def test_a_model_that_cannot_be_reached_is_one_clear_message(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.name") as caught:
        load_model(ModelSettings(name=name), device="cpu")
    assert name in str(caught.value) and "\n" not in str(caught.value) and "wanted" in str(caught.value)


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "bert"}', "{"])
def test_a_folder_that_holds_no_multimodal_model_is_one_clear_message(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(FileNotFoundError, match=r"model\.name") as caught:
        load_model(ModelSettings(name=str(tmp_path)), device="cpu")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_relative_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    assert resolve_name("./a/b") == "a/b" and resolve_name("a/b/") == "a/b"
    assert resolve_name("Qwen/Qwen3-VL-2B-Instruct") == "Qwen/Qwen3-VL-2B-Instruct"
    assert Path(resolve_name("tiny")).name == "tiny-base"
    with pytest.raises(FileNotFoundError, match="make smol writes models/smol"):
        resolve_name("models/smol")  # never asked of the hub
    (tmp_path / "models/smol").mkdir(parents=True)
    assert resolve_name("models/smol") == "models/smol"


def _other_rank(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 2}))


def _other_modules(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": "transformer.h.*"}))


def _cut_weights(folder: Path) -> None:
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


@pytest.mark.parametrize("damage", [_other_rank, _other_modules, _cut_weights, _no_json])
def test_an_adapter_that_does_not_fit_is_one_clear_message(
    adapted: LoadedModel, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = save_checkpoint(adapted, tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match="damaged, or was trained on another model") as caught:
        load_model(RANDOM, folder, device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_that_is_not_there_is_named(adapted: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"empty: found neither adapter_config.json nor config.json"):
        load_model(RANDOM, tmp_path / "empty", device="cpu")
    folder = save_checkpoint(adapted, tmp_path)
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"bare: found adapter_config\.json but no weights"):
        load_model(RANDOM, tmp_path / "bare", device="cpu")
