"""The numbers of stage 1 do not depend on ranks, forward passes and batch sizes, and a checkpoint changes them at will."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cogalign.recipe import SftSettings
from cogalign.sft.passes import passes_of
from cogalign.training.tracking import read_rows
from tests.sft import rank_runs
from tests.sft.rank_runs import HALF, STEPS, take_over

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, phantom_set: Path) -> Path:
    """The same training in five ways, each in a folder of this one."""
    base = tmp_path_factory.mktemp("ranks")
    rank_runs.train(base / "1x8", phantom_set, 1, 8)
    rank_runs.train(base / "1x2", phantom_set, 1, 2)
    take_over(base / "1x2", base / "1-then-2")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, rank_runs.__file__, str(base), str(phantom_set)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "written by 1 processes, these are 2" in done.stderr and f"going on after step {HALF}" in done.stderr
    rank_runs.train(take_over(base / "2x2", base / "2-then-1"), phantom_set, 1, 2)
    return base


def gradient(out: Path, step: int, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(out / f"gradient-{step}-of-rank-{rank}.pt", weights_only=True)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm."""
    assert one.keys() == other.keys()
    norm = torch.stack([value.double().square().sum() for value in one.values()]).sum()
    apart = torch.stack([(one[name].double() - other[name].double()).square().sum() for name in one]).sum()
    return float((apart / norm).sqrt())


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "sft/adapter/adapter_model.safetensors")


def rows(out: Path) -> list[dict[str, str]]:
    return read_rows(out / "sft/metrics.csv")[1]


WAYS = ["1x2", "2x2", "2x4"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_a_step_does_not_depend_on_ranks_and_passes(runs: Path, way: str) -> None:
    assert difference(gradient(runs / "1x8", 1), gradient(runs / way, 1)) < 1e-6
    if way.startswith("2"):
        for step in range(1, STEPS + 1):
            assert difference(gradient(runs / way, step), gradient(runs / way, step, rank=1)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", [*WAYS, "1-then-2", "2-then-1"])
def test_loss_norm_and_tokens_of_every_step_do_not_either(runs: Path, way: str) -> None:
    for row, wanted in zip(rows(runs / way), rows(runs / "1x8"), strict=True):
        assert row["step"] == wanted["step"] and row["num_tokens"] == wanted["num_tokens"]
        for name in {"loss", "grad_norm", "learning_rate", "eval_loss"} & wanted.keys():
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=2e-6), (row["step"], name)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "like"), [("1-then-2", "1x2"), ("2-then-1", "2x2")])
def test_a_run_that_goes_on_with_other_ranks_ends_with_the_same_weights(runs: Path, way: str, like: str) -> None:
    assert difference(gradient(runs / like, HALF + 1), gradient(runs / way, HALF + 1)) < 1e-6
    assert difference(weights(runs / like), weights(runs / way)) < 1e-5
    assert difference(weights(runs / "1x8"), weights(runs / way)) < 1e-5


def settings(**fields: Any) -> SftSettings:
    return SftSettings(**{"batch_size": 16, "global_batch": 128, **fields})


def test_the_passes_follow_from_the_global_batch() -> None:
    assert [passes_of(settings(), devices) for devices in (1, 2, 4, 8)] == [8, 4, 2, 1]
    assert passes_of(settings(global_batch=None, accumulate=3), 5) == 3


def test_a_global_batch_that_cannot_be_had_is_refused_with_the_nearest_that_can() -> None:
    wanted = r"found 128, .* 16 x 3 = 48; nearest that work: 2 or 4 devices with sft.batch_size 16; sft.global_batch 96 or 144"
    with pytest.raises(ValueError, match=wanted):
        passes_of(settings(), 3)
    with pytest.raises(ValueError, match=r"work: sft.batch_size 8 or 16 on 4 devices; sft.global_batch 48 or 96$"):
        passes_of(settings(batch_size=12, global_batch=64), 4)
    with pytest.raises(
        ValueError, match=r"work: sft.batch_size 2 on 2 devices; 1 devices with .* 4; sft.global_batch 8$"
    ):
        passes_of(settings(batch_size=4, global_batch=4), 2)
