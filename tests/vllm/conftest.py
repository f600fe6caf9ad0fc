"""A real vLLM server with the tiny model, started once for a module; skipped where its environment is not built."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cogalign.generation.vllm_sampler import VllmSampler
from cogalign.generation.vllm_server import VllmServer
from cogalign.models.adapt import add_lora
from cogalign.models.load import LoadedModel
from cogalign.recipe import LoraSettings
from cogalign.recipe_grpo import VllmSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def vllm_settings() -> VllmSettings:
    """Settings that start a server on this machine."""
    python = Path(os.environ.get("COGALIGN_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")
    if not python.is_file():
        pytest.skip(f"no vLLM: {python} is not there; make setup-vllm, or set COGALIGN_VLLM_PYTHON")
    return VllmSettings(python=str(python), request_timeout=120.0, retries=2)


def shake_adapter(loaded: LoadedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="session")
def shake() -> Callable[[LoadedModel, int], None]:
    """Gives an adapter weights that are not zero, from a seed."""
    return shake_adapter


@pytest.fixture(scope="module")
def policy(tiny: LoadedModel) -> LoadedModel:
    """The tiny model, which has no files of its own, with an adapter that tests may change."""
    loaded = LoadedModel(copy.deepcopy(tiny.model), tiny.processor, tiny.family)
    loaded = add_lora(loaded, LoraSettings(r=4, alpha=8), seed=1)
    shake_adapter(loaded, 5)
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="module")
def server(
    policy: LoadedModel, vllm_settings: VllmSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServer]:
    """A healthy server of this module."""
    with VllmServer(vllm_settings, policy, tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def sampler(
    policy: LoadedModel, server: VllmServer, vllm_settings: VllmSettings, tmp_path: Path
) -> Iterator[VllmSampler]:
    """A sampler whose server has the policy's adapter as it is."""
    made = VllmSampler(policy, server, vllm_settings)
    made.sync(tmp_path / "adapters")
    yield made
    made.close()
