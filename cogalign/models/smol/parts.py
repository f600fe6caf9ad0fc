"""The parts of smol before they are joined: a language model with its tokenizer, and a vision tower."""

from __future__ import annotations

from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogalign.models import lite0
from cogalign.models.smol import packages
from cogalign.models.smol.words import split_digits

_NOT_OF_THE_MODEL = ("quantization_config", "dtype", "torch_dtype", "architectures", "_name_or_path",
                     "_model_name_or_path", "transformers_version")  # fmt: skip
"""Entries of the configuration that tell how the weights were read."""


@dataclass(frozen=True)
class Parts:
    """What is joined, all in float32."""

    tokenizer: Any
    text_config: dict[str, Any]
    """Of a `LlamaModel`; `vocab_size` is the number of rows of the embedding."""
    text: dict[str, Tensor]
    """Weights of a `LlamaModel` under its own names."""
    architecture: str
    """timm's name of the vision tower."""
    vision: dict[str, Tensor]
    """Its weights under timm's names, without a classifier."""
    width: int
    """Channels of its last feature map."""
    side: int
    """Height and width of an image in pixels."""
    stride: int
    """Height and width of a visual token in pixels."""

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of an image."""
        return (self.side // self.stride) ** 2


def packaged_parts(text: packages.Found, vision: packages.Found) -> Parts:
    """The pretrained parts: SmolLM2 from a GGUF file, EfficientNet-Lite0 from PyTorch's.

    Args:
        text: the package with the language model.
        vision: the package with the vision tower.

    Raises:
        ValueError: `gguf`, which reads the file, is not installed.
    """
    tokenizer, config, weights = read_gguf(text.weights)
    return Parts(
        tokenizer, config, weights, lite0.TIMM_NAME, read_lite0(vision.weights), width=1280, side=224, stride=32
    )


def read_lite0(path: Path) -> dict[str, Tensor]:
    """Weights of EfficientNet-Lite0 under timm's names, without the classifier."""
    named = lite0.lite0_state_dict(path)
    return {name: value for name, value in named.items() if not name.startswith("classifier.")}


def read_gguf(path: Path) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Tokenizer, configuration and weights (float32, dequantised) of SmolLM2 in a GGUF file.

    Raises:
        ValueError: `gguf` is not installed.
    """
    if find_spec("gguf") is None:
        raise ValueError(f"{path.name} is read by the package gguf, which is not installed: {packages.HOW}, "
                         "or pip install gguf")  # fmt: skip
    from transformers import AutoTokenizer, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    with redirect_stderr(StringIO()):  # a progress bar that cannot be switched off
        tokenizer = split_digits(AutoTokenizer.from_pretrained(**where))
        model = LlamaForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_THE_MODEL}
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # the file has it in 32 bits
    named = model.model.state_dict()
    return tokenizer, config, {name: value.clone() for name, value in named.items()}
