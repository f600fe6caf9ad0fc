"""What TRL's sides of GRPO and SFT share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from datasets import Image as ImageFeature
from peft import LoraConfig
from PIL import Image
from transformers import TrainerCallback

from peer.meter import Meter
from peer.settings import LORA_RANK, LORA_TARGETS


class StepEnd(TrainerCallback):
    """Closes a step of the meter after every optimizer step."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.meter.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.meter.end_step()


def quiet(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Settings of either trainer: float32 on the CPU, no gradient checkpointing, nothing written or logged on the way."""
    total = args.steps + args.warmup
    return {
        "output_dir": folder,
        "max_steps": total,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": total,
        "disable_tqdm": True,
        "seed": args.seed,
    }


def lora() -> LoraConfig:
    """LoRA on every linear layer of the language model; the vision tower stays frozen."""
    return LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
    )


def prompt_table(prompts: Sequence[tuple[str, Image.Image]], completions: Sequence[str] = ()) -> Dataset:
    """Conversational rows with one image each (stored as PNG), with completions if there are any."""
    rows: dict[str, list[Any]] = {
        "prompt": [[{"role": "user", "content": question}] for question, _ in prompts],
        "image": [image for _, image in prompts],
    }
    if completions:
        rows["completion"] = [[{"role": "assistant", "content": text}] for text in completions]
    return Dataset.from_dict(rows).cast_column("image", ImageFeature())
