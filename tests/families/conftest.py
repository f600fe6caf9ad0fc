"""Twins of all families, and prompts with several images of different sizes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cogalign.models.load import LoadedModel
from tests.families import twins

_BUILT: dict[str, LoadedModel] = {}


def built(name: str) -> LoadedModel:
    """The twin `name`, made once; no test changes it."""
    if name not in _BUILT:
        _BUILT[name] = twins.build(name)
    return _BUILT[name]


@pytest.fixture(scope="session", params=twins.NAMES)
def twin(request: pytest.FixtureRequest) -> LoadedModel:
    """Each family in turn."""
    return built(request.param)


@pytest.fixture(scope="session", params=twins.ADAPTED)
def adapted_twin(request: pytest.FixtureRequest) -> LoadedModel:
    """Each family with an adapter of its own in turn."""
    return built(request.param)


@pytest.fixture(scope="session")
def gemma() -> LoadedModel:
    """The family without an adapter of its own."""
    return built("gemma3")


@pytest.fixture(scope="session")
def image_rows() -> list[list[Image.Image]]:
    """Images of four prompts: one or two each, of different sizes."""
    rng = np.random.default_rng(7)
    sizes = ((64, 64), (32, 96), (96, 40), (48, 80), (64, 64))
    a, b, c, d, e = (
        Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)).resize((width, height), 0)
        for height, width in sizes
    )
    return [[a], [b, c], [d], [e, a]]
