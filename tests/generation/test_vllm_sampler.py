"""What is sent for a prompt; what comes back is tested against a real server in tests/vllm."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import pytest
from PIL import Image

from cogalign.generation.sampling import SamplingSettings
from cogalign.generation.vllm_sampler import banned_bias, banned_words, compare_prompt, data_url, request_body
from cogalign.generation.vllm_server import image_limits
from cogalign.models.load import LoadedModel


def decoded(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_images_travel_without_loss(pictures: list[Image.Image]) -> None:
    for picture in pictures:
        assert decoded(data_url(picture)).tobytes() == picture.tobytes()


def test_an_alpha_channel_is_dropped_as_transformers_drops_it() -> None:
    transparent = Image.new("RGBA", (4, 4), (200, 10, 30, 0))
    assert decoded(data_url(transparent)).getpixel((0, 0)) == (200, 10, 30)


def test_a_request_leaves_no_setting_to_the_server(pictures: list[Image.Image]) -> None:
    settings = SamplingSettings(64, 8, temperature=0.7, top_p=0.9, top_k=40)
    body = request_body("policy-1", pictures[:2], "What?", settings, seed=3)
    wanted = {"model": "policy-1", "n": 8, "seed": 3, "max_completion_tokens": 64, "temperature": 0.7, "top_p": 0.9,
              "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
              "frequency_penalty": 0.0, "logprobs": True, "return_token_ids": True}  # fmt: skip
    assert {name: body[name] for name in wanted} == wanted
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert decoded(message["content"][1]["image_url"]["url"]).size == pictures[1].size


def test_placeholders_are_banned_as_texts_of_one_token(tiny: LoadedModel) -> None:
    words = banned_words(tiny)
    assert {"<|image_pad|>", "<|video_pad|>"} <= set(words)
    found = [tiny.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    assert found == [[token] for token in tiny.family.placeholder_ids(tiny.core, tiny.tokenizer)]


def test_rows_without_text_get_the_lowest_bias(own_tiny: LoadedModel) -> None:
    assert banned_bias(own_tiny) == {}
    rows = len(own_tiny.tokenizer)
    own_tiny.core.resize_token_embeddings(rows + 2)
    assert banned_bias(own_tiny) == {str(rows): -100.0, str(rows + 1): -100.0}


def test_pixel_limits_are_those_of_families_that_have_them(tiny: LoadedModel) -> None:
    assert image_limits(tiny.processor) == {"min_pixels": 16384, "max_pixels": 16384}

    edges = SimpleNamespace(size={"shortest_edge": 336, "longest_edge": 336})
    assert image_limits(SimpleNamespace(image_processor=edges)) == {}


def test_equal_prompts_pass_and_others_name_both() -> None:
    compare_prompt("What?", [1, 2, 3], [1, 2, 3], [])
    with pytest.raises(
        ValueError, match=r"'What\?': .* 4 tokens in vLLM and of 3 here.*token 2 on .*\[9, 3\].*\[3\].*--x"
    ):
        compare_prompt("What?", [1, 2, 3], [1, 2, 9, 3], ["--x"])
