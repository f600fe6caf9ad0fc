"""The projector's start: visual tokens spread about the mean of the embeddings of text, more widely."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu

from cogalign.models.smol.projector import WIDER, projector_start


def project(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = gelu(x @ weights["linear_1.weight"].T + weights["linear_1.bias"])
    return hidden @ weights["linear_2.weight"].T + weights["linear_2.bias"]


def data(seed: int, scale: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = shift + scale * torch.randn(200, 12, generator=generator) * torch.rand(12, generator=generator)
    return features, 0.3 + 0.1 * torch.randn(50, 8, generator=generator)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from((0.01, 1.0, 300.0)), st.sampled_from((0.0, 5.0)))
def test_outputs_have_the_mean_and_a_multiple_of_the_spread_of_the_embeddings_whatever_the_features(
    seed: int, scale: float, shift: float
) -> None:
    features, embeddings = data(seed, scale, shift)
    out = project(projector_start(features, embeddings, seed), features)
    torch.testing.assert_close(out.mean(0), embeddings.mean(0), rtol=0, atol=1e-3 * WIDER)
    variance = (out - out.mean(0)).square().mean() / (embeddings - embeddings.mean(0)).square().mean()
    assert variance.sqrt().item() == pytest.approx(WIDER, rel=0.005)


def test_the_seed_decides_the_weights() -> None:
    features, embeddings = data(0)
    first, again, other = (projector_start(features, embeddings, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["linear_1.weight"], other["linear_1.weight"])


def test_a_channel_that_is_dead_here_is_not_blown_up_elsewhere() -> None:
    features, embeddings = data(4)
    features[:, 3] = 0.0
    weights = projector_start(features, embeddings)
    others = torch.cat([weights["linear_1.weight"][:, :3], weights["linear_1.weight"][:, 4:]], 1)
    assert weights["linear_1.weight"][:, 3].norm() <= 2 * others.norm(dim=0).max()


@pytest.mark.parametrize("features", [torch.ones(5, 4), torch.zeros(1, 4), torch.full((5, 4), torch.nan)],
                         ids=["alike", "one row", "not finite"])  # fmt: skip
def test_refuses_features_that_tell_nothing(features: Tensor) -> None:
    with pytest.raises(ValueError, match="wanted finite ones that differ; give other images"):
        projector_start(features, torch.randn(6, 4))
