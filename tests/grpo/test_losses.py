"""The objectives, their normalizers and invariances; that they are TRL's is tested in `test_losses_vs_trl.py`."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cogalign.grpo.losses import LossStats, Objective, grpo_loss, step_normalizer, truncation_mask
from cogalign.grpo.ratios import sequence_ratio, token_ratio
from cogalign.recipe_grpo import GrpoSettings

NAMES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")
every_objective = pytest.mark.parametrize("name", NAMES)


def batch(seed: int, rows: int = 5, time: int = 7, spread: float = 0.4) -> dict[str, Tensor]:
    """Log-probabilities, advantages, importance weights and a ragged mask with an empty row now and then, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logps = -normal(rows, time).abs() - 0.1
    lengths = torch.randint(0, time + 1, (rows, 1), generator=generator)
    lengths[0] = time - 1
    return {
        "logps": logps.requires_grad_(),
        "old_logps": logps.detach() + spread * normal(rows, 1) + spread * normal(rows, time),
        "ref_logps": logps.detach() + spread * normal(rows, time),
        "advantages": normal(rows),
        "mask": (torch.arange(time) < lengths).long(),
        "entropies": normal(rows, time).abs(),
        "importance": normal(rows, time).exp().clamp(max=2.0),
    }


def objective_of(name: Any, **fields: Any) -> Objective:
    return Objective(name, **{"beta": 0.04, "epsilon_high": 0.3, "max_completion_length": 9, **fields})


def run(data: dict[str, Tensor], objective: Objective, **more: Any) -> tuple[Tensor, Tensor, LossStats]:
    """Loss, gradient with respect to the log-probabilities, statistics."""
    loss, stats = grpo_loss(**data, objective=objective, **more)  # type: ignore[arg-type]
    return loss.detach(), torch.autograd.grad(loss, data["logps"])[0], stats


def part(data: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    """Some rows as a micro-batch of its own, whose gradient is taken by itself."""
    return {name: value.detach()[rows].requires_grad_(name == "logps") for name, value in data.items()}


def normalizer_of(data: dict[str, Tensor], objective: Objective, ranks: int = 1, local: float | None = None) -> float:
    return step_normalizer(objective, len(data["mask"]), float(data["mask"].sum()), ranks, local)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@every_objective
def test_loss_equals_the_formula_written_out(name: Any, kind: Any) -> None:
    data = {key: value for key, value in batch(3, rows=4, time=4).items() if key != "entropies"}
    objective = Objective(name, 0.2, 0.3, None if name == "cispo" else 1.4, 0.1, kind, max_completion_length=9)
    loss, _ = grpo_loss(**data, objective=objective)  # type: ignore[arg-type]
    completions: list[list[float]] = []
    for row in range(4):
        terms = []
        length = int(data["mask"][row].sum())
        advantage = data["advantages"][row].item()
        ratios = [math.exp((data["logps"] - data["old_logps"])[row, t].item()) for t in range(length)]
        for t, token in enumerate(ratios):
            policy, reference = data["logps"][row, t].item(), data["ref_logps"][row, t].item()
            ratio = math.prod(ratios) ** (1 / length) if name == "gspo" else token
            gain = min(min(ratio, 1.4) * advantage, min(max(ratio, 0.8), 1.3) * advantage)
            if name == "cispo":
                gain = min(ratio, 1.3) * advantage * policy
            x = reference - policy
            kl = {"k1": -x, "k2": x * x / 2, "k3": math.exp(x) - x - 1}[kind]
            terms.append(-gain * data["importance"][row, t].item() + 0.1 * kl)
        completions.append(terms)
    total, tokens = sum(map(sum, completions)), sum(map(len, completions))
    by_completion = sum(sum(terms) / max(len(terms), 1) for terms in completions) / 4
    expected = {"grpo": by_completion, "gspo": by_completion, "dr_grpo": total / 36}.get(name, total / tokens)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@every_objective
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(1, 7), max_size=3), order=st.randoms())
@settings(max_examples=25, deadline=None)
def test_loss_gradient_and_statistics_do_not_depend_on_micro_batches_and_order(
    name: Any, seed: int, cuts: list[int], order: Any
) -> None:
    data, objective = batch(seed, rows=8), objective_of(name)
    whole, gradient, stats = run(data, objective)
    rows = list(range(8))
    order.shuffle(rows)
    parts = [rows[a:b] for a, b in pairwise(sorted({0, 8, *cuts}))]
    normalizer = normalizer_of(data, objective)
    total, summed = torch.zeros((), dtype=torch.float64), LossStats(stats.names, torch.zeros_like(stats.totals))
    for chosen in parts:
        loss, share, more = run(part(data, chosen), objective, normalizer=normalizer)
        torch.testing.assert_close(share, gradient[chosen], rtol=1e-12, atol=1e-14)
        total, summed = total + loss, summed + more
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    assert summed.means() == pytest.approx(stats.means(), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bnpo"])
@given(seed=st.integers(0, 1000), ranks=st.sampled_from([1, 2, 3, 6]))
@settings(max_examples=25, deadline=None)
def test_the_update_does_not_depend_on_the_number_of_ranks(name: Any, seed: int, ranks: int) -> None:
    """Each rank backs its own rows into the one weight they share; DDP averages over the ranks."""
    data, objective = batch(seed, rows=6), objective_of(name)
    _, alone, _ = run(data, objective, normalizer=normalizer_of(data, objective))
    weight = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)
    averaged = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(6).chunk(ranks):
        _, gradient, _ = run(part(data, rows), objective, normalizer=normalizer_of(data, objective, ranks))
        averaged += (gradient * weight).sum() / ranks
    torch.testing.assert_close(averaged, (alone * weight).sum(), rtol=1e-10, atol=1e-13)


