"""Time and size of a checkpoint: `python tests/benchmarks/checkpoint_cost.py [--json FILE]`.

Trains a tiny and a larger Qwen3-VL for two steps, with LoRA and with all weights, and then saves again and again as
training does it (write, flush to disk, rename). The goal is a size of at most 1.1 times the bytes of the trained weights
and of the optimizer's state. Beside it the checkpoint that transformers' `Trainer`, which TRL uses, writes of the same
model and the same state of the optimizer; it flushes nothing to disk, so its time is given with and without a flush.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from ours_sft import Samples
from peer import settings
from peer.machine import machine, versions
from peer.ours_common import write_cases
from peer.pair import write_json
from peer.tiny_qwen3vl import TinyConfig, build, save

from cogalign.data.collator import SftCollator
from cogalign.data.datamodule import SftData
from cogalign.models.adapt import add_lora
from cogalign.models.load import LoadedModel, load_model
from cogalign.recipe import LoraSettings, ModelSettings, Recipe, SftSettings, TrainerSettings
from cogalign.sft.module import SftModule
from cogalign.training.checkpoints import latest_checkpoint
from cogalign.training.resume import ResumeCheckpoint
from cogalign.training.trainer import build_trainer

GOAL = 1.1
BATCH, STEPS = 2, 2
MEGABYTE = 1e6


class SaveAgain(Callback):
    """Saves `repeats` times after the last step and notes how long each took."""

    def __init__(self, checkpoints: ResumeCheckpoint, repeats: int) -> None:
        self.checkpoints, self.repeats = checkpoints, repeats
        self.seconds: list[float] = []
        self.weight_bytes = self.optimizer_bytes = 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in range(self.repeats):
            start = time.perf_counter()
            self.checkpoints.save(trainer, STEPS + number)
            self.seconds.append(time.perf_counter() - start)
        trained = [weight for weight in pl_module.parameters() if weight.requires_grad]
        self.weight_bytes = sum(weight.nbytes for weight in trained)
        self.optimizer_bytes = sum(
            value.nbytes
            for optimizer in trainer.optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )


def open_model(cfg: TinyConfig, rank: int, folder: Path) -> LoadedModel:
    """The model with LoRA of a rank on its language model; with rank 0 all its weights are trained."""
    save(*build(cfg), folder)
    loaded = load_model(ModelSettings(name=str(folder), dtype="float32"), device="cpu")
    loaded.model.requires_grad_(rank == 0)
    return add_lora(loaded, LoraSettings(r=rank, alpha=2 * rank), seed=0) if rank else loaded


def save_ours(loaded: LoadedModel, cfg: TinyConfig, folder: Path, repeats: int) -> tuple[dict[str, Any], Any]:
    """Train, save, and give the measurements and the optimizer."""
    count = BATCH * (STEPS + 1)
    texts = settings.answers(loaded.tokenizer, count, 4, 8, 0, 1)
    cases = write_cases(settings.prompts(cfg, count), texts, folder)
    data = SftData(Samples(cases, folder), None, SftCollator(loaded.processor, "", 2048), BATCH, STEPS, 0)
    module = SftModule(loaded, SftSettings(steps=STEPS, batch_size=BATCH))
    checkpoints = ResumeCheckpoint(folder, 10**9)
    saves = SaveAgain(checkpoints, repeats)
    recipe = Recipe(trainer=TrainerSettings(accelerator="cpu", precision="32-true", threads=1))
    trainer = build_trainer(recipe, folder=folder, max_steps=STEPS, callbacks=[checkpoints, saves], limit_val_batches=0)
    loaded.model.train()
    trainer.fit(module, data)
    path = latest_checkpoint(folder)
    if path is None:
        raise RuntimeError(f"{folder}: no checkpoint was saved")
    wanted = saves.weight_bytes + saves.optimizer_bytes
    found = {
        "seconds": saves.seconds,
        "median_seconds": statistics.median(saves.seconds),
        "bytes": size(path),
        "weight_bytes": saves.weight_bytes,
        "optimizer_bytes": saves.optimizer_bytes,
        "size_ratio": round(size(path) / wanted, 4),
    }
    return found, trainer.optimizers[0]


def save_transformers(loaded: LoadedModel, optimizer: Any, folder: Path, repeats: int) -> dict[str, Any]:
    """The checkpoint of transformers' Trainer: time without and with a flush of its files, and its size."""
    from transformers import Trainer as HfTrainer
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(folder), report_to=[], save_strategy="no", use_cpu=True)
    plain = torch.optim.AdamW([weight for weight in loaded.model.parameters() if weight.requires_grad])
    plain.state.update(optimizer.state)
    schedule = torch.optim.lr_scheduler.ConstantLR(plain)
    trainer = HfTrainer(model=loaded.model, args=arguments, processing_class=loaded.processor,
                        optimizers=(plain, schedule))  # fmt: skip
    seconds, flushed = [], []
    for number in range(1, repeats + 1):
        trainer.state.global_step = number
        start = time.perf_counter()
        trainer._save_checkpoint(loaded.model, trial=None)
        seconds.append(time.perf_counter() - start)
        for path in (folder / f"checkpoint-{number}").rglob("*"):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
        flushed.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "median_seconds_flushed": statistics.median(flushed),
        "bytes": size(folder / f"checkpoint-{repeats}"),
    }


