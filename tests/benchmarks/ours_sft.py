"""Our side of `sft_vs_trl.py`: `SftModule` on the tiny Qwen3-VL; one JSON object on stdout."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peer import settings
from peer.meter import Meter, memory_mb, reset_peak
from peer.ours_common import make_trainer, open_model, read_image, write_cases
from peer.tiny_qwen3vl import TinyConfig
from PIL import Image
from torch.utils.data import Dataset

from cogalign.data.case import Case
from cogalign.data.collator import SftCollator
from cogalign.data.datamodule import SftData
from cogalign.recipe import SftSettings
from cogalign.sft.module import SftModule

END_TOKENS = 1  # an answer is closed by the end of turn


class Samples(Dataset[tuple[Case, Image.Image]]):
    """Cases with their images, decoded when they are asked for."""

    def __init__(self, cases: list[Case], folder: Path) -> None:
        self.cases, self.folder = cases, folder

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Case, Image.Image]:
        return self.cases[index], read_image(self.folder, self.cases[index])


def count_tokens(total: dict[str, float], batch: dict[str, Any], *_: Any) -> None:
    """Count the tokens of a batch: with padding, without, and those with a loss."""
    total["tokens_padded"] += batch["input_ids"].numel()
    total["tokens_real"] += int(batch["attention_mask"].sum())
    total["tokens_supervised"] += int((batch["labels"] != -100).sum())


def difference_from_trl(module: SftModule, file: Path) -> float:
    """Relative difference of our loss from TRL's on TRL's first batch; both adapters are zero there."""
    kept = torch.load(file, weights_only=True)
    with torch.no_grad():
        ours = module._loss(kept["batch"])
    return float((ours - kept["loss"]).abs() / kept["loss"].abs())


def train(args: argparse.Namespace, cfg: TinyConfig, meter: Meter, folder: Path) -> dict[str, Any]:
    """Train and give back what is not in the meter."""
    loaded = open_model(cfg, folder / "model", meter)
    total = args.steps + args.warmup
    count = args.batch * (total + 1)
    texts = settings.answers(loaded.tokenizer, count, args.completion_min, args.completion_max, args.seed, END_TOKENS)
    cases = write_cases(settings.prompts(cfg, count), texts, folder)
    samples = Samples(cases, folder)
    chosen = SftSettings(steps=total, batch_size=args.batch, learning_rate=1e-4, group_by_length=True)
    collate = SftCollator(loaded.processor, "", 2048)
    lengths = collate.text_lengths(cases) if chosen.group_by_length else None
    data = SftData(samples, None, collate, args.batch, total, args.seed, lengths=lengths)
    module = SftModule(loaded, chosen)
    extra = {"loss_difference": difference_from_trl(module, args.first_batch)} if args.first_batch else {}
    meter.wrap(module, "training_step", "forward", count_tokens)
    meter.wrap(data, "collate", "collator")
    trainer = make_trainer(args, meter, folder, total, gradient_clip_val=1.0, limit_val_batches=0)
    loaded.model.train()
    reset_peak()
    start = memory_mb()["now"]
    trainer.fit(module, data)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {"start": start, "trainable_parameters": trainable, **extra}


def main() -> None:
    """Command line."""
    parser = settings.sft_options(__doc__ or "")
    parser.add_argument("--first-batch", type=Path, help="file of TRL's first batch, to compare the loss on it")
    args = parser.parse_args()
    cfg, meter = settings.set_up(args), Meter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        extra = train(args, cfg, meter, Path(folder))
    settings.write_result("ours", args, meter, extra.pop("start"), extra)


if __name__ == "__main__":
    main()