def test_bnpo_averages_over_the_tokens_of_each_rank() -> None:
    data, objective = batch(0, rows=6), objective_of("bnpo")
    rows = torch.arange(3)
    local = float(data["mask"][rows].sum())
    assert 0 < local != float(data["mask"][3:].sum())
    on_rank, _, _ = run(part(data, rows), objective, normalizer=normalizer_of(data, objective, 2, local))
    assert on_rank == run(part(data, rows), objective)[0]
    with pytest.raises(ValueError, match="local_tokens: found None with bnpo on 2 ranks"):
        normalizer_of(data, objective, 2)


@every_objective
@given(seed=st.integers(0, 1000), others=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_slice_does_not_depend_on_what_was_generated_with_it(name: Any, seed: int, others: int) -> None:
    """Steps per generation: the slice of a padded generation batch gives what the slice gives by itself."""
    data, objective = batch(seed, rows=4, time=7), objective_of(name)
    alone, gradient, _ = run(data, objective)
    far = batch(others, rows=4, time=11)
    together = {
        key: torch.cat([torch.nn.functional.pad(value.detach(), (0, 4)) if value.dim() == 2 else value, far[key]])
        for key, value in data.items()
    }
    sliced = part(together, slice(0, 4))
    loss, wide, _ = run(sliced, objective, normalizer=normalizer_of(sliced, objective))
    torch.testing.assert_close(loss, alone, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(wide[:, :7], gradient, rtol=1e-12, atol=1e-14)
    assert wide[:, 7:].eq(0).all()


@every_objective
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_masked_positions_change_nothing(name: Any, rubbish: float) -> None:
    data, objective = batch(4), objective_of(name)
    data["mask"][2] = 0
    loss, gradient, stats = run(data, objective)
    hidden = data["mask"] == 0
    spoiled = {
        key: value.detach().masked_fill(hidden, rubbish) if value.is_floating_point() and value.dim() == 2 else value
        for key, value in data.items()
    }
    spoiled["advantages"] = data["advantages"].masked_fill(hidden.all(dim=1), rubbish)
    spoiled["logps"].requires_grad_()
    other, other_gradient, other_stats = run(spoiled, objective)
    assert other.item() == loss.item()
    assert torch.equal(other_gradient, gradient)
    assert gradient[hidden].eq(0).all() and gradient[~hidden].ne(0).any()
    assert other_stats.means() == stats.means()


@every_objective
def test_without_old_log_probabilities_the_gradient_is_the_policy_gradient(name: Any) -> None:
    data, objective = batch(5), objective_of(name, beta=0.0)
    loss, stats = grpo_loss(data["logps"], None, None, data["advantages"], data["mask"], objective)
    (gradient,) = torch.autograd.grad(loss, data["logps"])
    mask = data["mask"].double()
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    by_completion = lengths * len(mask)
    over = {"grpo": by_completion, "gspo": by_completion, "dr_grpo": torch.tensor(9.0 * len(mask))}
    expected = -data["advantages"].unsqueeze(1) * mask / over.get(name, mask.sum())
    torch.testing.assert_close(gradient, expected)
    assert set(stats.means().values()) == {0.0}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cispo"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_gradient_is_zero_exactly_where_the_clip_acts(name: Any, seed: int) -> None:
    data, objective = batch(seed), objective_of(name, beta=0.0, delta=1.5)
    _, gradient, stats = run(data, objective)
    keep = data["mask"].bool()
    logps, old = data["logps"].detach(), data["old_logps"]
    ratio = sequence_ratio(logps, old, keep).expand_as(logps) if name == "gspo" else token_ratio(logps, old)
    advantage = data["advantages"].unsqueeze(1)
    low, high = (ratio < 0.8) & (advantage < 0), (ratio > 1.3) & (advantage > 0)
    beyond = (ratio > 1.5) & (advantage < 0)
    assert torch.equal(gradient == 0, ~keep | low | high | beyond)
    clipped = (keep & (low | high)).any(dim=1) if name == "gspo" else (low | high)[keep]
    assert stats.means()["clip_ratio/region_mean"] == pytest.approx(clipped.double().mean().item())


def test_cispo_keeps_the_gradient_of_every_token_with_a_bounded_weight() -> None:
    data, objective = batch(1, rows=8), objective_of("cispo", beta=0.0)
    del data["importance"]
    _, gradient, stats = run(data, objective)
    keep = data["mask"].bool()
    ratio = token_ratio(data["logps"], data["old_logps"]).detach()
    weight = -gradient * keep.sum() / data["advantages"].unsqueeze(1)
    torch.testing.assert_close(weight[keep], ratio.clamp(max=1.3)[keep])
    assert (ratio > 1.3)[keep].any() and (ratio < 0.8)[keep].any()
    assert 0 < stats.means()["cispo_clip_ratio"] < 1


@every_objective
def test_an_empty_completion_adds_nothing(name: Any) -> None:
    data, objective = batch(6, rows=2), objective_of(name)
    alone, _, _ = run(part(data, [0]), objective)
    data["mask"][1] = 0
    both, gradient, stats = run(data, objective)
    counts_completions = name in ("grpo", "dr_grpo", "gspo")
    assert both.item() == pytest.approx(alone.item() / (2 if counts_completions else 1))
    assert gradient[1].eq(0).all()
    assert stats.totals[1, stats.names.index("kl")] == data["mask"][0].sum()


@every_objective
def test_only_empty_completions_give_a_loss_of_zero(name: Any) -> None:
    data, objective = batch(6), objective_of(name)
    data["mask"].zero_()
    loss, gradient, stats = run(data, objective)
    assert loss == 0 and gradient.eq(0).all()
    assert set(stats.means().values()) == {0.0}
    assert step_normalizer(objective, 0, 0) > 0


def test_a_truncated_completion_is_left_out() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert truncation_mask(mask, torch.tensor([False, True])).tolist() == [[0, 0, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"finished: found the shape \[3\], wanted \[2\]"):
        truncation_mask(mask, torch.ones(3))


@every_objective
def test_the_importance_weight_scales_the_policy_term_and_not_the_divergence(name: Any) -> None:
    data, objective = batch(7), objective_of(name)
    halved = {**data, "importance": torch.full_like(data["importance"], 0.5)}
    plain = {key: value for key, value in data.items() if key != "importance"}
    divergence = run({**plain, "advantages": torch.zeros(5)}, objective)[0]
    expected = 0.5 * (run(plain, objective)[0] - divergence) + divergence
    torch.testing.assert_close(run(halved, objective)[0], expected)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_huge_ratio_gives_finite_loss_and_gradient(name: Any, dtype: torch.dtype) -> None:
    logps = torch.full((1, 2), -1.0, dtype=dtype, requires_grad=True)
    far, near = torch.full((1, 2), -500.0, dtype=dtype), torch.zeros(1, 2, dtype=dtype)
    for advantage in (1.0, -1.0):
        loss, _ = grpo_loss(logps, far, near, torch.tensor([advantage]), torch.ones(1, 2), objective_of(name))
        (gradient,) = torch.autograd.grad(loss, logps)
        assert loss.dtype == gradient.dtype == dtype
        assert loss.isfinite() and gradient.isfinite().all()


def test_the_objective_of_a_recipe() -> None:
    recipe = GrpoSettings(objective="gspo", epsilon=3e-4, epsilon_high=4e-4, beta=0.0, kl="k2", delta=2.0)
    expected = Objective("gspo", 3e-4, 4e-4, 2.0, 0.0, "k2", recipe.max_completion_length)
    assert Objective.from_settings(recipe) == expected
    assert Objective(epsilon=0.1).high == 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "ppo"}, r"grpo\.objective: found 'ppo', wanted one of grpo, dr_grpo"),
        ({"kl": "k4"}, r"grpo\.kl: found 'k4', wanted one of k1, k2, k3"),
        ({"epsilon": -0.1}, r"grpo\.epsilon: found -0\.1"),
        ({"epsilon_high": float("nan")}, r"grpo\.epsilon_high: found nan"),
        ({"beta": -1}, r"grpo\.beta: found -1"),
        ({"delta": 1.1}, r"grpo\.delta: found 1\.1, wanted more than 1 \+ epsilon_high = 1\.2"),
        ({"delta": 4.0, "name": "cispo"}, r"grpo\.delta: found 4\.0 with the objective cispo"),
        ({"max_completion_length": 0}, r"grpo\.max_completion_length: found 0"),
    ],
)
def test_a_wrong_objective_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old_logps": torch.zeros(5, 3)}, r"old_logps: found the shape \[5, 3\], wanted \[5, 7\]"),
        ({"importance": torch.zeros(5)}, r"importance: found the shape \[5\], wanted \[5, 7\]"),
        ({"advantages": torch.zeros(5, 1)}, r"advantages: found the shape \[5, 1\], wanted \[5\]"),
        ({"ref_logps": None}, r"ref_logps: found None with beta = 0\.04"),
        ({"normalizer": 0}, r"normalizer: found 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo_loss(**{**batch(0), **change}, objective=objective_of("grpo"))


def test_a_wrong_world_size_is_refused() -> None:
    with pytest.raises(ValueError, match="world_size: found 0"):
        step_normalizer(Objective(), 1, 1, 0)


def test_statistics_of_other_names_are_not_added() -> None:
    with pytest.raises(ValueError, match="loss statistics"):
        LossStats(("kl",), torch.zeros(2, 1)) + LossStats(("entropy",), torch.zeros(2, 1))
