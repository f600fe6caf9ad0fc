import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import TopPLogitsWarper

from cogalign.generation.draw import nucleus
from cogalign.generation.sampling import SamplingSettings, end_ids, sample
from cogalign.models.head import allowed_logits
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, encode_prompts
from cogalign.training.heartbeat import PULSE

LENGTH = 14


@pytest.fixture(scope="session")
def prompt(tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]) -> Inputs:
    encoded = encode_prompts(tiny.processor, pictures, questions)
    assert len(set(encoded["attention_mask"].sum(1).tolist())) == 4
    return encoded


@pytest.fixture(scope="session")
def greedy(tiny: LoadedModel, prompt: Inputs) -> torch.Tensor:
    """What transformers writes, [4, LENGTH]."""
    return by_transformers(tiny, prompt)


def by_transformers(loaded: LoadedModel, prompt: Inputs) -> torch.Tensor:
    banned = loaded.family.placeholder_ids(loaded.core, loaded.tokenizer)
    out = loaded.model.generate(**prompt, do_sample=False, max_new_tokens=LENGTH, suppress_tokens=banned)
    return out[:, prompt["input_ids"].shape[1] :]


@pytest.mark.parametrize("group", [1, 3])
def test_greedy_decoding_is_that_of_transformers(
    tiny: LoadedModel, prompt: Inputs, greedy: torch.Tensor, group: int
) -> None:
    rollout = sample(tiny, prompt, SamplingSettings(LENGTH, group, temperature=0.0))
    assert len({tuple(row) for row in greedy.tolist()}) == 4 and len(greedy.unique()) > 10
    assert torch.equal(rollout.ids, greedy.repeat_interleave(group, 0))
    assert rollout.mask.all() and not rollout.finished.any()


def test_completions_end_as_in_transformers_and_are_padded(
    own_tiny: LoadedModel, prompt: Inputs, greedy: torch.Tensor
) -> None:
    # tokens that the model writes are made to end a completion, early in some rows and never in others
    ends = [int(greedy[0, 4]), int(greedy[1, 9])]
    own_tiny.model.generation_config.eos_token_id = [own_tiny.tokenizer.eos_token_id, *ends]
    assert set(end_ids(own_tiny)) == {own_tiny.tokenizer.eos_token_id, *ends}
    rollout = sample(own_tiny, prompt, SamplingSettings(LENGTH, 2, temperature=0.0))
    expected = by_transformers(own_tiny, prompt).repeat_interleave(2, 0)
    assert torch.equal(rollout.ids, expected)
    lengths = []
    for row, ids in enumerate(greedy.repeat_interleave(2, 0).tolist()):
        stops = [place for place, token in enumerate(ids) if token in ends]
        lengths.append(stops[0] + 1 if stops else LENGTH)
        assert bool(rollout.finished[row]) == bool(stops)
    assert min(lengths) < 6 and rollout.mask.sum(1).tolist() == [min(n, rollout.ids.shape[1]) for n in lengths]
    assert (rollout.mask.diff(dim=1) <= 0).all()
    assert (rollout.ids[rollout.mask == 0] == own_tiny.tokenizer.pad_token_id).all()


def test_sampling_stops_when_all_have_ended(own_tiny: LoadedModel, prompt: Inputs, greedy: torch.Tensor) -> None:
    own_tiny.model.generation_config.eos_token_id = greedy[:, 2].tolist()
    rollout = sample(own_tiny, prompt, SamplingSettings(200, temperature=0.0))
    assert rollout.finished.all() and rollout.ids.shape[1] == int(rollout.mask.sum(1).max()) <= 3


def test_an_end_on_the_last_place_counts_as_finished(
    own_tiny: LoadedModel, prompt: Inputs, greedy: torch.Tensor
) -> None:
    own_tiny.model.generation_config.eos_token_id = int(greedy[0, 0])
    rollout = sample(own_tiny, prompt, SamplingSettings(1, temperature=0.0))
    assert rollout.ids.shape == (4, 1) and rollout.mask.all()
    assert rollout.finished.tolist() == (greedy[:, 0] == greedy[0, 0]).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_placeholders_are_never_drawn_however_likely(own_tiny: LoadedModel, prompt: Inputs, temperature: float) -> None:
    banned = own_tiny.family.placeholder_ids(own_tiny.core, own_tiny.tokenizer)
    head = own_tiny.core.lm_head
    head.register_forward_hook(lambda _m, _i, logits: logits.index_fill(-1, torch.tensor(banned), 1e4))
    generator = torch.Generator().manual_seed(0)
    rollout = sample(own_tiny, prompt, SamplingSettings(10, 4, temperature, top_p=0.9), generator)
    assert not torch.isin(rollout.ids, torch.tensor(banned)).any()
    assert len(rollout.ids.unique()) > 3


