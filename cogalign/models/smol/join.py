"""Join the parts into one model of transformers' own classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cogalign.models.smol.parts import Parts
from cogalign.models.smol.projector import projector_start
from cogalign.models.smol.words import IMAGE, build_processor, prepare_tokenizer

if TYPE_CHECKING:
    from PIL import Image
    from transformers import FastVlmForConditionalGeneration

ROWS = 64
"""The embedding has a multiple of so many rows: matrix products on GPUs are faster."""


def join(parts: Parts, images: Sequence[Image.Image], seed: int = 0) -> tuple[FastVlmForConditionalGeneration, Any]:
    """The model, in float32 and eval mode, and its processor.

    Args:
        parts: its tokenizer is changed in place.
        images: what the projector is fitted to.
        seed: of the projector's random mixes.

    Raises:
        ValueError: a tensor is missing, left over or of another shape, or the images are no good.
    """
    processor = build_processor(
        prepare_tokenizer(parts.tokenizer, parts.text_config["max_position_embeddings"]), parts.side, parts.stride
    )
    rows = parts.text["embed_tokens.weight"]
    model = _empty(parts, processor.tokenizer, -(-max(len(rows), len(processor.tokenizer)) // ROWS) * ROWS)
    text = {**parts.text, "embed_tokens.weight": more_rows(rows, model.config.text_config.vocab_size)}
    _fill(model.model.vision_tower.timm_model, parts.vision, "vision tower")
    _fill(model.model.language_model, text, "language model")
    model.tie_weights()
    features = visual_features(model, processor, images)
    _fill(model.model.multi_modal_projector, projector_start(features, rows, seed), "projector")
    return model.eval(), processor


def more_rows(embeddings: Tensor, count: int) -> Tensor:
    """`embeddings` [V, H] with rows of their mean after them, [count, H]: what new tokens start from."""
    mean = embeddings.double().mean(0).to(embeddings.dtype)
    return torch.cat([embeddings, mean.expand(count - len(embeddings), -1)])


def _empty(parts: Parts, tokenizer: Any, rows: int) -> FastVlmForConditionalGeneration:
    """The model as its configuration makes it."""
    from transformers import (
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        GenerationConfig,
        LlamaConfig,
        TimmWrapperConfig,
    )

    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
           "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    config = FastVlmConfig(
        vision_config=TimmWrapperConfig(
            architecture=parts.architecture, do_pooling=False, hidden_size=parts.width, num_labels=1
        ),
        text_config=LlamaConfig(**{**parts.text_config, **ids, "vocab_size": rows, "tie_word_embeddings": True}),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=parts.visual_tokens,
        tie_word_embeddings=True,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        model = FastVlmForConditionalGeneration(config).float().eval()
    model.generation_config = GenerationConfig(**ids)
    return model


def _fill(module: Any, weights: dict[str, Tensor], what: str) -> None:
    """Copy weights in; every tensor of the module gets one, none is left over."""
    wanted = module.state_dict()
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(f"{what}: no weights for {missing[:3] or 'none'}, no place for {extra[:3] or 'none'}")
    for name, value in weights.items():
        if value.shape != wanted[name].shape:
            raise ValueError(f"{what}: {name} has the shape {list(value.shape)}, wanted {list(wanted[name].shape)}")
    torch.nn.Module.load_state_dict(module, weights, strict=True)


@torch.no_grad()
def visual_features(model: Any, processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """What the vision tower gives for all visual tokens of the images, [N, C].

    On one thread: how many there are would show in the last bits.

    Raises:
        ValueError: there is no image.
    """
    if not images:
        raise ValueError("the projector is fitted to images, found none")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for image in images:
            pixels = processor.image_processor([image.convert("RGB")], return_tensors="pt")["pixel_values"]
            rows.append(model.model.vision_tower(pixels).last_hidden_state.flatten(2)[0].T)
        return torch.cat(rows)
    finally:
        torch.set_num_threads(threads)
