"""Settings and fixtures of all tests."""

from __future__ import annotations

import os

# Before torch, datasets, transformers or wandb are imported: one thread a worker, and no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from PIL import Image

    from cogalign.models.load import LoadedModel

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that reads photographs, so that `-m "not realdata"` leaves them out."""
    for item in items:
        if "realdata" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.realdata)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of real photographs (COGALIGN_REALDATA, else ../shared/realdata); the test is skipped without it."""
    folder = Path(os.environ.get("COGALIGN_REALDATA") or ROOT.parent / "shared" / "realdata")
    if not (folder / "Kvasir-SEG").is_dir():
        pytest.skip(f"no photographs in {folder}; set COGALIGN_REALDATA")
    return folder


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The tiny architecture on the CPU with large random weights; shared by all tests, none changes it.

    With its own small initial weights attention is nearly even and the model repeats its last token, so that a
    wrong position or a hidden token would hardly show.
    """
    import torch
    from torch import nn

    from cogalign.models.load import load_model
    from cogalign.recipe import ModelSettings

    loaded = load_model(ModelSettings(name="tiny-random", dtype="float32"), device="cpu")
    with torch.no_grad():
        for name, part in loaded.model.named_modules():
            if isinstance(part, nn.Linear) and "lm_head" not in name:
                part.weight.mul_(6.0)
        loaded.model.model.language_model.norm.weight.mul_(8.0)  # likelihoods that differ
    return loaded


@pytest.fixture
def own_tiny(tiny: LoadedModel) -> LoadedModel:
    """A copy of `tiny` that a test may change."""
    import copy

    return type(tiny)(copy.deepcopy(tiny.model), tiny.processor, tiny.family)


@pytest.fixture
def adapted(own_tiny: LoadedModel) -> LoadedModel:
    """`own_tiny` with an adapter that is not zero, all in eval mode."""
    import torch

    from cogalign.models.adapt import add_lora
    from cogalign.recipe import LoraSettings

    loaded = add_lora(own_tiny, LoraSettings(r=4, alpha=8), seed=1)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Four images of different looks and sizes; the processor gives them different numbers of visual tokens."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(7)
    sizes = ((128, 128), (64, 200), (90, 128), (150, 70))
    return [
        Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)).resize((width, height), 0)
        for height, width in sizes
    ]


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """Four questions of different lengths."""
    return [
        "What?",
        "Based on the image, what is the diagnosis?",
        "Describe what is seen in the image.",
        "Where does it lie, how large is it, and what does its surface look like?",
    ]


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small case set of phantoms with clinical reports."""
    from cogalign.data.phantom import write_phantom
    from cogalign.recipe import PhantomSettings

    settings = PhantomSettings(train=20, validation=4, test=4, size=64, seed=5)
    return write_phantom(settings, tmp_path_factory.mktemp("phantoms") / "data")
