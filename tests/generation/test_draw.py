"""Tokens are drawn from the distribution of transformers' processors, and never one that is ruled out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cogalign.generation.draw import draw, only_likeliest, pick


def logits_of(seed: int, rows: int, size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (rows, size))).float()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 60), top_k=st.integers(1, 70))
def test_the_likeliest_are_those_of_transformers(seed: int, size: int, top_k: int) -> None:
    logits = logits_of(seed, 3, size)
    assert torch.equal(only_likeliest(logits, top_k), TopKLogitsWarper(min(top_k, size))(None, logits))
    assert only_likeliest(logits, 0) is logits


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.6, 0.8, 0), (1.4, 1.0, 5), (0.9, 0.7, 9)]
)
def test_draws_follow_transformers_processors(temperature: float, top_p: float, top_k: int) -> None:
    logits, draws = logits_of(1, 1, 23), 20_000
    processors = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    expected = processors(None, logits).softmax(-1)[0]
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = draw(logits.expand(draws, -1), temperature, top_p, top_k, uniform)
    found = torch.bincount(tokens, minlength=23) / draws
    assert (found[expected == 0] == 0).all() and (expected == 0).any() == (top_k > 0 or top_p < 1)
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / draws).sqrt() + 1 / draws).all()


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 1e-7, 0.1, 1.0]), min_size=1, max_size=90).filter(any),
    uniform=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53, 1 - 2**-24])),
)
def test_the_token_at_a_place_of_the_distribution_is_found_and_is_possible(
    weights: list[float], uniform: float
) -> None:
    chances = torch.tensor([weights])
    token = int(pick(chances, torch.tensor([uniform], dtype=torch.float64)))
    assert chances[0, token] > 0
    cumulative = np.cumsum(chances[0].double().numpy())
    place, slack = uniform * cumulative[-1], 1e-6 * cumulative[-1]
    assert cumulative[token] >= place - slack and (cumulative[token - 1] if token else 0.0) <= place + slack


def test_a_row_does_not_depend_on_the_others() -> None:
    logits, uniform = logits_of(2, 6, 40), torch.rand(6, dtype=torch.float64)
    together = draw(logits, 1.0, 0.9, 0, uniform)
    alone = [int(draw(logits[k : k + 1], 1.0, 0.9, 0, uniform[k : k + 1])) for k in range(6)]
    assert together.tolist() == alone
