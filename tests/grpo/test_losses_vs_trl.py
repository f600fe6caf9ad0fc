"""Same inputs, TRL's own code and ours: losses, gradients, statistics, advantages and importance weights.

TRL's `GRPOTrainer._compute_loss` and `_generate_and_score_completions` run as they are, on an object that holds the
settings; only the model's forward pass, the sampling and the reward functions are replaced by given numbers.

Tolerance: 1e-6 of the norm in float32, 1e-12 in float64; 1e-6 for advantages, where TRL's standard deviation holds a
factor in float32 whatever the type of the rewards.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl import GRPOTrainer

from cogalign.grpo.advantages import gdpo_advantages, group_advantages, zero_spread_share
from cogalign.grpo.importance import importance_weights
from cogalign.grpo.losses import Objective, grpo_loss, step_normalizer, truncation_mask

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
NAMES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")
NAN = float("nan")
SEEDS = (0, 2, 3)


def batch(seed: int, dtype: torch.dtype = torch.float64, rows: int = 12, time: int = 9) -> dict[str, Tensor]:
    """Log-probabilities, advantages, importance weights and a ragged mask."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logps = -normal(rows, time).abs() - 0.1
    lengths = torch.randint(1, time + 1, (rows, 1), generator=generator)
    floats = {
        "logps": logps,
        "old_logps": logps + 0.7 * normal(rows, 1) + 0.3 * normal(rows, time),
        "ref_logps": logps + 0.4 * normal(rows, time),
        "advantages": normal(rows),
        "entropies": normal(rows, time).abs(),
        "importance": normal(rows, time).exp().clamp(max=2.0),
    }
    data = {name: value.to(dtype) for name, value in floats.items()}
    data["logps"].requires_grad_()
    return {**data, "mask": (torch.arange(time) < lengths).long()}


def accelerator(ranks: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        reduce=lambda value, reduction: value,
        gather=lambda value: value,
        num_processes=ranks,
        device=torch.device("cpu"),
        process_index=0,
    )


def trl_loss(
    data: dict[str, Tensor], objective: Objective, parts: int = 1, ranks: int = 1, total: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """TRL's loss of one of `parts` micro-batches of one of `ranks` processes; `total`: tokens of the whole step."""
    metrics: dict[str, list[float]] = defaultdict(list)
    is_cispo = objective.name == "cispo"
    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (data["logps"], data["entropies"], None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if objective.name == "gspo" else "token",
        loss_type="grpo" if objective.name == "gspo" else objective.name,
        beta=objective.beta,
        epsilon_low=objective.epsilon,
        epsilon_high=objective.high + 1 if is_cispo else objective.high,  # TRL's is the cap of the weight itself
        max_completion_length=objective.max_completion_length,
        use_vllm="importance" in data,
        vllm_importance_sampling_correction="importance" in data,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=parts,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=objective.delta, steps_per_generation=parts),
        model=SimpleNamespace(training=True),
        accelerator=accelerator(ranks),
        _metrics={"train": metrics},
    )
    rows = len(data["logps"])
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(data["mask"]),
        "completion_mask": data["mask"],
        "advantages": data["advantages"],
        "old_per_token_logps": data.get("old_logps"),
        "ref_per_token_logps": data.get("ref_logps"),
        "importance_sampling_ratio": data.get("importance"),
        "num_items_in_batch": data["mask"].sum() if total is None else total,
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[0] for name, values in metrics.items()}


def our_loss(data: dict[str, Tensor], objective: Objective, **more: Any) -> tuple[Tensor, dict[str, float]]:
    loss, stats = grpo_loss(**{"old_logps": None, "ref_logps": None, **data}, objective=objective, **more)  # type: ignore[arg-type]
    return loss, stats.means()


def assert_same(ours: Tensor, trls: Tensor, inputs: Tensor) -> None:
    """Loss and gradient agree within `TOLERANCE`, relative to their norm."""
    tolerance = TOLERANCE[inputs.dtype]
    (gradient,) = torch.autograd.grad(ours, inputs, retain_graph=True)
    (wanted,) = torch.autograd.grad(trls, inputs)
    assert wanted.norm() > 0
    assert (gradient - wanted).norm() <= tolerance * wanted.norm()
    # a loss is a sum of terms of both signs, so its error is measured against their size
    assert (ours - trls).abs() <= tolerance * max(1.0, trls.abs().item())


