"""The environment that tools/vllm_environment.py built is the one that constraints-vllm.txt describes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from cogalign.recipe_grpo import VllmSettings

pytestmark = pytest.mark.vllm
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints-vllm.txt"
TAKEN_OUT = {"torchaudio", "torchcodec"}
READ = """
import json
from importlib.metadata import distributions
print(json.dumps({one.metadata["Name"].lower().replace("_", "-"): one.version.partition("+")[0] for one in distributions()}))
"""


def test_the_versions_are_the_pinned_ones(vllm_settings: VllmSettings) -> None:
    lines = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pinned = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}
    command = [str(vllm_settings.python), "-I", "-c", READ]  # not what lies in the current folder
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {name: found.get(name) for name in pinned if name not in TAKEN_OUT} == {
        name: version for name, version in pinned.items() if name not in TAKEN_OUT
    }
    assert not TAKEN_OUT & found.keys()
    assert found.keys() - pinned.keys() <= {"pip", "setuptools"}  # nothing comes in unpinned
