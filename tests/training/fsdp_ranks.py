"""What two ranks do in `test_fsdp`: the same training under ddp and under fsdp2, and what became of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from cogalign.data.caseset import read_case_set
from cogalign.data.collator import SftCollator, question_of
from cogalign.data.datamodule import CaseDataset
from cogalign.generation.sampling import SamplingSettings, sample
from cogalign.grpo import stage as grpo_stage
from cogalign.grpo.scoring import completion_logps
from cogalign.models.adapt import add_lora, save_checkpoint, train_all
from cogalign.models.blocks import configure_sharding, prepare_blocks
from cogalign.models.load import LoadedModel, load_model
from cogalign.models.merged import fused_adapter
from cogalign.models.prompts import encode_prompts
from cogalign.recipe import (
    CustomReward,
    DataSettings,
    GrpoSettings,
    LoraSettings,
    ModelSettings,
    Recipe,
    SftSettings,
    TrackingSettings,
    TrainerSettings,
)
from cogalign.sft import stage as sft_stage
from cogalign.training import sharding
from cogalign.training.checkpoint_content import keep_trainable, name_optimizers
from cogalign.training.checkpoints import StreamedCheckpoints
from cogalign.training.context import StageContext
from cogalign.training.ranks import is_first, together
from cogalign.training.strategies import clip, gathered, gradient_norm, strategy_of
from cogalign.training.trainer import quiet, resolve_precision

RANKS = int(os.environ.get("RANKS_OF_TEST", "2"))
QUESTION, RATE = "What is seen?", 1e-3


def opened(kind: str, settings: TrainerSettings) -> LoadedModel:
    """The tiny model with attention that is not even, with an adapter (that is not zero), or all weights trained."""
    loaded = load_model(ModelSettings(name="tiny-random", dtype="float32"), device="cpu")
    loaded.model.requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, part in loaded.model.named_modules():
            if isinstance(part, nn.Linear) and "lm_head" not in name:
                part.weight.mul_(4.0)
    if kind == "lora":
        add_lora(loaded, LoraSettings(r=4, alpha=8), 3)
        for name, p in loaded.model.named_parameters():
            if "lora_B" in name:
                p.data.normal_(0, 0.05, generator=generator)
    else:
        train_all(loaded, freeze_vision=kind != "all", freeze_projector=kind != "all")
    loaded.model.train()
    return prepare_blocks(loaded, settings, "sft")


class Base(LightningModule):
    """Optimizer and checkpoints as the stages' modules have them."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.strict_loading = False
        self.loaded, self.model, self.norms = loaded, loaded.model, []
        self.first: dict[str, torch.Tensor] = {}

    def note_gradient(self) -> None:
        """Keep the whole gradient of the first step, before it is clipped."""
        if not self.norms:
            self.first = {n: sharding.full(p.grad).clone() for n, p in self.named_parameters() if p.grad is not None}

    def configure_model(self) -> None:
        configure_sharding(self.trainer, self.loaded)

    def configure_optimizers(self) -> Any:
        # large, so that gradients, and no rounding of tiny ones, decide about Adam's steps
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=RATE, eps=1e-4)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trainable(checkpoint, self)
        name_optimizers(checkpoint, self, self.trainer.optimizers)


class Sft(Base):
    """Automatic optimization, with accumulation."""

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        with fused_adapter(self.model) as fused:
            self.fused = fused
            return self.model(**batch, use_cache=False).loss

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:  # fmt: skip
        self.note_gradient()
        before = gradient_norm(self)
        self.norms.append(clip(self, gradient_clip_val))
        assert abs(self.norms[-1] - before) < 1e-4 * before
        assert abs(gradient_norm(self) - min(gradient_clip_val, before)) < 1e-3 * before


