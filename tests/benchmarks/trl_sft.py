"""TRL's side of `sft_vs_trl.py`: `SFTTrainer` on the tiny Qwen3-VL; one JSON object on stdout."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peer import settings
from peer.meter import Meter, count_processor, count_vision, memory_mb, reset_peak
from peer.tiny_qwen3vl import TinyConfig, build
from peer.trl_common import StepEnd, lora, prompt_table, quiet
from trl import SFTConfig, SFTTrainer

TEMPLATE_TOKENS = 2  # the chat template closes an answer with the end of turn and a line feed


def make_config(args: argparse.Namespace, folder: str) -> SFTConfig:
    """TRL's settings of the same step: loss on the answers, float32, no gradient checkpointing."""
    return SFTConfig(
        **quiet(args, folder),
        per_device_train_batch_size=args.batch,
        completion_only_loss=True,
        max_length=None,
        learning_rate=1e-4,
    )


def keep_first_batch(trainer: SFTTrainer, target: Path) -> None:
    """Write the tensors of the first batch and the loss that TRL computes on it to `target`."""
    inner = trainer.compute_loss

    def keeping(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = inner(model, inputs, *args, **kwargs)
        if not target.exists():
            loss = result[0] if isinstance(result, tuple) else result
            batch = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            torch.save({"batch": batch, "loss": loss.detach().clone()}, target)
        return result

    trainer.compute_loss = keeping


def count_tokens(total: dict[str, float], _model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> None:
    """Count the tokens of a batch: with padding, without, and those with a loss."""
    total["tokens_padded"] += inputs["input_ids"].numel()
    total["tokens_real"] += int(inputs["attention_mask"].sum())
    total["tokens_supervised"] += int((inputs["labels"][:, 1:] != -100).sum())


def train(args: argparse.Namespace, cfg: TinyConfig, meter: Meter, folder: str) -> dict[str, Any]:
    """Train and give back what is not in the meter."""
    model, processor = build(cfg)
    count_vision(meter, model.model.visual)
    count_processor(meter, processor)
    count = args.batch * (args.steps + args.warmup + 1)  # the loader fetches one step ahead
    texts = settings.answers(
        processor.tokenizer, count, args.completion_min, args.completion_max, args.seed, TEMPLATE_TOKENS
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        args=make_config(args, folder),
        train_dataset=prompt_table(settings.prompts(cfg, count), texts),
        peft_config=lora(),
        callbacks=[StepEnd(meter)],
    )
    if args.first_batch:
        keep_first_batch(trainer, args.first_batch)
    meter.wrap(trainer, "training_step", "forward_backward")
    meter.wrap(trainer, "compute_loss", "forward", count_tokens)
    meter.wrap(trainer, "data_collator", "collator")
    reset_peak()
    start = memory_mb()["now"]
    trainer.train()
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {"start": start, "trainable_parameters": trainable}


def main() -> None:
    """Command line."""
    parser = settings.sft_options(__doc__ or "")
    parser.add_argument("--first-batch", type=Path, help="file for the first batch and TRL's loss on it")
    args = parser.parse_args()
    cfg, meter = settings.set_up(args), Meter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        extra = train(args, cfg, meter, folder)
    settings.write_result("trl", args, meter, extra.pop("start"), extra)


if __name__ == "__main__":
    main()
