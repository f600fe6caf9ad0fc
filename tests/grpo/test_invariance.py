"""What is sampled does not depend on how the work is cut: into micro-batches, or over ranks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cogalign.data.caseset import read_case_set
from cogalign.generation.sampling import Rollout, SamplingSettings
from cogalign.generation.uniforms import Share, Uniforms
from cogalign.grpo import engine
from cogalign.grpo.collect import MIX, SPARE, Collector
from cogalign.grpo.engine import Engine
from cogalign.grpo.mix import PromptSampler
from cogalign.grpo.ranks import Ranks
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import pad_completions
from cogalign.recipe import GrpoSettings, MixSettings
from tests.families.conftest import built

QUESTION = "Based on the image, what is the diagnosis?"
PINNED = [
    [630, 602, 572, 402, 40, 690], [546, 14, 499, 57, 446, 358], [535, 609, 410, 62, 62, 737],
    [328, 205, 345, 108, 827, 134], [657, 345, 608, 275, 214, 867], [18, 673, 789, 112, 60, 800],
    [728, 342, 511, 319, 737, 511], [677, 299, 633, 173, 625, 327], [305, 238, 541, 397, 203, 511],
    [453, 92, 511, 57, 584, 511], [281, 380, 356, 482, 320, 121], [500, 448, 197, 23, 380, 511],
]  # fmt: skip
"""Step 3 of one rank and one micro-batch, as it was before the random numbers of a step were shared out."""
PINNED_SPARE = [
    [160, 141, 880, 173, 800, 439], [683, 173, 358, 800, 694, 511], [355, 575, 730, 331, 21, 411],
    [613, 374, 309, 22, 258, 864], [233, 797, 61, 800, 61, 241], [339, 23, 874, 319, 345, 800],
    [305, 826, 380, 511, 824, 716], [305, 563, 581, 552, 283, 171], [425, 170, 566, 504, 536, 692],
]  # fmt: skip
"""The same for three replacements."""


def collector(
    loaded: LoadedModel,
    case_set: Path,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int = 4,
    server: Any = None,
    drafts: bool = False,
) -> Collector:
    """The part of a rank that samples; nothing is judged."""
    cases = read_case_set(case_set)
    settings = GrpoSettings(
        prompts_per_step=4,
        num_generations=3,
        max_completion_length=6,
        micro_batch=micro_batch,
        beta=0.0,
        drafts=drafts,
    )
    mix = PromptSampler(cases.split("train"), {}, MixSettings(), 4, 1, rank=rank, world_size=world_size)
    engine = Engine(loaded, settings, cases.image, QUESTION, server)
    judge: Any = None
    return Collector(engine, judge, settings, mix, mix, 1, Ranks(rank, world_size))


def sampled(made: Collector, stream: int, index: int, limit: int | None = None) -> list[list[int]]:
    """Token ids of the completions of a rank."""
    micros = made._sampled(stream, index, limit)
    rows = [row for micro in micros for row in zip(micro.rollout.ids, micro.rollout.mask, strict=True)]
    return [ids[mask.bool()].tolist() for ids, mask in rows]


def test_one_rank_with_one_micro_batch_samples_what_it_always_did(adapted: LoadedModel, phantom_set: Path) -> None:
    made = collector(adapted, phantom_set)
    assert sampled(made, MIX, 3) == PINNED
    assert sampled(made, SPARE, 2, 3) == PINNED_SPARE


def test_drafts_of_the_reports_change_no_completion(
    adapted: LoadedModel, phantom_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32; and they are asked for."""
    given: list[bool] = []
    one = engine.sample
    monkeypatch.setattr(engine, "sample", lambda *args: (given.append(bool(args[-1])), one(*args))[1])
    for world_size, micro_batch in ((1, 4), (1, 3), (2, 1)):
        cut = [collector(adapted, phantom_set, rank, world_size, micro_batch, None, True) for rank in range(world_size)]
        assert [row for made in cut for row in sampled(made, MIX, 3)] == PINNED
    assert given == [True] * (1 + 2 + 4)


@pytest.mark.parametrize("family", ["shared prompts", "plain"])
def test_completions_depend_neither_on_ranks_nor_on_micro_batches(
    adapted: LoadedModel, phantom_set: Path, family: str
) -> None:
    loaded = adapted
    if family == "plain":
        gemma = built("gemma3")
        loaded = LoadedModel(copy.deepcopy(gemma.model), gemma.processor, gemma.family)
    assert loaded.family.shares_prompts(loaded.core) == (family == "shared prompts")
    whole = sampled(collector(loaded, phantom_set), MIX, 1)
    spare = sampled(collector(loaded, phantom_set), SPARE, 4, 3)
    assert len({tuple(row) for row in whole}) == 12
    for world_size, micro_batch in ((1, 1), (1, 3), (2, 2), (2, 1), (4, 4)):
        cut = [collector(loaded, phantom_set, rank, world_size, micro_batch) for rank in range(world_size)]
        assert [row for made in cut for row in sampled(made, MIX, 1)] == whole, (world_size, micro_batch)
        assert [row for made in cut for row in sampled(made, SPARE, 4, 3)] == spare, (world_size, micro_batch)


def test_cases_are_found_by_their_place_in_the_whole_step(adapted: LoadedModel, phantom_set: Path) -> None:
    wanted = [case.id for case in collector(adapted, phantom_set).streams[MIX].global_step(5)]  # type: ignore[union-attr]
    second = collector(adapted, phantom_set, rank=1, world_size=2)
    draws = [draw for micro in second._sampled(MIX, 5, None) for draw in micro.draws]
    assert [draw.origin for draw in draws] == [(MIX, 5, 2), (MIX, 5, 3)]
    assert [second.find(draw.origin).id for draw in draws] == [draw.case.id for draw in draws] == wanted[2:]


class Listening:
    """A server that notes what it is asked for; its completions are of one token."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []

    def sample(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        settings: SamplingSettings,
        seed: int,
        prompt: Any = None,
        places: Sequence[int] | None = None,
    ) -> Rollout:
        self.asked.append((seed, list(places or [])))
        ids, mask = pad_completions([[5]] * len(images) * settings.num_generations, 0)
        return Rollout(ids, mask, torch.ones(len(ids), dtype=torch.bool), torch.zeros(ids.shape))


def test_a_server_gets_one_seed_a_step_and_the_places_of_the_prompts(adapted: LoadedModel, phantom_set: Path) -> None:
    asked = []
    for world_size, micro_batch in ((1, 4), (1, 3), (2, 1)):
        server = Listening()
        for rank in range(world_size):
            sampled(collector(adapted, phantom_set, rank, world_size, micro_batch, server), MIX, 2)
        assert len({seed for seed, _ in server.asked}) == 1
        asked.append([(seed, place) for seed, places in server.asked for place in places])
    assert asked[0] == asked[1] == asked[2] and [place for _, place in asked[0]] == [0, 1, 2, 3]


def test_a_share_gets_its_own_numbers_of_the_whole_set() -> None:
    def numbers(share: Share) -> torch.Tensor:
        made = Uniforms(torch.Generator().manual_seed(4), torch.device("cpu"), share, 2)
        return torch.stack([made.next() for _ in range(3)])

    whole = numbers(Share.of_all(5))
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(whole[0], torch.rand(10, generator=generator, dtype=torch.float64))
    assert torch.equal(numbers(Share([3, 1], 5)), whole[:, [6, 7, 2, 3]])
