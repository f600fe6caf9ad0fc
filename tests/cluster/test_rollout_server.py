"""The process that becomes vLLM's server: what it has to know of the SFT model, and how it starts."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cogalign.cluster.rollout_server import main, server_of, server_settings
from cogalign.models.adapt import add_lora, save_checkpoint
from cogalign.models.load import LoadedModel
from cogalign.recipe import LoraSettings, ModelSettings, Recipe
from cogalign.recipe_file import recipe_yaml

PYTHON = """#!/bin/bash
printf '%s\\n' "$@" >"{folder}/arguments.part"
env >"{folder}/variables"
mv "{folder}/arguments.part" "{folder}/arguments"
sleep 30
"""


@pytest.fixture
def recipe(tiny: LoadedModel, tmp_path: Path) -> Recipe:
    """A run whose SFT stage has left an adapter of rank 12."""
    loaded = LoadedModel(copy.deepcopy(tiny.model), tiny.processor, tiny.family)
    save_checkpoint(add_lora(loaded, LoraSettings(r=12), seed=1), tmp_path / "run" / "sft")
    python = tmp_path / "python"
    python.write_text(PYTHON.format(folder=tmp_path))
    python.chmod(0o755)
    recipe = Recipe(out=str(tmp_path / "run"), model=ModelSettings(name="tiny-random"))
    recipe.grpo.vllm = replace(recipe.grpo.vllm, python=str(python), arguments=["--max-model-len", "99"])
    return recipe


def pairs(command: list[str]) -> dict[str, str]:
    """The last value of each option, as argparse takes it."""
    return {word: command[index + 1] for index, word in enumerate(command[:-1]) if word.startswith("--")}


def test_the_server_fits_the_adapter_and_is_reached_from_other_nodes(recipe: Recipe) -> None:
    settings = server_settings(recipe.grpo.vllm, None, 2, ["--seed", "5"])
    command, variables = server_of(recipe, settings, 8123)
    options = pairs(command)
    assert command[0] == recipe.grpo.vllm.python
    assert (options["--host"], options["--port"]) == ("0.0.0.0", "8123")
    assert options["--max-lora-rank"] == "16"  # the next one that vLLM has
    assert (options["--tensor-parallel-size"], options["--max-model-len"], options["--seed"]) == ("2", "99", "5")
    assert (Path(options["--model"]) / "config.json").is_file()
    assert variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_a_recipe_s_own_arguments_win(recipe: Recipe) -> None:
    recipe.grpo.vllm.arguments = ["--tensor-parallel-size", "1"]
    assert pairs(server_settings(recipe.grpo.vllm, None, 4, []).arguments)["--tensor-parallel-size"] == "1"
    assert server_settings(recipe.grpo.vllm, "/other", 4, []).python == "/other"


def test_it_becomes_the_server_and_a_warning_of_slurm_does_not_end_it(recipe: Recipe, tmp_path: Path) -> None:
    """SLURM sends USR1 to all steps before the time limit; the training needs the server until it has saved."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_yaml(recipe))
    words = [
        sys.executable,
        "-m",
        "cogalign.cluster.rollout_server",
        str(path),
        "--port",
        "8124",
        "--argument=--seed",
        "--argument=7",
    ]
    process = subprocess.Popen(words, env={**os.environ, "MASTER_PORT": "1", "RANK": "0"}, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while not (tmp_path / "arguments").is_file():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        assert process.poll() is None  # the same process, now the server
        arguments = (tmp_path / "arguments").read_text().split("\n")
        assert arguments[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
        assert pairs(arguments)["--seed"] == "7"
        assert not {"MASTER_PORT=1", "RANK=0"} & set((tmp_path / "variables").read_text().splitlines())
    finally:
        process.kill()
        process.wait()


def test_what_is_missing_is_said_in_one_message(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    recipe.out = str(tmp_path / "elsewhere")
    path.write_text(recipe_yaml(recipe))
    before = signal.getsignal(signal.SIGUSR1)
    try:
        assert main([str(path), "--port", "1"]) == 1
        assert "run the stage sft first" in capsys.readouterr().err
        assert main([str(path), "--port", "1", "--python", "/nowhere"]) == 1
        assert "grpo.vllm.python: found /nowhere, wanted the Python" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGUSR1, before)
