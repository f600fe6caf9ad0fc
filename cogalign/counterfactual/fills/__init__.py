"""Fills: what is painted inside the mask. Light names only; `fill_function` reaches the heavy one."""

from cogalign.counterfactual.fills.blur import gaussian_blur, spread, surround_blur
from cogalign.counterfactual.fills.composite import FillFunction, composite
from cogalign.counterfactual.fills.registry import FILLS, fill_function

__all__ = ["FILLS", "FillFunction", "composite", "fill_function", "gaussian_blur", "spread", "surround_blur"]
