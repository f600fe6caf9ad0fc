from pathlib import Path

import pytest
import torch

from cogalign.recipe import Recipe, TrainerSettings
from cogalign.training.trainer import build_trainer, processes, resolve_precision, uses_gpu


def test_the_trainer_has_none_of_lightnings_own_checkpoints_bars_and_samplers(tmp_path: Path) -> None:
    trainer = build_trainer(Recipe(trainer=TrainerSettings(accelerator="cpu")), folder=tmp_path, max_steps=3)
    assert trainer.max_steps == 3
    assert trainer.checkpoint_callbacks == []
    assert trainer.progress_bar_callback is None
    assert trainer.loggers == []
    assert trainer.num_sanity_val_steps == 0
    assert not trainer._accelerator_connector.use_distributed_sampler


def test_on_a_cpu_precision_is_32_bits() -> None:
    settings = TrainerSettings(accelerator="cpu")
    assert not uses_gpu(settings)
    assert resolve_precision(settings) == "32-true"


def test_on_a_gpu_with_bfloat16_precision_is_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_precision(TrainerSettings()) == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_precision(TrainerSettings()) == "32-true"


def test_a_given_precision_is_kept() -> None:
    assert resolve_precision(TrainerSettings(accelerator="cpu", precision="bf16-mixed")) == "bf16-mixed"


def test_threads_are_set(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        build_trainer(Recipe(trainer=TrainerSettings(accelerator="cpu", threads=2)), folder=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("devices", "wanted"), [("auto", 1), ("3", 3), (2, 2)])
def test_work_on_the_cpu_has_as_many_processes_as_devices(devices: int | str, wanted: int) -> None:
    assert processes(TrainerSettings(devices=devices)) == wanted