@pytest.mark.parametrize("weighed", [False, True], ids=["", "importance"])
@pytest.mark.parametrize("beta", [0.0, 0.04], ids=["", "kl"])
@pytest.mark.parametrize(
    "clip", [{}, {"epsilon_high": 0.28}, {"epsilon_high": 0.28, "delta": 1.3}], ids=["clip", "higher", "delta"]
)
@pytest.mark.parametrize("name", NAMES)
def test_loss_gradient_and_statistics_are_trls(name: Any, clip: dict[str, Any], beta: float, weighed: bool) -> None:
    if name == "cispo" and "delta" in clip:
        clip = {"epsilon_high": 4.0}
    objective = Objective(name, **clip, beta=beta, max_completion_length=20)
    for seed in SEEDS:
        for dtype in TOLERANCE:
            data = batch(seed, dtype)
            if not weighed:
                del data["importance"]
            ours, stats = our_loss(data, objective)
            trls, metrics = trl_loss(data, objective)
            assert_same(ours, trls, data["logps"])
            assert ("kl" in stats) == (beta > 0)
            for key, value in stats.items():
                assert value == pytest.approx(metrics[key], abs=1e-6), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_inputs_above_are_clipped_and_the_two_sided_clip_acts(name: Any, seed: int) -> None:
    data = batch(seed)
    _, stats = our_loss(data, Objective(name))
    assert all(0 < stats[key] < 1 for key in stats if "clip_ratio" in key)
    if name != "cispo":
        free, _ = our_loss(data, Objective(name, epsilon_high=0.28))
        bound, _ = our_loss(data, Objective(name, epsilon_high=0.28, delta=1.3))
        assert bound < free


@pytest.mark.parametrize("name", NAMES)
def test_the_first_update_of_a_batch_is_trls(name: Any) -> None:
    data = {key: value for key, value in batch(1).items() if key not in ("old_logps", "importance")}
    objective = Objective(name, beta=0.04)
    assert_same(our_loss(data, objective)[0], trl_loss(data, objective)[0], data["logps"])


# TRL takes a micro-batch for the local batch of bnpo, we take the rank's share of the step: equal for one micro-batch.
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("name", "parts"), [(name, parts) for name in NAMES for parts in (1, 3) if name != "bnpo" or parts == 1]
)
def test_accumulated_over_micro_batches_and_averaged_over_ranks_it_is_trls(name: Any, parts: int, ranks: int) -> None:
    objective = Objective(name, beta=0.04, max_completion_length=20)
    everything = batch(2)
    tokens = everything["mask"].sum()
    ours, trls = [], []
    for rank_rows in torch.arange(12).chunk(ranks):
        local = everything["mask"][rank_rows].sum()
        normalizer = step_normalizer(objective, 12, float(tokens), ranks, float(local))
        for rows in rank_rows.chunk(parts):
            micro = {key: value[rows] for key, value in everything.items()}
            ours.append(our_loss(micro, objective, normalizer=normalizer)[0])
            trls.append(trl_loss(micro, objective, parts, ranks, tokens)[0])
    assert_same(torch.stack(ours).sum() / ranks, torch.stack(trls).sum() / ranks, everything["logps"])


@pytest.mark.parametrize("name", NAMES)
def test_truncated_completions_are_masked_as_in_trl(name: Any) -> None:
    data = batch(3, rows=6)
    generated = score(torch.rand(6, 1), 3, ids=[[5, 6, 7], [5, 2], [5] * 4, [2], [5, 5, 2], [6]], mask_truncated=True)
    finished = torch.tensor([False, True, False, True, True, False])
    lengths = torch.tensor([[3], [2], [4], [1], [3], [1]])
    mask = truncation_mask((torch.arange(4) < lengths).long(), finished)
    assert torch.equal(mask, generated["completion_mask"])
    data = {key: value[:, :4] if value.dim() == 2 else value for key, value in data.items()} | {"mask": mask}
    objective = Objective(name, beta=0.04)
    ours, trls = our_loss(data, objective)[0], trl_loss(data, objective)[0]
    assert_same(ours, trls, data["logps"])


