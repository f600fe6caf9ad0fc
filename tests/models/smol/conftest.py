"""A twin of smol, written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cogalign.models.smol.assemble import assemble_twin


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Three images of different sizes and shapes."""
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in ((40, 70), (64, 64), (90, 50))
    ]


@pytest.fixture(scope="session")
def twin_folder(tmp_path_factory: pytest.TempPathFactory, images: list[Image.Image]) -> Path:
    """The twin in hub layout, float32; no test changes it."""
    folder = tmp_path_factory.mktemp("smol") / "twin"
    assemble_twin(folder, images, "random images")
    return folder
