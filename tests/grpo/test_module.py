import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cogalign.data.case import Case
from cogalign.data.caseset import read_case_set
from cogalign.generation.sampling import Rollout
from cogalign.grpo.experience import Draw, MicroBatch, Prompts, Slice
from cogalign.grpo.judge import reward_columns
from cogalign.grpo.mix import PromptSampler
from cogalign.grpo.module import GrpoModule, learning_rate_factor
from cogalign.grpo.rewards.pool import RewardPool
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import distinct_prompts, encode_prompts, pad_completions
from cogalign.recipe import GrpoSettings, MixSettings
from cogalign.training.stopwatch import Stopwatch

QUESTION = "Based on the image, what is the diagnosis?"


class OneProcess:
    """What the module asks of Lightning's trainer."""

    world_size = 1


class Alone(GrpoModule):
    """The module without a trainer, with plain gradient descent: the change of a weight is its gradient."""

    trainer = OneProcess()  # type: ignore[assignment]

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        if not hasattr(self, "descent"):
            self.descent = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1.0)
        return self.descent

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    def update(self, micros: list[MicroBatch]) -> dict[str, float]:
        return self._update(Slice(micros), Stopwatch())


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    """No worker is started before the first batch."""
    with RewardPool({}, 1, 30.0) as made:
        yield made


def build(loaded: LoadedModel, phantom_set: Path, pool: RewardPool, seed: int = 1, **fields: Any) -> Alone:
    case_set = read_case_set(phantom_set)
    defaults = {"prompts_per_step": 4, "num_generations": 3, "max_completion_length": 6, "learning_rate": 1e-3}
    settings = GrpoSettings(**(defaults | {"steps": 10, "max_grad_norm": 1e9, "warmup_share": 0.0} | fields))
    sampler = PromptSampler(case_set.split("train"), {}, MixSettings(), settings.prompts_per_step, seed)
    return Alone(loaded, settings, sampler, case_set.image, QUESTION, seed, pool)