def score(
    rewards: Tensor,
    group: int,
    scale: str = "group",
    aggregation: str = "sum_then_normalize",
    weights: Tensor | None = None,
    ids: list[list[int]] | None = None,
    mask_truncated: bool = False,
    **sampler: Any,
) -> dict[str, Any]:
    """TRL's `_generate_and_score_completions` for given completions, of which rewards [N, R] are given."""
    count = len(rewards)
    ids = ids or [[5, 2]] * count
    logps: Tensor | None = sampler.pop("policy_logps", None)
    sampled: Tensor | None = sampler.pop("sampler_logps", None)
    rows = None if sampled is None else [row[: len(one)].tolist() for row, one in zip(sampled, ids, strict=True)]
    metrics: dict[str, list[float]] = defaultdict(list)
    trainer: Any = SimpleNamespace(
        accelerator=accelerator(),
        model=SimpleNamespace(training=True, gradient_checkpointing=False, is_gradient_checkpointing=False),
        environment_factories=None,
        environments=None,
        tools=None,
        num_generations=group,
        pad_to_multiple_of=None,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        eos_token_ids=[2],
        mask_truncated_completions=mask_truncated,
        num_iterations=1,
        beta=0.0,
        use_vllm=sampled is not None,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_clip_min=None,
        args=SimpleNamespace(
            per_device_train_batch_size=count,
            gradient_checkpointing_kwargs=None,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
        ),
        _generate=lambda prompts: ([[1]] * count, ids, None, ["x"] * count, rows, {}, None, None),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, None, None),
        _calculate_rewards=lambda *_: rewards.clone(),
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        reward_weights=torch.ones(rewards.shape[1], dtype=rewards.dtype) if weights is None else weights,
        reward_funcs=[None] * rewards.shape[1],
        reward_func_names=[f"r{i}" for i in range(rewards.shape[1])],
        _metrics={"train": metrics},
        _logs=defaultdict(list, rewards=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        log_multimodal=False,
        **sampler,
    )
    output = GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": "p"}] * count)
    return {**output, **{name: values[0] for name, values in metrics.items()}}


values = st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 2.5, 4.0, NAN])
sizes = st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(1, 3))


def tensors(shape: tuple[int, ...]) -> st.SearchStrategy[Tensor]:
    count = int(torch.Size(shape).numel())
    numbers = st.lists(values, min_size=count, max_size=count)
    return numbers.map(lambda found: torch.tensor(found, dtype=torch.float64).view(shape))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@given(rewards=sizes.flatmap(lambda size: tensors(size[:2])))
@settings(max_examples=30, deadline=None)
def test_advantages_are_trls(scale: Any, rewards: Tensor) -> None:
    trls = score(rewards.reshape(-1, 1), rewards.shape[1], scale)
    torch.testing.assert_close(group_advantages(rewards, scale).flatten(), trls["advantages"], rtol=1e-6, atol=1e-7)
    if scale != "batch":  # TRL looks at the spread of the batch then, we at that of the groups
        assert zero_spread_share(rewards) == pytest.approx(trls["frac_reward_zero_std"] + nan_groups(rewards))


def nan_groups(rewards: Tensor) -> float:
    """Share of groups with less than two judged completions, which TRL does not count as groups without spread."""
    return ((~rewards.isnan()).sum(dim=1) < 2).double().mean().item()


@given(single=sizes.flatmap(tensors), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_gdpo_advantages_are_trls(single: Tensor, seed: int) -> None:
    weights = torch.rand(single.shape[2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    trls = score(single.flatten(0, 1), single.shape[1], "group", "normalize_then_sum", weights)
    torch.testing.assert_close(gdpo_advantages(single, weights).flatten(), trls["advantages"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("mode", "theirs"), [("truncate", "token_truncate"), ("mask", "token_mask")])
@given(seed=st.integers(0, 10_000), cap=st.sampled_from([1.0, 1.2, 2.0]), holes=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_importance_weights_and_their_metrics_are_trls(
    mode: Any, theirs: str, seed: int, cap: float, holes: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (4, 1), generator=generator)
    lengths[0] = 6
    mask = (torch.arange(6) < lengths).long()
    policy = -torch.rand(4, 6, generator=generator)
    sampler = (policy + 0.5 * torch.randn(4, 6, generator=generator)) * mask
    sampler[0, :holes] = NAN
    trls = score(
        torch.rand(4, 1),
        2,
        ids=[[5] * int(length) for length in lengths],
        policy_logps=policy,
        sampler_logps=sampler,
        vllm_importance_sampling_mode=theirs,
        vllm_importance_sampling_clip_max=cap,
    )
    weights, stats = importance_weights(policy, sampler, mask, mode, cap)
    torch.testing.assert_close(weights, trls["importance_sampling_ratio"], rtol=1e-6, atol=0)
    metrics = stats.metrics()
    assert len(metrics) == 5
    assert metrics == pytest.approx({name: trls[name] for name in metrics}, rel=1e-5)
