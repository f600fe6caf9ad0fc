"""Tiny random twins of model families: the real architecture and processor of each, a hundred thousand parameters.

All share the tokenizer of the packaged tiny model, to which the special tokens of the family are added. Weights are
scaled up until positions, masks and pixels show in the likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from cogalign.models.families import family_of
from cogalign.models.load import LoadedModel
from cogalign.models.tiny import CHAT_TEMPLATE, MERGE, PATCH, packaged_base, random_model

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SIDE = 32
"""Height and width of a crop, in pixels, in the families that cut images into crops."""
WINDOW = 12
"""Sliding window of the Gemma 3 twin, in tokens: shorter than an image and its question."""


def _tokenizer(added: Sequence[str] = (), named: dict[str, str] | None = None) -> Any:
    """The packaged tokenizer with the tokens `added` and `named` (by the attribute under which it gives them)."""
    from transformers import AutoTokenizer

    own = {"extra_special_tokens": named} if named else {}
    tokenizer = AutoTokenizer.from_pretrained(packaged_base(), **own)
    tokens = [*added, *(named or {}).values()]
    if tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    tokenizer.padding_side = "left"
    return tokenizer


def _chat_template(image: str) -> str:
    """The packaged chat template with the placeholder of the family."""
    return CHAT_TEMPLATE.replace(QWEN_IMAGE, image)


def _text(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """Settings of a small language model with grouped-query attention."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.03,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        **changes,
    }


def _siglip(image_size: int) -> dict[str, Any]:
    """Settings of a small SigLIP encoder without its pooling head."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": PATCH,
        "vision_use_head": False,
    }


def _qwen_images() -> Any:
    """Images keep their size up to 80 x 80 pixels (25 visual tokens), so that their token counts differ."""
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": 80 * 80},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: interleaved m-rope, deepstack features."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = _tokenizer()
    processor = Qwen3VLProcessor(
        image_processor=_qwen_images(),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2),
        chat_template=CHAT_TEMPLATE,
    )
    return random_model(tokenizer), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL: m-rope in sections, window attention in the vision encoder."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 2 * PATCH * MERGE,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=_qwen_images(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2),
        chat_template=CHAT_TEMPLATE,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _smolvlm() -> tuple[Any, Any]:
    """SmolVLM: images cut into crops of 32 x 32 pixels (4 visual tokens each), and the whole image as one more."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )
    from transformers.models.smolvlm import processing_smolvlm

    if processing_smolvlm.num2words is None:
        # The processor refuses to be made without this package, which it needs only to write the number of frames
        # of a video into a prompt; no test has a video.
        processing_smolvlm.num2words = str
    cells = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = _tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", *cells])
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**sizes),
        image_seq_len=(SIDE // PATCH // 2) ** 2,
        chat_template=_chat_template("<image>"),
    )
    return SmolVLMForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision: a lone image is cut into crops, images of a prompt with several are not."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = _tokenizer(["<image>", "<video>"])
    pinpoints = [[SIDE * rows, SIDE * columns] for rows in (1, 2) for columns in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config=_siglip(SIDE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=True,
    )
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_chat_template("<image>"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _fast_vlm() -> tuple[Any, Any]:
    """FastVLM as smol is put together: a tower of timm with batch norm (4 visual tokens an image), and Llama."""
    from transformers import (
        CLIPImageProcessor,
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlavaProcessor,
        TimmWrapperConfig,
    )

    tokenizer = _tokenizer(["<image>"])
    config = FastVlmConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=TimmWrapperConfig(
            architecture="test_efficientnet", do_pooling=False, hidden_size=256, num_labels=1
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    size = {"height": 2 * SIDE, "width": 2 * SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        patch_size=SIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
        chat_template=_chat_template("<image>"),
    )
    model = FastVlmForConditionalGeneration(config)
    _normalise(model.model.vision_tower, torch.randn(8, 3, 2 * SIDE, 2 * SIDE))
    return model, processor


@torch.no_grad()
def _normalise(tower: nn.Module, pixels: Tensor) -> None:
    """Take the statistics of the batch norms from `pixels` [N, 3, H, W]: else nothing of an image gets through."""
    norms = [part for part in tower.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.momentum = 1.0
    tower.train()
    tower(pixels)
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
    tower.eval()


def _gemma3() -> tuple[Any, Any]:
    """Gemma 3: layers with a sliding window, attention both ways within an image."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(named=named)
    config = Gemma3Config(
        text_config=_text(
            tokenizer,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        vision_config=_siglip(2 * SIDE),
        mm_tokens_per_image=16,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 2 * SIDE, "width": 2 * SIDE}),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=_chat_template("<start_of_image>"),
    )
    model = Gemma3ForConditionalGeneration(config)
    # transformers starts it at zero, so that images would not show
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    return model, processor


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3_vl": _qwen3_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "smolvlm": _smolvlm,
    "llava_onevision": _llava_onevision,
    "fast_vlm": _fast_vlm,
    "gemma3": _gemma3,
}
ADAPTED = ("qwen3_vl", "qwen2_5_vl", "smolvlm", "llava_onevision", "fast_vlm")
"""Families with an adapter of their own; Gemma 3 stands for those without."""
NAMES = tuple(BUILDERS)


@torch.no_grad()
def _sharpen(model: Any) -> None:
    """Large weights: attention that is not even, likelihoods that differ."""
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and "lm_head" not in name:
            part.weight.mul_(6.0)
        elif name.endswith(("self_attn.q_norm", "self_attn.k_norm")):
            part.weight.add_(1.0)
    family = family_of(model)
    final = model.get_submodule(family.language_model_path(model)).norm
    final.weight.add_(7.0)


def build(name: str, seed: int = 0) -> LoadedModel:
    """The twin `name` (one of `NAMES`) with weights from `seed`: float32, on the CPU, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = BUILDERS[name]()
        model = model.to(torch.float32).eval()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    _sharpen(model)
    return LoadedModel(model, processor, family_of(model))


def encode(
    loaded: LoadedModel, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], padding_side: str = "left"
) -> dict[str, Tensor]:
    """Tensors of prompts with one or more images each, the images before the question."""
    texts = []
    for pictures, question in zip(images, questions, strict=True):
        content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        texts.append(loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    batch = loaded.processor(
        text=texts, images=[list(row) for row in images], padding=True, padding_side=padding_side, return_tensors="pt"
    )
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


def image_tokens(loaded: LoadedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Number of visual tokens [P] of each prompt."""
    return (inputs["input_ids"] == loaded.core.config.image_token_id).sum(1)
