"""A tiny, randomly initialised Qwen3-VL with its tokenizer and processor, built offline.

The model has every part of the real architecture that matters for an engine benchmark (deepstack
features, interleaved m-rope, a 2x2 patch merger, grouped-query attention, tied embeddings), at
about 5 million parameters with the vision tower about a third of them. All weights come from one
seed, so that two processes build the same model.

The default is the "image-heavy" setting: 256 image tokens in a prompt of about 24 text tokens.

`save` writes both in hub layout, for `cogalign.models.load`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
QUESTIONS = [
    "Stomach, white light. Based on the image, what is the diagnosis?",
    "Based on the image, what is the diagnosis? The location is Stomach, white light.",
    "Sessile elevated lesion, regular vessels. Based on the image, what is the diagnosis?",
    "Based on the image, what is the surface texture?",
]
CORPUS = [
    *QUESTIONS,
    "1. Location & Imaging Environment\nStomach, white light.",
    "2. Mucosal Morphology & Focal Lesions\nSessile elevated lesion",
    "3. Surface Texture & Microvascular Architecture\nregular vessels",
    "The diagnosis result is Polyps.",
    "system user assistant",
]
CHAT_TEMPLATE = (
    "{%- for m in messages -%}<|im_start|>{{m.role}}\n"
    "{%- if m.content is string -%}{{m.content}}{%- else -%}{%- for c in m.content -%}"
    "{%- if c.type=='image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif c.type=='text' -%}{{c.text}}{%- endif -%}{%- endfor -%}{%- endif -%}<|im_end|>\n"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
PATCH, MERGE = 16, 2


@dataclass
class TinyConfig:
    """Sizes of the tiny model; `image_tokens` must be a perfect square."""

    image_tokens: int = 256
    vocab: int = 2048
    hidden: int = 192
    intermediate: int = 576
    layers: int = 7
    heads: int = 6
    kv_heads: int = 3
    vision_hidden: int = 128
    vision_intermediate: int = 352
    vision_depth: int = 4
    vision_heads: int = 4
    seed: int = 0

    @property
    def image_side(self) -> int:
        """Side in pixels of the square image that gives `image_tokens` tokens."""
        side = math.isqrt(self.image_tokens)
        if side * side != self.image_tokens:
            raise ValueError(f"image_tokens={self.image_tokens} is not a perfect square")
        return side * PATCH * MERGE


def build_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly `vocab` tokens; the rest are fillers `<w0>`, `<w1>`, ..."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS * 4, trainer)
    tok = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        padding_side="left",  # TRL's GRPOTrainer breaks (m-rope shape mismatch) on prompts of unequal length without it
    )
    missing = vocab - len(tok)
    if missing < 0:
        raise ValueError(f"vocab={vocab} is below the {len(tok)} tokens of the base tokenizer")
    tok.add_tokens([f"<w{i}>" for i in range(missing)])
    for name in ("image", "video"):
        setattr(tok, f"{name}_token", f"<|{name}_pad|>")
        setattr(tok, f"{name}_token_id", tok.convert_tokens_to_ids(f"<|{name}_pad|>"))
    tok.vision_start_token, tok.vision_end_token = "<|vision_start|>", "<|vision_end|>"
    return tok


def build_processor(cfg: TinyConfig) -> Qwen3VLProcessor:
    """The processor; it resizes every image to exactly `cfg.image_tokens` tokens."""
    pixels = cfg.image_side**2
    sizes = dict(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2)
    image = Qwen2VLImageProcessor(
        **sizes,
        min_pixels=pixels,
        max_pixels=pixels,
        size=dict(shortest_edge=pixels, longest_edge=pixels),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Qwen3VLProcessor(
        image_processor=image,
        tokenizer=build_tokenizer(cfg.vocab),
        video_processor=Qwen3VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(cfg: TinyConfig) -> Qwen3VLConfig:
    """The model's configuration in transformers' terms."""
    ids = build_tokenizer(cfg.vocab).convert_tokens_to_ids
    head_dim = cfg.hidden // cfg.heads
    half = head_dim // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]
    return Qwen3VLConfig(
        text_config=dict(
            vocab_size=cfg.vocab,
            hidden_size=cfg.hidden,
            intermediate_size=cfg.intermediate,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads,
            head_dim=head_dim,
            max_position_embeddings=4096,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=section, mrope_interleaved=True),
            tie_word_embeddings=True,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
            bos_token_id=None,
        ),
        vision_config=dict(
            depth=cfg.vision_depth,
            hidden_size=cfg.vision_hidden,
            out_hidden_size=cfg.hidden,
            intermediate_size=cfg.vision_intermediate,
            num_heads=cfg.vision_heads,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            temporal_patch_size=2,
            num_position_embeddings=256,
            deepstack_visual_indexes=[cfg.vision_depth // 2],
        ),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build(cfg: TinyConfig) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """The model (float32, seeded) and its processor."""
    processor = build_processor(cfg)
    ids = processor.tokenizer.convert_tokens_to_ids
    torch.manual_seed(cfg.seed)
    model = Qwen3VLForConditionalGeneration(build_config(cfg)).to(torch.float32)
    model.generation_config.eos_token_id = ids("<|im_end|>")
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    return model, processor


def synthetic_image(cfg: TinyConfig, index: int) -> Image.Image:
    """A smooth colour gradient with a few discs, different for each index and quick to decode."""
    rng = np.random.default_rng([cfg.seed, index])
    n = cfg.image_side
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    planes = [rng.uniform(40, 160) + rng.uniform(-60, 60) * x + rng.uniform(-60, 60) * y for _ in range(3)]
    img = np.stack(planes, -1)
    for _ in range(4):
        cx, cy, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.04, 0.15)
        img[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, 3)
    return Image.fromarray(img.clip(0, 255).astype(np.uint8))


def save(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, folder: Path) -> Path:
    """Write the model and its processor to `folder` in hub layout."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
