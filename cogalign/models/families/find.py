"""The family of a model."""

from __future__ import annotations

from typing import Any

from cogalign.models.families.base import Family
from cogalign.models.families.fast_vlm import FastVlm
from cogalign.models.families.llava import LlavaOneVision
from cogalign.models.families.qwen_vl import QwenVL
from cogalign.models.families.smolvlm import SmolVLM

FAMILIES: tuple[type[Family], ...] = (QwenVL, SmolVLM, LlavaOneVision, FastVlm)
"""All that have a class of their own."""


def family_of(model: Any) -> Family:
    """The family of a transformers model, by `config.model_type`; `Family` itself for those that are not known."""
    model_type = getattr(model.config, "model_type", "")
    return next((family() for family in FAMILIES if model_type in family.model_types), Family())