def fixed_micros(
    module: Alone,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    size: int,
    group: int = 3,
    order: Sequence[int] | None = None,
) -> list[MicroBatch]:
    """Always the same ragged completions and advantages for some prompts, in micro-batches of `size` prompts."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(8, 890, (1 + int(torch.randint(9, (1,), generator=generator)),), generator=generator).tolist()
        for _ in range(group * len(images))
    ]
    advantages = torch.randn(len(rows), generator=generator)
    places = list(order) if order is not None else list(range(len(images)))
    micros = []
    for first in range(0, len(images), size):
        part = places[first : first + size]
        chosen = [place * group + k for place in part for k in range(group)]
        ids, mask = pad_completions([rows[row] for row in chosen], 0)
        inputs = encode_prompts(module.loaded.processor, [images[p] for p in part], [questions[p] for p in part])
        draws = [Draw(Case(str(p), "images/a.png", ("polyp",), "train"), (0, 0, p)) for p in part]
        rollout = Rollout(ids, mask, torch.ones(len(ids), dtype=torch.bool))
        micro = MicroBatch(draws, rollout, Prompts(inputs, torch.arange(len(part))), mask, advantages[chosen])
        micro.ref_logps = module.engine.reference_logps(micro)
        micros.append(micro)
    return micros


def weights(module: Alone) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def copy_of(loaded: LoadedModel) -> LoadedModel:
    return LoadedModel(copy.deepcopy(loaded.model), loaded.processor, loaded.family)


def test_an_update_does_not_depend_on_the_micro_batches(
    adapted: LoadedModel, phantom_set: Path, pool: RewardPool, pictures: list[Image.Image], questions: list[str]
) -> None:
    images, asked = (pictures * 2)[:7], (questions * 2)[:7]
    results = []
    for size in (7, 2, 8):
        module = build(copy_of(adapted), phantom_set, pool, num_iterations=2)
        micros = fixed_micros(module, images, asked, size)
        assert len(micros) == -(-7 // size)
        updates = [module.update(micros) for _ in range(2)]
        results.append((updates, weights(module)))
    start = weights(build(copy_of(adapted), phantom_set, pool))
    (updates, expected), *others = results
    for found_updates, found in others:
        for name, value in expected.items():
            change = value - start[name]
            assert change.norm() > 0
            rounding = 1e-7 * value.norm()  # of the weights themselves
            assert (found[name] - value).norm() <= 2e-5 * change.norm() + rounding, name
        for found_update, update in zip(found_updates, updates, strict=True):
            assert found_update == pytest.approx(update, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"])
def test_an_update_does_not_depend_on_the_order_of_the_groups(
    adapted: LoadedModel,
    phantom_set: Path,
    pool: RewardPool,
    pictures: list[Image.Image],
    questions: list[str],
    objective: str,
) -> None:
    results = []
    for size, order in ((4, [0, 1, 2, 3]), (4, [2, 0, 3, 1]), (3, [3, 2, 1, 0])):
        module = build(copy_of(adapted), phantom_set, pool, objective=objective)
        before = weights(module)
        module.update(fixed_micros(module, pictures, questions, size, order=order))
        results.append({name: value - before[name] for name, value in weights(module).items()})
    for found in results[1:]:
        for name, change in results[0].items():
            assert (found[name] - change).norm() <= 2e-5 * change.norm() + 1e-7 * before[name].norm(), name


def test_equal_prompts_are_computed_once_and_change_no_update(
    adapted: LoadedModel, phantom_set: Path, pool: RewardPool, pictures: list[Image.Image], questions: list[str]
) -> None:
    """A prompt that occurs twice, its groups apart from each other, gives what two prompts give."""
    images, asked = [pictures[k] for k in (0, 1, 0)], [questions[k] for k in (0, 1, 0)]
    changes = []
    for shared in (False, True):
        module = build(copy_of(adapted), phantom_set, pool)
        before = weights(module)
        micros = fixed_micros(module, images, asked, 3)
        if shared:
            loaded = module.loaded
            assert micros[0].prompts is not None
            micros[0].prompts = Prompts(*distinct_prompts(loaded.family, loaded.core, micros[0].prompts.inputs))
            assert micros[0].prompts.place.tolist() == [0, 1, 0]
        module.update(micros)
        changes.append({name: value - before[name] for name, value in weights(module).items()})
    for name, change in changes[0].items():
        assert (changes[1][name] - change).norm() <= 2e-5 * change.norm() + 1e-7 * before[name].norm(), name


def test_the_divergence_is_zero_before_the_first_step_and_positive_after_it(
    adapted: LoadedModel, phantom_set: Path, pool: RewardPool, pictures: list[Image.Image], questions: list[str]
) -> None:
    module = build(adapted, phantom_set, pool, num_iterations=2)
    micros = fixed_micros(module, pictures, questions, 2)
    first, second = module.update(micros), module.update(micros)
    assert first["kl"] == 0 and first["clip_ratio/region_mean"] == 0
    assert second["kl"] > 1e-8
    assert first["grad_norm"] > 0 and first["entropy"] > 0
    assert module.optimizer_step_count == 2


def test_an_update_makes_better_completions_likelier(
    adapted: LoadedModel, phantom_set: Path, pool: RewardPool, pictures: list[Image.Image], questions: list[str]
) -> None:
    module = build(adapted, phantom_set, pool, beta=0.0, num_iterations=2, learning_rate=1e-2)
    micros = fixed_micros(module, pictures, questions, 4)
    assert module.engine.reference is None and micros[0].ref_logps is None
    module.update(micros)
    with torch.no_grad():
        after = module.engine.old_logps(micros[0])
    mask, advantages = micros[0].rollout.mask, micros[0].advantages
    assert micros[0].old_logps is not None and advantages is not None
    gain = ((after - micros[0].old_logps) * mask).sum(1) / mask.sum(1)
    assert (gain * advantages).mean() > 0


def test_a_gradient_that_is_not_finite_stops_with_the_weights_as_they_were(
    adapted: LoadedModel, phantom_set: Path, pool: RewardPool, pictures: list[Image.Image], questions: list[str]
) -> None:
    module = build(adapted, phantom_set, pool)
    micros = fixed_micros(module, pictures, questions, 4)
    before = weights(module)
    assert micros[0].advantages is not None
    micros[0].advantages[0] = torch.inf
    with pytest.raises(ValueError, match=r"grpo step 1: the gradient's norm is (nan|inf), the step was not taken"):
        module.update(micros)
    assert module.optimizer_step_count == 0
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())


def test_what_is_sampled_depends_on_the_seed_alone(adapted: LoadedModel, phantom_set: Path, pool: RewardPool) -> None:
    def draw(seed: int, shift: int) -> list[tuple[int, ...]]:
        module = build(adapted, phantom_set, pool, seed=1, beta=0.0)
        draws = [Draw(case, (0, 0, place)) for place, case in enumerate(module.sampler.step(0))]
        torch.rand(seed + shift)
        micro = module.engine.sample(draws, seed, keep_start=bool(shift))
        return [tuple(row) for row in micro.rollout.ids.tolist()]

    first = draw(1, 0)
    assert len(first) == 12 and len(set(first)) == 12
    assert draw(1, 1) == first != draw(2, 0)


def test_rewards_see_plain_values_of_the_case(phantom_set: Path) -> None:
    cases = read_case_set(phantom_set).split("train")[:2]
    columns = reward_columns(cases)
    assert columns["findings"] == [list(case.findings) for case in cases]
    assert columns["id"] == [case.id for case in cases] and columns["intervention"] == [None, None]
    assert all(len(values) == 2 for values in columns.values())


def test_tokens_of_prompts_count_for_every_completion(
    adapted: LoadedModel, phantom_set: Path, pool: RewardPool, pictures: list[Image.Image], questions: list[str]
) -> None:
    module = build(adapted, phantom_set, pool, beta=0.0)
    micros = fixed_micros(module, pictures, questions, 3)
    prompts = sum(int(encode_prompts(adapted.processor, [i], [q])["attention_mask"].sum())
                  for i, q in zip(pictures, questions, strict=True))  # fmt: skip
    completions = sum(int(micro.rollout.mask.sum()) for micro in micros)
    assert module._tokens(micros) == 3 * prompts + completions


def test_the_learning_rate_warms_up_and_stays_or_decays() -> None:
    constant = GrpoSettings(steps=100, warmup_share=0.1)
    assert [learning_rate_factor(step, constant) for step in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    cosine = GrpoSettings(steps=100, warmup_share=0.1, schedule="cosine")
    assert [learning_rate_factor(step, cosine) for step in (9, 10, 55, 100)] == pytest.approx([1, 1, 0.5, 0])
    assert learning_rate_factor(0, GrpoSettings(steps=1, warmup_share=0.0)) == 1


def test_a_checkpoint_holds_the_policy_and_the_counters_and_no_reference(
    adapted: LoadedModel, phantom_set: Path, pool: RewardPool
) -> None:
    module = build(adapted, phantom_set, pool)
    module.optimizer_step_count, module.rollout_count, module.tokens_seen = 7, 4, 99
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == set(weights(module))
    assert all(".default." in name for name in checkpoint["state_dict"])
    other = build(adapted, phantom_set, pool, beta=0.0)
    other.on_load_checkpoint(checkpoint)
    assert (other.optimizer_step_count, other.rollout_count, other.tokens_seen) == (7, 4, 99)
