"""Model families, one class each: where the parts of a model are, positions, and how images belong to prompts."""

from cogalign.models.families.base import Family
from cogalign.models.families.fast_vlm import FastVlm
from cogalign.models.families.find import family_of
from cogalign.models.families.llava import LlavaOneVision
from cogalign.models.families.qwen_vl import QwenVL
from cogalign.models.families.smolvlm import SmolVLM

__all__ = ["Family", "FastVlm", "LlavaOneVision", "QwenVL", "SmolVLM", "family_of"]
