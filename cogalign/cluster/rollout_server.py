"""`python -m cogalign.cluster.rollout_server RECIPE --port P`: become the vLLM server of a recipe's GRPO stage.

It opens the SFT model for what the server has to know of it (type, rank of the adapter, limits of the images), lets go of
it, and turns into vLLM's server, which other nodes reach. Adapters come by path, so the run's folder must be shared.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cogalign.recipe import Recipe, VllmSettings
from cogalign.recipe_file import read_recipe

ALL_ADDRESSES = "0.0.0.0"


def main(argv: Sequence[str] | None = None) -> int:
    """Start the server in the place of this process; gives back 1 if it cannot be started."""
    parser = argparse.ArgumentParser(prog="cogalign.cluster.rollout_server")
    parser.add_argument("recipe", type=Path, help="the resolved recipe of the run")
    parser.add_argument("--port", type=int, required=True, help="port of the server")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs over which the model is divided")
    parser.add_argument("--python", default=None, help="Python that holds vLLM; by default grpo.vllm.python")
    parser.add_argument("--argument", action="append", default=[], help="one more argument of vLLM's server")
    found = parser.parse_args(argv)
    # told to the steps of a job before its time limit: the training saves, and needs the server until then
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        recipe = read_recipe(found.recipe)
        settings = server_settings(recipe.grpo.vllm, found.python, found.gpus, found.argument)
        command, variables = server_of(recipe, settings, found.port)
    except (ValueError, OSError) as error:
        print(f"cogalign: error: {error}", file=sys.stderr)
        return 1
    print(f"cogalign: {' '.join(command)}", flush=True)
    os.execvpe(command[0], command, variables)


def server_settings(settings: VllmSettings, python: str | None, gpus: int, arguments: Sequence[str]) -> VllmSettings:
    """The recipe's settings for a server that other nodes reach; what the recipe and the profile say comes last."""
    own = ["--host", ALL_ADDRESSES, *(["--tensor-parallel-size", str(gpus)] if gpus > 1 else [])]
    return replace(settings, python=python or settings.python, arguments=[*own, *settings.arguments, *arguments])


def server_of(recipe: Recipe, settings: VllmSettings, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line of the server and its environment.

    Raises:
        FileNotFoundError: the SFT model is not there yet, or no Python with vLLM.
        ValueError: the model has no adapter.
    """
    from cogalign.generation.vllm_server import (
        MODEL_FOLDER,
        base_model,
        require_adapter,
        require_python,
        server_command,
        server_environment,
    )
    from cogalign.models.load import load_model
    from cogalign.training.context import StageContext

    require_python(settings)
    context = StageContext(recipe, recipe.run_dir, "grpo")
    loaded = load_model(recipe.model, context.checkpoint("sft"), device="cpu")
    require_adapter(loaded)
    # not where a training that starts its own server writes: two must not write at once
    model = base_model(loaded, recipe.run_dir / "slurm" / MODEL_FOLDER)
    command = server_command(settings, loaded, model, port)
    revision = ["--revision", recipe.model.revision] if recipe.model.revision else []
    return [*command, *revision], server_environment()


if __name__ == "__main__":
    raise SystemExit(main())