def test_rows_without_text_are_never_drawn_however_likely(own_tiny: LoadedModel, prompt: Inputs) -> None:
    rows = len(own_tiny.tokenizer)
    own_tiny.core.resize_token_embeddings(rows + 3)
    own_tiny.core.lm_head.register_forward_hook(
        lambda _m, _i, out: out.index_fill(-1, torch.arange(rows, rows + 3), 1e4)
    )
    for temperature in (0.0, 1.0):
        rollout = sample(own_tiny, prompt, SamplingSettings(6, 2, temperature), torch.Generator().manual_seed(0))
        assert int(rollout.ids.max()) < rows and len(rollout.ids.unique()) > 1


def test_the_same_seed_draws_the_same_tokens(tiny: LoadedModel, prompt: Inputs) -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # torch's own generator has no part in it
        how = SamplingSettings(8, 3, temperature=1.0)
        draws.append(sample(tiny, prompt, how, torch.Generator().manual_seed(seed)).ids)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert len({tuple(row) for row in draws[0].tolist()}) == 12


def test_tokens_are_drawn_with_the_models_likelihoods(tiny: LoadedModel, prompt: Inputs) -> None:
    temperature, draws = 0.5, 3000
    one = {name: value[:1] for name, value in prompt.items()}
    one["pixel_values"] = prompt["pixel_values"][: int(prompt["image_grid_thw"][0].prod())]
    with torch.no_grad():
        logits = tiny.model(**one).logits[0, -1]
    banned = tiny.family.placeholder_ids(tiny.core, tiny.tokenizer)
    expected = (allowed_logits(logits, torch.tensor(banned)) / temperature).softmax(-1)
    how = SamplingSettings(1, draws, temperature)
    tokens = sample(tiny, one, how, torch.Generator().manual_seed(3)).ids[:, 0]
    found = torch.bincount(tokens, minlength=len(expected)) / draws
    assert expected.max() > 0.02
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / draws).sqrt() + 1 / draws).all()


def test_every_token_is_a_sign_of_life(own_tiny: LoadedModel, prompt: Inputs) -> None:
    beats: set[float] = set()
    head = own_tiny.family.head(own_tiny.core)
    head.register_forward_hook(lambda *_: beats.add(PULSE.when))
    rollout = sample(own_tiny, prompt, SamplingSettings(LENGTH), torch.Generator().manual_seed(0))
    assert len(beats) == rollout.ids.shape[1] == LENGTH


def test_the_models_mode_and_gradients_are_left_as_they_were(own_tiny: LoadedModel, prompt: Inputs) -> None:
    own_tiny.model.train()
    rollout = sample(own_tiny, prompt, SamplingSettings(2, 2))
    assert own_tiny.model.training and not rollout.ids.requires_grad


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 60),
    spread=st.floats(0.1, 6.0),
    top_p=st.floats(0.05, 0.999),
)
def test_the_nucleus_is_that_of_transformers(seed: int, size: int, spread: float, top_p: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (3, size))).double()
    ordered = logits.sort(-1, descending=True).values.softmax(-1).cumsum(-1)
    assume(((ordered - top_p).abs() > 1e-9).all())
    assert torch.equal(nucleus(logits, top_p), TopPLogitsWarper(top_p)(None, logits))


def test_the_nucleus_always_holds_the_likeliest_token_and_all_of_them_at_one() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0], [2.0, 2.0, -1.0]])
    assert nucleus(logits, 1.0) is logits
    assert nucleus(logits, 1e-6).isfinite().tolist()[0] == [False, True, False]
    assert nucleus(logits, 1e-6).isfinite().any(-1).all()
