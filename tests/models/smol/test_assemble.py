"""The folder that is written: opened by plain transformers, the same again, whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from cogalign.cli import main
from cogalign.cli_models import IMAGES, image_files
from cogalign.models.smol.assemble import assemble_twin
from cogalign.models.smol.twin import SIDE, STRIDE
from cogalign.training.file_digest import sha256_of


def test_auto_classes_open_it_and_an_image_has_its_visual_tokens(twin_folder: Path, images: list[Image.Image]) -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(twin_folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == "FastVlmForConditionalGeneration"
    processor = AutoProcessor.from_pretrained(twin_folder)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is seen?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=images[:2], return_tensors="pt")
    count = (SIDE // STRIDE) ** 2
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * count == 2 * model.config.image_seq_length
    with torch.no_grad():
        logits = model(**inputs).logits
        other = model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(0)}).logits
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits, other), "which image comes first shows"


def test_pad_and_end_are_told_alike_everywhere(twin_folder: Path) -> None:
    config = json.loads((twin_folder / "config.json").read_text())
    generation = json.loads((twin_folder / "generation_config.json").read_text())
    tokenizer = AutoProcessor.from_pretrained(twin_folder).tokenizer
    for told in (config, config["text_config"], generation):
        assert (told["pad_token_id"], told["eos_token_id"]) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert tokenizer.padding_side == "left"


def test_the_same_images_and_seed_give_the_same_bytes(
    tmp_path: Path, twin_folder: Path, images: list[Image.Image]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        torch.rand(1)  # what was drawn before must not show
        assemble_twin(tmp_path / "again", images, "random images")
    finally:
        torch.set_num_threads(threads)
    assemble_twin(tmp_path / "other", images, "random images", seed=1)
    names = sorted(path.name for path in twin_folder.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    assert all((tmp_path / "again" / name).read_bytes() == (twin_folder / name).read_bytes() for name in names)
    assert sha256_of(tmp_path / "other" / "model.safetensors") != sha256_of(twin_folder / "model.safetensors")


def test_the_card_and_the_list_say_what_was_written(twin_folder: Path, images: list[Image.Image]) -> None:
    told = json.loads((twin_folder / "assembly.json").read_text())
    assert told["sha256"] == sha256_of(twin_folder / "model.safetensors")
    assert told["projector"]["images"] == len(images)
    card = (twin_folder / "README.md").read_text()
    assert told["sha256"] in card and "3 random images" in card and "All weights are random" in card


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path, images: list[Image.Image]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is there already"):
        assemble_twin(tmp_path, images, "random images")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        assemble_twin(tmp_path / "out", [], "no images")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_twin_fitted_to_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "assemble", "tiny-smol", str(tmp_path / "twin")]) == 0
    told = json.loads((tmp_path / "twin" / "assembly.json").read_text())
    assert f"{told['parameters']:,} parameters, bfloat16, sha256 {told['sha256'][:12]}" in capsys.readouterr().out
    assert (told["projector"]["images"], told["projector"]["source"]) == (IMAGES, "phantoms")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "twin", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_photographs_are_spread_over_a_folder(tmp_path: Path) -> None:
    for index in range(2 * IMAGES):
        (tmp_path / f"{index // 10}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index // 10}" / f"{index:03d}.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = image_files(tmp_path)
    assert len(found) == len(set(found)) == IMAGES
    assert len({path.parent for path in found}) == 10


@pytest.mark.parametrize("arguments, message", [
    (["--images", "nowhere"], "--images: nowhere is no folder"),
    (["--images", "empty"], "--images: empty holds no image"),
    (["--seed", "-1"], "--seed: found -1, wanted at least 0"),
    (["--dtype", "float16"], "invalid choice: 'float16'"),
])  # fmt: skip
def test_the_command_refuses_what_it_cannot_use(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["models", "assemble", "tiny-smol", "out", *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
