from pathlib import Path

import torch

from cogalign.models.load import LoadedModel, load_model, parameter_counts
from cogalign.models.tiny import VOCABULARY, build_processor, build_tokenizer, random_model, write_random
from cogalign.recipe import ModelSettings

PHRASES = ("1. Location & Imaging Environment", "The diagnosis result is")


def corpus() -> list[str]:
    words = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "nlrstmk"]
    return [" ".join(words[k::7]) for k in range(7)] * 20


def test_the_model_is_a_small_qwen3_vl_with_all_its_parts(tiny: LoadedModel) -> None:
    config = tiny.model.config
    assert config.model_type == "qwen3_vl" and config.tie_word_embeddings
    assert config.vision_config.deepstack_visual_indexes == [1]
    assert config.text_config.rope_parameters["mrope_interleaved"]
    assert config.text_config.num_key_value_heads < config.text_config.num_attention_heads
    assert 1_000_000 < parameter_counts(tiny.model)["parameters"] < 1_500_000
    assert len(tiny.tokenizer) == VOCABULARY == config.text_config.vocab_size


def test_random_weights_depend_on_the_seed_alone(tiny: LoadedModel) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (random_model(tiny.tokenizer, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_a_phrase_is_one_token_and_text_survives_the_tokenizer() -> None:
    tokenizer = build_tokenizer(corpus(), PHRASES)
    assert len(tokenizer) <= VOCABULARY
    for phrase in PHRASES:
        assert len(tokenizer(phrase)["input_ids"]) == 1
    text = f"{PHRASES[0]}\nbal, nim 12 µm.\n{PHRASES[1]} Ulcer."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_what_is_written_opens_as_a_folder_in_hub_layout(tmp_path: Path) -> None:
    write_random(tmp_path, corpus(), PHRASES, seed=2)
    loaded = load_model(ModelSettings(name=str(tmp_path), dtype="float32"), device="cpu")
    expected = random_model(build_tokenizer(corpus(), PHRASES), seed=2).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    assert type(loaded.processor) is type(build_processor(loaded.tokenizer))
    assert loaded.processor.chat_template and loaded.tokenizer.eos_token == "<|im_end|>"
