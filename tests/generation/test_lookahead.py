"""With drafts, however good or bad, sampling gives the completions that it gives token by token."""

import pytest
import torch
from PIL import Image

from cogalign.generation import lookahead
from cogalign.generation.drafts import Drafts
from cogalign.generation.lookahead import Growing
from cogalign.generation.sampling import Rollout, SamplingSettings, sample
from cogalign.generation.uniforms import Share
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, encode_prompts

LENGTH = 14


@pytest.fixture(scope="module")
def prompt(tiny: LoadedModel, pictures: list[Image.Image], questions: list[str]) -> Inputs:
    return encode_prompts(tiny.processor, pictures, questions)


def rows(rollout: Rollout) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(rollout.ids, rollout.mask, strict=True)]


def drafts_of(kind: str, completions: list[list[int]]) -> Drafts:
    """Drafts that hold the completions themselves, parts of them, or texts that have nothing to do with them."""
    if kind == "right":
        return Drafts(completions)
    if kind == "in part":
        return Drafts([[*ids[: 3 + n], 7, *ids[6 + n :]] for n, ids in enumerate(completions[::2])])
    return Drafts([[token + 1 for token in ids] for ids in completions])


@pytest.mark.parametrize("kind", ["right", "in part", "wrong"])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.9)])
def test_the_completions_are_those_of_sampling_token_by_token(
    own_tiny: LoadedModel, prompt: Inputs, kind: str, temperature: float, top_p: float
) -> None:
    how = SamplingSettings(LENGTH, 3, temperature, top_p)
    plain = sample(own_tiny, prompt, how, torch.Generator().manual_seed(4))
    # a token that some of them hold is made to end completions: the others never end
    holders = {token: int((plain.ids == token).any(1).sum()) for token in plain.ids.unique().tolist()}
    end = next(token for token, count in holders.items() if 3 <= count <= 9)
    own_tiny.model.generation_config.eos_token_id = [own_tiny.tokenizer.eos_token_id, end]
    plain = sample(own_tiny, prompt, how, torch.Generator().manual_seed(4))
    assert plain.finished.any() and not plain.finished.all()
    drafted = sample(own_tiny, prompt, how, torch.Generator().manual_seed(4), drafts=drafts_of(kind, rows(plain)))
    assert rows(drafted) == rows(plain)
    assert torch.equal(drafted.ids, plain.ids) and torch.equal(drafted.mask, plain.mask)
    assert torch.equal(drafted.finished, plain.finished)


def test_repeated_prompts_and_a_share_of_a_step_get_their_own_numbers(tiny: LoadedModel, prompt: Inputs) -> None:
    how, place = SamplingSettings(8, 2), torch.tensor([2, 0, 2, 1])
    share = Share([5, 1, 2, 7], 9)
    plain, drafted = (
        sample(tiny, prompt, how, torch.Generator().manual_seed(1), None, place, share, drafts)
        for drafts in (None, Drafts([[1, 2, 3]]))
    )
    assert torch.equal(plain.ids, drafted.ids)


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of completions in each pass from here on."""
    seen: list[int] = []
    one = lookahead._pass
    monkeypatch.setattr(lookahead, "_pass", lambda *given: (seen.append(len(given[4])), one(*given))[1])
    return seen


def test_a_right_draft_takes_one_pass_and_a_wrong_one_no_more_than_a_pass_a_token(
    tiny: LoadedModel, prompt: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = SamplingSettings(LENGTH, 1, temperature=0.0)
    plain = rows(sample(tiny, prompt, how))
    seen = passes(monkeypatch)
    sample(tiny, prompt, how, drafts=Drafts(plain))
    assert len(seen) < LENGTH / 2  # drafts that contradict one another have to be found out
    seen.clear()
    alone = {name: value[:1] for name, value in prompt.items()}
    alone["pixel_values"] = prompt["pixel_values"][: int(prompt["image_grid_thw"][0].prod())]
    sample(tiny, alone, how, drafts=Drafts(plain[:1]))
    assert seen == [1]
    seen.clear()
    sample(tiny, prompt, how, drafts=drafts_of("wrong", plain))
    assert LENGTH - 4 < len(seen) < LENGTH


def test_completions_become_drafts(tiny: LoadedModel, prompt: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    how, drafts = SamplingSettings(LENGTH, 1, temperature=0.0), Drafts()
    plain = rows(sample(tiny, prompt, how, drafts=drafts))
    seen = passes(monkeypatch)
    assert rows(sample(tiny, prompt, how, drafts=drafts)) == plain and len(seen) < LENGTH / 2


def test_a_guess_that_fails_is_trusted_less_and_one_that_holds_more() -> None:
    one = Growing(40)
    one.grow([1, 9], [1, 2, 3], ())
    assert one.ids == [1, 9] and one.trust == 2
    one.grow([9], [3, 4], ())
    assert one.trust == 1
    one.grow([9], [3], ())
    assert one.trust == 0 and one.open
    one.grow([5], [], ())
    assert one.trust == 2
    one.grow([6, 7, 8], [6, 7], (8,))
    assert one.ids == [1, 9, 9, 9, 5, 6, 7, 8] and one.ended and not one.open
