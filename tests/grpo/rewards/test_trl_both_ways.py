"""Our rewards in TRL's own trainer, TRL's rewards in our pool; TRL itself runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from cogalign.cognition.keywords import extract
from cogalign.cognition.report import Report, render
from cogalign.grpo.rewards import REWARDS, build_rewards, score
from cogalign.grpo.rewards.pool import RewardPool
from cogalign.models.tiny import packaged_base
from cogalign.recipe import CustomReward, GrpoSettings, RewardWeights

REPORT = Report("Colon, white light, clean", "Sessile lesion with sharp border", "Villous pits, no erosion", ("polyp",))


def row(case: str, source: str | None, what: str | None, finding: str) -> dict[str, Any]:
    return {"prompt": "Polyp?", "id": case, "counterfactual_of": source, "intervention": what, "organ": "colon",
            "findings": [finding], "keywords": extract(REPORT), "answer": render(REPORT)}  # fmt: skip


def test_all_our_rewards_run_in_trls_trainer(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(packaged_base())
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    rows = [row("a", None, None, "polyp"), row("a-cf", "a", "removal", "normal")]
    arguments = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_completion_length=4, max_steps=1,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1, bf16=False,
        reward_weights=[1.0] * len(REWARDS), shuffle_dataset=False,
    )  # fmt: skip
    length = partial(REWARDS["length"], length_target=2, max_completion_length=4)
    functions = [*(reward for name, reward in REWARDS.items() if name != "length"), length]
    trainer = GRPOTrainer(
        Qwen2ForCausalLM(config), functions, arguments, Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    means = {name.split("/")[1] for name in logged if name.startswith("rewards/") and name.endswith("/mean")}
    assert means == {f"{name}_reward" for name in REWARDS}
    assert all(0 <= logged[f"rewards/{name}/mean"] <= 1 for name in means)


def test_trls_own_rewards_run_in_our_pool() -> None:
    settings = GrpoSettings(custom_rewards=[CustomReward("trl.rewards.think_format_reward")])
    rewards = build_rewards(settings) | {
        "overlong": get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2),
        "repetition": get_repetition_penalty_reward(ngram_size=2),
    }
    chats = [[{"role": "assistant", "content": text}] for text in ("<think>\na fold\n</think>\nPolyp", render(REPORT))]
    columns = {"findings": [["polyp"]] * 2, "keywords": [extract(REPORT)] * 2}
    with RewardPool(rewards, 1, 60.0) as pool:
        result = pool.submit(chats, columns, completion_ids=[[1, 2], [5, 5, 5, 5]]).collect()
    assert result.errors == []
    assert result.values["think_format_reward"] == [1.0, 0.0]
    assert result.values["overlong"] == [0.0, -1.0]
    assert result.values["repetition"] == pytest.approx([0.0, -2 / 3])
    assert [result.values[name][1] for name in ("format", "cognition", "diagnosis")] == [1.0, 1.0, 1.0]
    _, single = score(chats, columns, RewardWeights())
    assert single.T.tolist() == [pytest.approx(result.values[name]) for name in ("format", "cognition", "diagnosis")]


def test_trls_own_rewards_run_in_this_process() -> None:
    total, single = score(
        [[{"role": "assistant", "content": "<think>\na\n</think>\nb"}], [{"role": "assistant", "content": "b"}]],
        {},
        {"think": 1.0},
        rewards={"think": think_format_reward},
    )
    assert single.tolist() == [[1.0], [0.0]] and total.tolist() == [1.0, 0.0]
