"""Tokenizer, chat template and processor of smol: what stands between text, images and token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlavaProcessor

IMAGE, PAD, TURN, END = "<image>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
"""Placeholder of a visual token; padding (never the end, or labels of the end would be masked with it); marks of a turn."""
_TEXT = (
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}" + _TEXT + "{{- '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}" + _TEXT + "{{- '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""SmolLM2's own turns, with images; `{% generation %}` tells which tokens are the answer's."""


def prepare_tokenizer(tokenizer: Any, longest: int) -> Any:
    """The tokenizer with an image placeholder, the end of a turn as end, a padding token of its own, left padding.

    Args:
        tokenizer: fast tokenizer that has `PAD`, `TURN` and `END`; changed in place.
        longest: longest text in tokens.

    Raises:
        ValueError: a token is missing.
    """
    missing = [token for token in (PAD, TURN, END) if token not in tokenizer.get_vocab()]
    if missing:
        raise ValueError(f"tokenizer: no token {', '.join(missing)}; wanted one with SmolLM2's turns")
    if IMAGE not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token = PAD, END, TURN
    tokenizer.padding_side, tokenizer.model_max_length = "left", longest
    tokenizer.init_kwargs["padding_side"] = "left"  # or it would not be saved
    tokenizer.chat_template = CHAT_TEMPLATE
    for name in ("is_local", "local_files_only", "gguf_file"):  # how it was opened is no part of it
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def split_digits(tokenizer: Any) -> Any:
    """The tokenizer with digits apart, as SmolLM2's own (GGUF's `tokenizer.ggml.pre` smollm): transformers forgets it.

    Args:
        tokenizer: fast byte-level tokenizer; changed in place.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def build_processor(tokenizer: Any, side: int, stride: int) -> LlavaProcessor:
    """The processor: every image is resized to a square of `side` pixels, which gives (side / stride)² visual tokens.

    Raises:
        ValueError: `stride` does not divide `side`.
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    if side % stride:
        raise ValueError(f"side {side}: wanted a multiple of {stride}, the pixels of a visual token")
    square = {"height": side, "width": side}
    images = CLIPImageProcessor(
        do_resize=True, size=square, do_center_crop=False, crop_size=square, do_rescale=True, do_normalize=True,
        image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=stride,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
