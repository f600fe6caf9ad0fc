"""In every family sampling writes what transformers' `generate` writes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from cogalign.generation.drafts import Drafts
from cogalign.generation.plain import cut
from cogalign.generation.sampling import SamplingSettings, sample
from cogalign.models.head import allowed_logits
from cogalign.models.load import LoadedModel
from tests.families import twins
from tests.families.whole import QUESTIONS, Rows, written

LENGTH = 10


@pytest.fixture
def own_gemma(gemma: LoadedModel) -> LoadedModel:
    """A copy that a test may change."""
    return LoadedModel(copy.deepcopy(gemma.model), gemma.processor, gemma.family)


@pytest.mark.parametrize(("group", "side"), [(1, "right"), (3, "left")])
def test_greedy_decoding_is_that_of_transformers(twin: LoadedModel, image_rows: Rows, group: int, side: str) -> None:
    prompt = twins.encode(twin, image_rows, QUESTIONS, side)
    alone = [twins.encode(twin, [images], [question]) for images, question in zip(image_rows, QUESTIONS, strict=True)]
    expected = written(twin, alone, LENGTH)
    assert len({tuple(row) for row in expected.tolist()}) == len(QUESTIONS) and len(expected.unique()) > 8
    rollout = sample(twin, prompt, SamplingSettings(LENGTH, group, temperature=0.0))
    assert torch.equal(rollout.ids, expected.repeat_interleave(group, 0)[:, : rollout.ids.shape[1]])


def test_with_drafts_it_is_the_same(twin: LoadedModel, image_rows: Rows) -> None:
    prompt = twins.encode(twin, image_rows, QUESTIONS, "left")
    how = SamplingSettings(LENGTH, 2)
    plain = sample(twin, prompt, how, torch.Generator().manual_seed(2))
    known = Drafts([[*ids[:4], 5, *ids[5:]] for ids in plain.ids[::3].tolist()])
    assert torch.equal(sample(twin, prompt, how, torch.Generator().manual_seed(2), drafts=known).ids, plain.ids)


def likelihoods(loaded: LoadedModel, prompt: dict[str, Tensor], temperature: float) -> Tensor:
    """Of the first token [V]."""
    banned = torch.tensor(loaded.family.placeholder_ids(loaded.core, loaded.tokenizer))
    with torch.no_grad():
        return (allowed_logits(loaded.model(**prompt).logits[0, -1], banned) / temperature).softmax(-1)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (30, 1.0), (0, 0.5)])
def test_plain_sampling_goes_by_its_own_settings_alone(
    own_gemma: LoadedModel, image_rows: Rows, top_k: int, top_p: float
) -> None:
    """Neither by the model's `generation_config` nor by transformers' defaults (`top_k` 50)."""
    settings = own_gemma.model.generation_config
    settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty = 0.1, 3, 0.2, 5.0
    prompt = twins.encode(own_gemma, image_rows[:1], QUESTIONS[:1])
    chances = likelihoods(own_gemma, prompt, 3.0)
    order = chances.argsort(descending=True)
    draws = 300
    how = SamplingSettings(1, draws, 3.0, top_p, top_k)
    tokens = sample(own_gemma, prompt, how, torch.Generator().manual_seed(0)).ids[:, 0]
    places = order.argsort()[tokens]
    kept = top_k or int((chances[order].cumsum(0) < top_p).sum()) + 1
    assert places.max() < kept
    half = max(1, kept // 2)
    share = float(chances[order[:half]].sum() / chances[order[:kept]].sum())
    assert 0.02 < share < 0.98
    assert abs(float((places < half).float().mean()) - share) < 4 * (share * (1 - share) / draws) ** 0.5
    assert settings is own_gemma.model.generation_config and settings.top_k == 3


def test_plain_sampling_repeats_with_its_seed_and_leaves_torchs_own_alone(gemma: LoadedModel, image_rows: Rows) -> None:
    prompt = twins.encode(gemma, image_rows[:2], QUESTIONS[:2])
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    draws = [sample(gemma, prompt, SamplingSettings(5, 3), torch.Generator().manual_seed(s)).ids for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert len({tuple(row) for row in draws[0].tolist()}) == 6
    assert torch.equal(torch.rand(4), expected)


def test_plain_sampling_never_draws_placeholders(own_gemma: LoadedModel, image_rows: Rows) -> None:
    banned = own_gemma.family.placeholder_ids(own_gemma.core, own_gemma.tokenizer)
    assert banned
    own_gemma.core.lm_head.register_forward_hook(lambda _m, _i, out: out.index_fill(-1, torch.tensor(banned), 1e4))
    prompt = twins.encode(own_gemma, image_rows[:2], QUESTIONS[:2])
    for temperature in (0.0, 1.0):
        ids = sample(own_gemma, prompt, SamplingSettings(6, 2, temperature)).ids
        assert not torch.isin(ids, torch.tensor(banned)).any()


def test_completions_end_with_their_first_end() -> None:
    ids, mask, finished = cut(torch.tensor([[5, 9, 8, 9], [5, 6, 7, 4], [8, 0, 0, 0]]), [8, 9], 0)
    assert ids.tolist() == [[5, 9, 0, 0], [5, 6, 7, 4], [8, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert finished.tolist() == [True, False, True]
