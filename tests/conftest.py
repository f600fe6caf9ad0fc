"""Settings and fixtures of all tests."""

import os

# Before torch, datasets, transformers or wandb are imported: one thread a worker, and no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

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