def size(path: Path) -> int:
    """Bytes of a file or of all files of a folder."""
    return sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file())


def measure(cfg: TinyConfig, rank: int, repeats: int) -> dict[str, Any]:
    """Our checkpoint and transformers' of one model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaded = open_model(cfg, rank, folder / "model")
        (folder / "ours").mkdir()
        ours, optimizer = save_ours(loaded, cfg, folder / "ours", repeats)
        shutil.rmtree(folder / "ours")
        theirs = save_transformers(loaded, optimizer, folder / "transformers", repeats)
    return {
        "ours": ours,
        "transformers": theirs,
        "seconds_ratio": round(theirs["median_seconds"] / ours["median_seconds"], 3),
        "seconds_ratio_flushed": round(theirs["median_seconds_flushed"] / ours["median_seconds"], 3),
        "bytes_ratio": round(theirs["bytes"] / ours["bytes"], 3),
    }


def table(models: dict[str, dict[str, Any]]) -> str:
    """One line a model, in Markdown."""
    lines = [
        "| model | weights + optimizer, MB | checkpoint, MB | ratio | ours, s | transformers, MB | s | s, flushed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in models.items():
        ours, theirs = row["ours"], row["transformers"]
        wanted = (ours["weight_bytes"] + ours["optimizer_bytes"]) / MEGABYTE
        cells = [f"{wanted:.2f}", f"{ours['bytes'] / MEGABYTE:.2f}", f"{ours['size_ratio']:.3f}",
                 f"{ours['median_seconds']:.3f}", f"{theirs['bytes'] / MEGABYTE:.2f}",
                 f"{theirs['median_seconds']:.3f}", f"{theirs['median_seconds_flushed']:.3f}"]  # fmt: skip
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="saves of each model")
    parser.add_argument("--hidden", type=int, default=576, help="hidden size of the larger model")
    parser.add_argument("--layers", type=int, default=8, help="layers of the larger model")
    parser.add_argument("--rank", type=int, default=48, help="rank of the larger model's LoRA")
    parser.add_argument("--json", type=Path, help="file of the result; it is printed without")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiny = TinyConfig(image_tokens=16)
    larger = TinyConfig(image_tokens=16, hidden=options.hidden, intermediate=3 * options.hidden, layers=options.layers)
    wanted = {"tiny, LoRA": (tiny, 8), "tiny, all weights": (tiny, 0),
              "larger, LoRA": (larger, options.rank), "larger, all weights": (larger, 0)}  # fmt: skip
    models = {name: measure(cfg, rank, options.repeats) for name, (cfg, rank) in wanted.items()}
    chosen = {name: value for name, value in vars(options).items() if name != "json"}
    result = {"benchmark": "checkpoint_cost", "settings": chosen, "goal_size_ratio": GOAL, "models": models,
              "versions": versions(), "machine": machine(1)}  # fmt: skip
    write_json(result, options.json)
    print(table(models))


if __name__ == "__main__":
    main()
