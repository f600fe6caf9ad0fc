"""The parts of a random twin of smol, for tests: the same classes and the same way together, small in everything."""

from __future__ import annotations

import torch

from cogalign.models.smol.parts import Parts
from cogalign.models.tiny import packaged_base

ARCHITECTURE = "test_efficientnet"
"""timm's own small network for tests: of EfficientNet's blocks, with batch norm."""
WIDTH, SIDE, STRIDE = 256, 64, 32
"""Four visual tokens of 256 channels."""


def random_parts(seed: int = 0) -> Parts:
    """Random weights from `seed`, and the tokenizer of the packaged tiny model."""
    import timm
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(packaged_base())
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.03,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language = LlamaModel(LlamaConfig(**text))
        tower = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)
    return Parts(tokenizer, text, language.state_dict(), ARCHITECTURE, tower.state_dict(), WIDTH, SIDE, STRIDE)
