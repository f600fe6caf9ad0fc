"""Where the projector starts: nothing is pretrained there, so it is fitted to what goes in and what must come out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu

LEAST_SPREAD = 1.0
"""Least standard deviation by which a channel is divided, in mean ones: what phantoms hardly excite photographs may,
and must not be blown up then."""
WIDER = 20.0
"""How much wider the outputs are spread than the embeddings of text: what the layers add to a token soon drowns one that is
spread as narrowly, and training must then work against it (measured: docs/smol.md)."""


def projector_start(features: Tensor, embeddings: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Weights of `linear_2(gelu(linear_1(x)))` whose outputs are spread about the mean of the language model's embeddings.

    `linear_1` takes each channel less its mean over its standard deviation (over the mean one, where that is larger) and
    mixes them at random; `linear_2` mixes at random, then scale and bias give the outputs the mean vector of the embeddings
    and `WIDER` times the spread about it. (In the spirit of Krähenbühl et al. 2016, arXiv:1511.06856.)

    Args:
        features: [N, C] of the vision tower, a row a visual token.
        embeddings: [V, H] of the tokens that have a text.
        seed: of the random mixes.

    Returns:
        `linear_1.weight` [H, C], `linear_1.bias` [H], `linear_2.weight` [H, H], `linear_2.bias` [H], float32.

    Raises:
        ValueError: there are fewer than two rows of features, they are all alike, or not finite.
    """
    x, e = features.double(), embeddings.double()
    spread = x.std(0) if len(x) > 1 else x.new_zeros(x.shape[1])
    if not bool(torch.isfinite(x).all()) or not float(spread.mean()) > 0:
        raise ValueError(f"features of {len(x)} visual tokens: wanted finite ones that differ; give other images")
    spread = spread.clamp_min(LEAST_SPREAD * float(spread.mean()))
    generator = torch.Generator().manual_seed(seed)
    first = _random(e.shape[1], x.shape[1], generator) / spread
    bias = -first @ x.mean(0)
    second = _random(e.shape[1], e.shape[1], generator)
    out = gelu(x @ first.T + bias) @ second.T
    centre = out.mean(0)
    scale = WIDER * _spread(e - e.mean(0)) / _spread(out - centre)
    weights = {
        "linear_1.weight": first,
        "linear_1.bias": bias,
        "linear_2.weight": second * scale,
        "linear_2.bias": e.mean(0) - centre * scale,
    }
    return {name: value.float() for name, value in weights.items()}


def _random(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns], normal: outputs of standardised inputs have variance 1."""
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / math.sqrt(columns)


def _spread(values: Tensor) -> Tensor:
    """Root of the mean square."""
    return values.square().mean().sqrt()
