"""SIGTERM to one rank of several while Lightning has the signals: no conversation with the others is begun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader
from cogalign.recipe import Recipe
from cogalign.training.interrupt import Interrupted, signals_interrupt
from cogalign.training.trainer import build_trainer

class Module(LightningModule):
    def predict_dataloader(self):
        return DataLoader([1])

    def predict_step(self, batch, batch_idx):
        if self.trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        print("waiting", flush=True)
        time.sleep(300)

recipe = Recipe()
recipe.trainer.devices, recipe.trainer.accelerator = 2, "cpu"
try:
    with signals_interrupt():
        build_trainer(recipe, folder=Path(sys.argv[1])).predict(Module(), return_predictions=False)
except Interrupted as stopped:
    print("stopped by", stopped, flush=True)
    os._exit(0)
"""


@pytest.mark.timeout(300)
def test_a_rank_that_gets_sigterm_ends_without_waiting_for_one_that_does_not(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2",
                 "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert "stopped by SIGTERM" in ranks[0].communicate(timeout=180)[0]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
