"""What our sides of GRPO and SFT share: the tiny model as cogalign opens it, cases, a Trainer that is measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from PIL import Image

from cogalign.data.case import Case
from cogalign.models.adapt import add_lora
from cogalign.models.load import LoadedModel, load_model
from cogalign.recipe import LoraSettings, ModelSettings, Recipe, TrainerSettings
from cogalign.training.callbacks import optimizer_steps
from cogalign.training.trainer import build_trainer
from peer.meter import Meter, count_processor, count_vision
from peer.settings import LORA_RANK
from peer.tiny_qwen3vl import TinyConfig, build, save


class StepEnd(Callback):
    """Closes a step of the meter after every optimizer step."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.meter.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        step = optimizer_steps(trainer, pl_module)
        if step != self._seen:
            metrics: dict[str, float] = getattr(pl_module, "shown_metrics", {})
            self.meter.end_step({name: value for name, value in metrics.items() if name.startswith("time/")})
            self._seen = step


def open_model(cfg: TinyConfig, folder: Path, meter: Meter) -> LoadedModel:
    """The tiny model by way of a folder in hub layout, with LoRA as TRL's side has it; tower and processor counted."""
    save(*build(cfg), folder)
    loaded = load_model(ModelSettings(name=str(folder), dtype="float32"), device="cpu")
    loaded.model.requires_grad_(False)
    loaded = add_lora(loaded, LoraSettings(r=LORA_RANK, alpha=2 * LORA_RANK), seed=cfg.seed)
    count_vision(meter, loaded.core.model.visual)
    count_processor(meter, loaded.processor)
    return loaded


def write_cases(prompts: Sequence[tuple[str, Image.Image]], answers: Sequence[str], folder: Path) -> list[Case]:
    """Cases with images in PNG files below `folder`."""
    cases = []
    for index, (question, image) in enumerate(prompts):
        answer = answers[index] if answers else ""
        image.save(folder / f"{index}.png")
        cases.append(Case(str(index), f"{index}.png", ("normal",), "train", question=question, answer=answer))
    return cases


def read_image(folder: Path, case: Case) -> Image.Image:
    """The image of a case."""
    with Image.open(folder / case.file_name) as image:
        return image.convert("RGB")


def make_trainer(args: argparse.Namespace, meter: Meter, folder: Path, max_steps: int, **options: Any) -> Trainer:
    """cogalign's own Trainer on the CPU, measured."""
    trainer = TrainerSettings(accelerator="cpu", precision="32-true", threads=args.threads)
    recipe = Recipe(trainer=trainer)
    return build_trainer(recipe, folder=folder, max_steps=max_steps, callbacks=[StepEnd(meter)], **options)
