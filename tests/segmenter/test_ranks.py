"""The segmenter on two ranks: one net, one best validation, and a run that was stopped ends as one that was not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cogalign.data.phantom import write_phantom
from cogalign.recipe import PhantomSettings
from tests.segmenter import rank_runs

ROOT = Path(__file__).parents[2]


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Start the two ranks and wait for them."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, rank_runs.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False, cwd=ROOT)


def left_by(folder: Path, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"rank-{rank}.pt", weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_ranks_agree_and_go_on_bit_for_bit_after_one_of_them_was_stopped(tmp_path: Path) -> None:
    data = write_phantom(PhantomSettings(train=14, validation=6, test=0, size=48, seed=5), tmp_path / "data")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = train(whole, data)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (left_by(whole, rank) for rank in (0, 1))
    assert equal(first["weights"], second["weights"]) and first["history"] == second["history"]
    assert len(first["history"]) == 2
    broken = train(stopped, data, "stop")
    assert broken.returncode != 0 and f"step {rank_runs.STOP} is saved" in broken.stderr
    assert f"step-{rank_runs.STOP:08d}.ckpt" in os.listdir(stopped / "segmenter" / "checkpoints")
    again = train(stopped, data)
    assert again.returncode == 0, again.stderr[-3000:]
    for rank in (0, 1):
        resumed = left_by(stopped, rank)
        assert equal(resumed["weights"], first["weights"]) and resumed["history"] == first["history"]
