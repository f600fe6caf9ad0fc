"""The prompt computed once for a group gives what the whole sequences give: log-probabilities and gradients."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cogalign.generation.sampling import SamplingSettings, sample
from cogalign.grpo.scoring import completion_logps
from cogalign.models.adapt import Reference, train_all
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, append_completions, encode_prompts, pad_completions

TOLERANCE = 1e-5  # float32: the order of sums differs


@dataclass
class Batch:
    prompt: Inputs
    repeated: Inputs
    ids: Tensor
    mask: Tensor
    group: int


def batch_of(
    loaded: LoadedModel, pictures: list[Image.Image], questions: list[str], group: int, longest: int = 11
) -> Batch:
    """Prompts of unequal length with ragged random completions, and the same with each prompt repeated."""
    generator = torch.Generator().manual_seed(group)
    lengths = [1 + int(torch.randint(longest, (1,), generator=generator)) for _ in range(group * len(questions))]
    lengths[0], lengths[-1] = longest, 1
    rows = [torch.randint(8, 890, (length,), generator=generator).tolist() for length in lengths]
    ids, mask = pad_completions(rows, loaded.tokenizer.pad_token_id)
    again = [[value for value in values for _ in range(group)] for values in (pictures, questions)]
    repeated = encode_prompts(loaded.processor, again[0], again[1])
    return Batch(encode_prompts(loaded.processor, pictures, questions), repeated, ids, mask, group)


def plain_logps(loaded: LoadedModel, model: Any, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """One forward of the whole sequences, no cache: log-probabilities and entropies [N, T]."""
    full, _ = append_completions(batch.repeated, batch.ids, batch.mask)
    length = batch.ids.shape[1]
    logits = model(**full, use_cache=False).logits[:, -length - 1 : -1]
    banned = loaded.family.placeholder_ids(loaded.core, loaded.tokenizer)
    kept = torch.ones(logits.shape[-1], dtype=torch.bool)
    kept[banned] = False
    logp = (logits.masked_fill(~kept, -torch.inf) / temperature).log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=logits[..., kept] / temperature).entropy()
    return logp.gather(2, batch.ids[..., None])[..., 0], entropy


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def scored(loaded: LoadedModel, model: Any, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    owner = torch.arange(len(batch.ids)) // batch.group
    return completion_logps(loaded, model, batch.prompt, batch.ids, batch.mask, owner, temperature)


def gradients(loaded: LoadedModel, logps: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every token by another number."""
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    loaded.model.zero_grad()
    (logps * weights * batch.mask).sum().backward()
    named = loaded.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("group", [1, 4])
def test_shared_prompts_give_the_scores_and_gradients_of_whole_sequences(
    adapted: LoadedModel, pictures: list[Image.Image], questions: list[str], group: int, temperature: float
) -> None:
    batch = batch_of(adapted, pictures[:3], questions[:3], group)
    assert len(set(batch.prompt["attention_mask"].sum(1).tolist())) == 3
    logps, entropy = scored(adapted, adapted.model, batch, temperature)
    expected, expected_entropy = plain_logps(adapted, adapted.model, batch, temperature)
    keep = batch.mask.bool()
    assert logps.shape == batch.ids.shape and not entropy.requires_grad
    assert error(logps[keep], expected[keep]) <= TOLERANCE
    assert error(entropy[keep], expected_entropy[keep]) <= TOLERANCE
    found, wanted = gradients(adapted, logps, batch), gradients(adapted, expected, batch)
    assert found.keys() == wanted.keys() and len(found) == 2 * 4 * 7
    for name, gradient in wanted.items():
        assert gradient.norm() > 0
        assert error(found[name], gradient) <= TOLERANCE, name


def test_gradients_flow_into_the_prompt_too(
    own_tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    """With full weights: the vision encoder is reached through the prompt alone."""
    loaded = train_all(own_tiny, freeze_vision=False, freeze_projector=False)
    batch = batch_of(loaded, pictures[:2], questions[:2], 3, longest=6)
    found = gradients(loaded, scored(loaded, loaded.model, batch, 1.0)[0], batch)
    wanted = gradients(loaded, plain_logps(loaded, loaded.model, batch, 1.0)[0], batch)
    vision = [name for name in wanted if "visual" in name and wanted[name].norm() > 1e-3]
    assert len(vision) > 10
    for name in vision:
        assert error(found[name], wanted[name]) <= 10 * TOLERANCE, name


def test_what_is_padding_changes_no_score(
    adapted: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    batch = batch_of(adapted, pictures[:2], questions[:2], 2)
    keep = batch.mask.bool()
    other = copy.copy(batch)
    other.ids = torch.where(keep, batch.ids, torch.full_like(batch.ids, 77))
    with torch.no_grad():
        a, b = (scored(adapted, adapted.model, each, 1.0)[0] for each in (batch, other))
    assert torch.equal(a[keep], b[keep])


def test_a_completion_of_one_token_is_scored(
    adapted: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    batch = batch_of(adapted, pictures[:2], questions[:2], 2, longest=1)
    assert batch.ids.shape == (4, 1)
    logps, _ = scored(adapted, adapted.model, batch, 1.0)
    assert error(logps, plain_logps(adapted, adapted.model, batch, 1.0)[0]) <= TOLERANCE


def test_sampled_tokens_have_the_likelihood_they_were_drawn_with(
    adapted: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    """Sampling and scoring agree on the tokens: greedy ones are the likeliest under the scores."""
    prompt = encode_prompts(adapted.processor, pictures[:2], questions[:2])
    rollout = sample(adapted, prompt, SamplingSettings(8, 2, temperature=0.0))
    batch = Batch(prompt, prompt, rollout.ids, rollout.mask, 2)
    with torch.no_grad():
        logps, entropy = scored(adapted, adapted.model, batch, 1.0)
        for token in (20, 300, 700):
            batch.ids = torch.where(torch.arange(8) == 7, token, rollout.ids)  # another last token
            assert (scored(adapted, adapted.model, batch, 1.0)[0][:, 7] <= logps[:, 7]).all()
    assert (logps < 0).all() and (entropy > 0).all() and (entropy < torch.tensor(892.0).log() + 1e-4).all()


@torch.no_grad()
def test_the_reference_scores_with_its_own_positions(
    own_tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]
) -> None:
    """A reference with weights of its own: other prompts that the policy ran in between do not matter."""
    reference = Reference(own_tiny)
    one, two = (batch_of(own_tiny, pictures[k : k + n], questions[k : k + n], 2) for k, n in ((0, 2), (2, 1)))
    expected = scored(own_tiny, own_tiny.model, one, 1.0)[0]
    scored(own_tiny, own_tiny.model, two, 1.0)
    with reference.active() as model:
        found = scored(own_tiny, model, one, 1.0)[0]
    assert torch.equal(found, expected)
