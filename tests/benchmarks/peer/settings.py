"""What both sides of a benchmark share: options, prompts, LoRA, the reward, the JSON of one side."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import torch
from PIL import Image

from peer.meter import Meter, memory_mb
from peer.tiny_qwen3vl import QUESTIONS, TinyConfig, synthetic_image

LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
LORA_RANK = 8
BETA = 0.04
END = "<|im_end|>"


def common_options(description: str) -> argparse.ArgumentParser:
    """Options of every script of a side and of the scripts that pair them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--visual-tokens", type=int, default=256, help="tokens of an image, a perfect square")
    parser.add_argument("--steps", type=int, default=6, help="measured optimizer steps")
    parser.add_argument("--warmup", type=int, default=1, help="optimizer steps before the measured ones")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("vocab", "hidden", "layers"):
        parser.add_argument(f"--{name}", type=int, default=getattr(TinyConfig(), name))
    return parser


def grpo_options(description: str) -> argparse.ArgumentParser:
    """Options of the GRPO scripts."""
    parser = common_options(description)
    parser.add_argument("--prompts", type=int, default=4, help="prompts of an optimizer step")
    parser.add_argument("--group", type=int, default=8, help="G, completions of a prompt")
    parser.add_argument("--completion-tokens", type=int, default=64, help="tokens of every completion")
    parser.add_argument("--micro-batch", type=int, default=0, help="TRL: completions of a forward pass; 0 for all")
    return parser


def sft_options(description: str) -> argparse.ArgumentParser:
    """Options of the SFT scripts."""
    parser = common_options(description)
    parser.add_argument("--batch", type=int, default=16, help="samples of an optimizer step")
    parser.add_argument("--completion-min", type=int, default=20, help="tokens of the shortest completion")
    parser.add_argument("--completion-max", type=int, default=120, help="tokens of the longest completion")
    return parser


def set_up(args: argparse.Namespace) -> TinyConfig:
    """Threads and seed; the model's sizes."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return tiny_config(vars(args))


def tiny_config(options: dict[str, Any]) -> TinyConfig:
    """The model's sizes from the options."""
    names = {field.name for field in fields(TinyConfig)}
    sizes = {name: value for name, value in options.items() if name in names}
    return TinyConfig(image_tokens=options["visual_tokens"], **sizes)


def prompts(cfg: TinyConfig, count: int) -> list[tuple[str, Image.Image]]:
    """`count` questions, each with an image of its own."""
    return [(QUESTIONS[index % len(QUESTIONS)], synthetic_image(cfg, index)) for index in range(count)]


def answers(tokenizer: Any, count: int, low: int, high: int, seed: int, reserved: int) -> list[str]:
    """`count` answers whose lengths spread evenly over `low` to `high` tokens.

    Args:
        tokenizer: gives the filler words.
        count: number of answers.
        low: tokens of the shortest, end of turn included.
        high: tokens of the longest.
        seed: of the order of the lengths and of the words.
        reserved: tokens that the side's own template adds (the end of turn).
    """
    rng = np.random.default_rng(seed)
    fillers = sorted(token for token in tokenizer.get_vocab() if token.startswith("<w"))
    lengths = rng.permutation(np.linspace(low, high, count).round().astype(int))
    return ["".join(rng.choice(fillers, length - reserved)) for length in lengths]


def write_result(side: str, args: argparse.Namespace, meter: Meter, start_mb: float, extra: dict[str, Any]) -> None:
    """Print the measurements of one side as one JSON object on stdout."""
    peak = memory_mb()["peak"]
    result = {
        "side": side,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "steps": meter.steps[args.warmup :],
        "start_mb": round(start_mb, 1),
        "peak_over_start_mb": round(peak - start_mb, 1),
        **extra,
    }
    json.dump(result, sys.stdout)
    print(flush=True)