class Grpo(Base):
    """Manual optimization: ranks sample different lengths, then take two passes through shared prompts."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.automatic_optimization = False
        self.lengths: list[int] = []

    def training_step(self, prompt: dict[str, torch.Tensor], index: int) -> None:
        rank, gathers = self.global_rank, []
        with counted(gathers), gathered(self):
            before = len(gathers)
            assert bool(before) == sharding.is_sharded(self.loaded.family.text_model(self.loaded.core))
            longest = 3 + 9 * rank  # one rank runs three times as many passes as the other
            how = SamplingSettings(longest, 2)
            rollout = sample(self.loaded, prompt, how, torch.Generator().manual_seed(index * 2 + rank))
            assert len(gathers) == before, "sampling made collectives"
        self.lengths.append(rollout.ids.shape[1])
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        owner = torch.arange(len(rollout.ids)) // 2
        advantage = torch.tensor([1.0, -1.0]).repeat(len(rollout.ids) // 2)[:, None]
        for rows in (slice(0, 2), slice(2, 4)):  # gradient accumulation by hand
            logps, _ = completion_logps(
                self.loaded, self.model, prompt, rollout.ids[rows], rollout.mask[rows], owner[rows], 1.0
            )
            self.manual_backward(-(logps * advantage[rows] * rollout.mask[rows]).sum() / 20)
        self.note_gradient()
        self.norms.append(clip(self, 0.5))
        optimizer.step()


@contextmanager
def counted(calls: list[str]) -> Any:
    """Inside the block every collective is noted in `calls`."""
    kinds = ("all_gather", "_all_gather", "all_reduce", "reduce_scatter", "broadcast", "all_to_all")
    named = {name: getattr(torch.distributed, name) for name in dir(torch.distributed) if name.startswith(kinds)}
    real = {name: function for name, function in named.items() if callable(function)}

    def noting(name: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return real[name](*args, **kwargs)

    for name in real:
        setattr(torch.distributed, name, partial(noting, name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(torch.distributed, name, function)


def batches(folder: Path, loaded: LoadedModel, rank: int, kind: type) -> list[Any]:
    cases = CaseDataset(read_case_set(folder), read_case_set(folder).split("train"))
    found = []
    for step in range(6):
        # equal for all ranks in number, not in content
        pairs = [cases[(step * 4 + rank * 2 + i) % len(cases)] for i in range(2)]
        if kind is Sft:
            found.append(SftCollator(loaded.processor, QUESTION, 2048)(pairs))
        else:
            found.append(dict(encode_prompts(loaded.processor, [i for _, i in pairs], [question_of(c, QUESTION) for c, _ in pairs])))  # fmt: skip
    return found


def train(
    kind: type[Base], weights: str, strategy: str, data: Path, steps: int = 3, precision: str = "32-true",
    start: Path | None = None, save: Path | None = None, **options: Any,
) -> tuple[dict[str, torch.Tensor], Base, Trainer]:  # fmt: skip
    """Trained weights, whole, after `steps` optimizer steps."""
    settings = TrainerSettings(accelerator="cpu", devices=RANKS, strategy=strategy, precision=precision, **options)  # type: ignore[arg-type]
    recipe = Recipe(trainer=settings)
    quiet()
    loaded = opened(weights, settings)
    extra = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5} if kind is Sft else {}
    trainer = Trainer(
        accelerator="cpu", devices=RANKS, strategy=strategy_of(recipe, "sft"), precision=resolve_precision(settings),
        max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False,
        enable_model_summary=False, num_sanity_val_steps=0, plugins=[StreamedCheckpoints()], **extra,
    )  # fmt: skip
    module = kind(loaded)
    every = batches(data, loaded, trainer.global_rank, kind)
    if start is not None:  # Lightning goes on counting, but a plain list begins anew: the third step's batches first
        every = every[4:] + every[:4]
    loader: DataLoader[Any] = DataLoader(every, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=start, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return {n: sharding.full(p).clone() for n, p in module.named_parameters() if p.requires_grad}, module, trainer


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """2-norm of the difference of all together, as a part of that of the first."""
    assert first.keys() == second.keys()
    square = sum(float((first[name] - second[name]).double().square().sum()) for name in first)
    return (square / sum(float(values.double().square().sum()) for values in first.values())) ** 0.5


def compare(data: Path, out: Path) -> None:
    """Training under fsdp2 equals that under ddp, in both loops, for adapters and for full weights."""
    for kind, several in ((Sft, ("lora", "all")), (Grpo, ("lora", "full"))):
        for weights in several:
            expected, first, _ = train(kind, weights, "ddp", data)
            found, second, trainer = train(kind, weights, "fsdp2", data, activation_checkpointing=weights == "lora")
            start = {f"model.{n}": p for n, p in opened(weights, TrainerSettings()).model.named_parameters()}
            note(out, trainer, f"{kind.__name__} {weights}", {
                "difference": furthest(expected, found),
                "gradient": apart(first.first, second.first),
                "moved": furthest(expected, {name: start[name].detach() for name in expected}),
                "norms": [first.norms, second.norms],
                "sharded": sum(isinstance(p, DTensor) for p in second.parameters()),
                "lengths": getattr(second, "lengths", None),
            })  # fmt: skip
    exact, first, second = (
        train(Sft, "lora", strategy, data, 1, precision)[1:]
        for strategy, precision in (("ddp", "32-true"), ("ddp", "bf16-mixed"), ("fsdp2", "bf16-mixed"))
    )
    kept = {str(p.dtype) for p in second[0].parameters() if isinstance(p, DTensor)}
    far = [apart(exact[0].first, one[0].first) for one in (first, second)]
    note(out, second[1], "bf16", {"far": far, "apart": apart(first[0].first, second[0].first), "kept": sorted(kept)})


def checkpoints(data: Path, out: Path) -> None:
    """Two steps and one after a checkpoint equal three straight ones, whichever strategy wrote and read it."""
    weights = "lora"
    expected, _, _ = train(Sft, weights, "fsdp2", data)
    files = {"ddp": out / "ddp.ckpt", "fsdp2": out / "fsdp2.ckpt", "sharded": out / "sharded.ckpt"}
    for name, file in files.items():
        train(Sft, weights, "ddp" if name == "ddp" else "fsdp2", data, 2, save=file, sharded_checkpoints=name == "sharded")  # fmt: skip
    for writer, reader in (
        ("ddp", "fsdp2"),
        ("fsdp2", "ddp"),
        ("fsdp2", "fsdp2"),
        ("sharded", "fsdp2"),
        ("sharded", "ddp"),
    ):
        found, module, trainer = train(Sft, weights, reader, data, start=files[writer])
        note(out, trainer, f"{writer} to {reader}", {"difference": furthest(expected, found)})
    folder = save_checkpoint(module.loaded, out / "written")
    if trainer.is_global_zero:
        torch.save(found, out / "weights.pt")
        note(out, trainer, "written", {"folder": folder.name})


def resharded(data: Path, out: Path) -> None:
    """A checkpoint that two ranks have written, loaded by this number of ranks and written as one file."""
    _, _, trainer = train(Sft, "lora", "fsdp2", data, 2, start=out / "sharded.ckpt", save=out / "again.ckpt")
    note(out, trainer, "resharded", {"ranks": trainer.world_size})


def stages(data: Path, out: Path) -> None:
    """Both stages from a recipe, under ddp and under fsdp2; sft under fsdp2 also from its sharded checkpoint."""
    for strategy in ("ddp", "fsdp2"):
        recipe = Recipe(
            out=str(out / strategy),
            model=ModelSettings(name="tiny-random", dtype="float32"),
            data=DataSettings(case_set=str(data)),
            sft=SftSettings(steps=2, batch_size=2, accumulate=2, validate_every=2, validation_limit=3, checkpoint_every=1, learning_rate=2e-3),
            grpo=GrpoSettings(
                steps=3, prompts_per_step=6, num_generations=3, micro_batch=4, num_iterations=2, learning_rate=2e-3, max_completion_length=5,
                custom_rewards=[CustomReward("tests.grpo.longer.longer_reward")], checkpoint_every=2,
            ),
            trainer=TrainerSettings(
                accelerator="cpu", devices=2, strategy=strategy, precision="32-true", sharded_checkpoints=strategy == "fsdp2",
                activation_checkpointing=strategy == "fsdp2",
            ),
            tracking=TrackingSettings(wandb=False, sample_every=2),
        )  # fmt: skip
        folder = out / strategy
        sft_stage.run(StageContext(recipe, folder, "sft"))
        if strategy == "fsdp2":
            if is_first():
                shutil.move(folder / "sft/adapter", folder / "straight")
                shutil.rmtree(folder / "sft/checkpoints/step-00000002.ckpt")
            together()
            sft_stage.run(StageContext(recipe, folder, "sft"))
            if is_first():  # the same start for grpo, else it multiplies the rounding of sft
                shutil.move(folder / "sft/adapter", folder / "again")
                shutil.copytree(out / "ddp/sft/adapter", folder / "sft/adapter")
            together()
        grpo_stage.run(StageContext(recipe, folder, "grpo"))


def note(out: Path, trainer: Trainer, name: str, found: dict[str, Any]) -> None:
    """One line of a rank's findings."""
    with open(out / f"rank{trainer.global_rank}.jsonl", "a") as file:
        print(json.dumps({"name": name, **found}), file=file)


if __name__ == "__main__":
    {"compare": compare, "checkpoints": checkpoints, "stages": stages, "resharded": resharded}[sys.argv[1]](
        Path(sys.argv[2]), Path(sys.argv[3])
    )
