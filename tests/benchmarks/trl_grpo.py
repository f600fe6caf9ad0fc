"""TRL's side of `grpo_vs_trl.py`: `GRPOTrainer` on the tiny Qwen3-VL; one JSON object on stdout."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from typing import Any

import torch
from peer import settings
from peer.meter import Meter, count_processor, count_vision, memory_mb, reset_peak
from peer.reward import even_token_reward
from peer.tiny_qwen3vl import TinyConfig, build
from peer.trl_common import StepEnd, lora, prompt_table, quiet
from trl import GRPOConfig, GRPOTrainer


def make_config(args: argparse.Namespace, folder: str) -> GRPOConfig:
    """TRL's settings of the same step: on-policy, KL by the base weights, float32, no gradient checkpointing."""
    batch = args.prompts * args.group
    micro = args.micro_batch or batch
    return GRPOConfig(
        **quiet(args, folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        num_generations=args.group,
        max_completion_length=args.completion_tokens,
        generation_kwargs={"min_new_tokens": args.completion_tokens},
        temperature=1.0,
        beta=settings.BETA,
        num_iterations=1,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=1e-5,
    )


def instrument(trainer: GRPOTrainer, meter: Meter) -> None:
    """Time the trainer's phases by wrapping its methods."""
    meter.wrap(trainer, "_generate_single_turn", "sampling")
    meter.wrap(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda: "policy_forward" if torch.is_grad_enabled() else "scoring",
    )
    meter.wrap(trainer, "_prepare_inputs", "rollout")  # sampling, scoring, processor, rewards
    meter.wrap(trainer, "training_step", "training_step")  # rollout, then forward and backward


def train(args: argparse.Namespace, cfg: TinyConfig, meter: Meter, folder: str) -> dict[str, Any]:
    """Train and give back what is not in the meter."""
    model, processor = build(cfg)
    count_vision(meter, model.model.visual)
    count_processor(meter, processor)
    count = args.prompts * (args.steps + args.warmup + 1)  # the loader fetches one step ahead
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=even_token_reward,
        args=make_config(args, folder),
        train_dataset=prompt_table(settings.prompts(cfg, count)),
        peft_config=lora(),
        callbacks=[StepEnd(meter)],
    )
    instrument(trainer, meter)
    reset_peak()
    start = memory_mb()["now"]
    trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {"start": start, "mean_completion_length": sum(lengths) / len(lengths), "trainable_parameters": trainable}


def main() -> None:
    """Command line."""
    args = settings.grpo_options(__doc__ or "").parse_args()
    cfg, meter = settings.set_up(args), Meter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        extra = train(args, cfg, meter, folder)
    for step in meter.steps:
        for unit in ("s", "wall_s"):
            step[f"update_{unit}"] = step[f"training_step_{unit}"] - step[f"rollout_{unit}"]
    settings.write_result("trl", args, meter, extra.pop("start"), extra)


if __name__ == "__main__":
    main()
