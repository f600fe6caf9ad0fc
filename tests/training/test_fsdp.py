"""FSDP2 on two ranks over gloo: the numbers of DDP, checkpoints for every strategy, collectives that match."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cogalign.models.adapt import set_trainable
from cogalign.models.load import load_model
from cogalign.recipe import ModelSettings
from cogalign.training.consolidate import consolidate, read_meta, read_sharded
from tests.training.fsdp_ranks import apart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


def ranks(what: str, data: Path, out: Path, count: int = 2) -> dict[str, dict[str, Any]]:
    """What two processes found, by rank 0, after both ended well."""
    out.mkdir(parents=True, exist_ok=True)
    arguments = [sys.executable, "-m", "tests.training.fsdp_ranks", what, str(data), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANKS_OF_TEST": str(count)}
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment, timeout=850, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = out / "rank0.jsonl"
    lines = [json.loads(line) for line in found.read_text().splitlines()] if found.is_file() else []
    return {line.pop("name"): line for line in lines}


@pytest.fixture(scope="module")
def compared(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("compared")
    return ranks("compare", phantom_set, out), out


@pytest.fixture(scope="module")
def saved(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("saved")
    return ranks("checkpoints", phantom_set, out), out


@pytest.fixture(scope="module")
def staged(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("staged")
    ranks("stages", phantom_set, out)
    return out


def steps_of(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if "grad_norm" in row]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_stage_under_fsdp2_takes_the_steps_of_ddp(staged: Path, stage: str) -> None:
    # eight roundings of a float32: a sum over two ranks has one order, only passes are added up in another one
    close = partial(pytest.approx, rel=1e-6, abs=1e-6)
    ddp, fsdp2 = (steps_of(staged / name / stage) for name in ("ddp", "fsdp2"))
    assert len(ddp) == len(fsdp2) == {"sft": 2, "grpo": 3}[stage]
    for one, other in zip(ddp, fsdp2, strict=True):
        assert (other["loss"], other["grad_norm"]) == close((one["loss"], one["grad_norm"]))
    adapter = f"{'again' if stage == 'sft' else 'grpo/adapter'}/adapter_model.safetensors"
    expected = load_file(staged / "ddp" / stage / "adapter/adapter_model.safetensors")
    found = load_file(staged / "fsdp2" / adapter)
    # in the 2-norm: where a gradient is next to nothing, its rounding decides about Adam's step of a single weight
    assert apart(expected, found) < 1e-6 and max(float(values.abs().max()) for values in expected.values()) > 0.01


def test_a_stage_goes_on_bit_for_bit_from_a_sharded_checkpoint(staged: Path) -> None:
    straight, again = (staged / "fsdp2" / name / "adapter_model.safetensors" for name in ("straight", "again"))
    assert straight.read_bytes() == again.read_bytes()
    kept = sorted(path.name for path in (staged / "fsdp2/grpo/checkpoints").iterdir())
    assert kept == ["step-00000002.ckpt"] and (staged / "fsdp2/grpo/checkpoints" / kept[0] / ".metadata").is_file()


@pytest.mark.parametrize(("loop", "weights"), [("Sft", "lora"), ("Sft", "all"), ("Grpo", "lora"), ("Grpo", "full")])
def test_fsdp2_trains_the_weights_of_ddp(compared: tuple[dict[str, Any], Path], loop: str, weights: str) -> None:
    found = compared[0][f"{loop} {weights}"]
    assert found["gradient"] < 1e-6  # eight roundings of a float32
    assert found["moved"] > 1e-3 and found["difference"] < 2e-6
    assert found["sharded"] == {"lora": 100, "full": 44, "all": 92}[weights]
    assert found["norms"][1] == pytest.approx(found["norms"][0], rel=1e-5) and len(found["norms"][1]) == 3


def test_sampling_makes_no_collective_so_ranks_may_sample_different_lengths(
    compared: tuple[dict[str, Any], Path],
) -> None:
    rows = [json.loads(line) for line in (compared[1] / "rank1.jsonl").read_text().splitlines()]
    other = {row["name"]: row["lengths"] for row in rows if row["name"].startswith("Grpo")}
    for name, lengths in other.items():
        assert compared[0][name]["lengths"] != lengths  # the ranks themselves assert that nothing was gathered
        assert max(lengths) > 3


def test_bfloat16_is_for_computing_and_the_weights_stay_float32(compared: tuple[dict[str, Any], Path]) -> None:
    assert compared[0]["bf16"]["kept"] == ["torch.float32"]
    # fsdp2 rounds where ddp does: as far from the exact gradient, and apart as two roundings of this size (sqrt 2) at most
    ddp, fsdp2 = compared[0]["bf16"]["far"]
    assert 1e-4 < ddp < 0.1 and fsdp2 < 1.5 * ddp and compared[0]["bf16"]["apart"] < 1.5 * ddp


@pytest.mark.parametrize(
    "way", ["ddp to fsdp2", "fsdp2 to ddp", "fsdp2 to fsdp2", "sharded to fsdp2", "sharded to ddp"]
)
def test_training_goes_on_from_a_checkpoint_of_another_strategy(saved: tuple[dict[str, Any], Path], way: str) -> None:
    assert saved[0][way]["difference"] < 1e-6


def test_one_file_is_made_of_a_sharded_checkpoint(saved: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    file = consolidate(saved[1] / "sharded.ckpt", tmp_path / "one.ckpt")
    one, whole = (torch.load(path, weights_only=True) for path in (file, saved[1] / "fsdp2.ckpt"))
    assert one.keys() == whole.keys() and one["global_step"] == 2
    assert one["state_dict"].keys() == whole["state_dict"].keys()
    assert all(torch.equal(values, whole["state_dict"][name]) for name, values in one["state_dict"].items())
    ours, theirs = one["optimizer_states"][0], whole["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"] and ours["state"].keys() == theirs["state"].keys()
    for name, values in theirs["state"].items():
        assert all(torch.equal(value, ours["state"][name][key]) for key, value in values.items())
    assert [path.name for path in tmp_path.iterdir()] == ["one.ckpt"]


def test_a_sharded_checkpoint_loads_on_another_number_of_ranks(
    saved: tuple[dict[str, Any], Path], phantom_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved[1] / "sharded.ckpt", tmp_path / "sharded.ckpt")
    assert ranks("resharded", phantom_set, tmp_path, 3)["resharded"]["ranks"] == 3
    again, before = (torch.load(path, weights_only=True) for path in (tmp_path / "again.ckpt", saved[1] / "fsdp2.ckpt"))
    for name, values in before["state_dict"].items():
        assert torch.equal(values, again["state_dict"][name])
    for name, values in before["optimizer_states"][0]["state"].items():
        assert all(torch.equal(v, again["optimizer_states"][0]["state"][name][key]) for key, v in values.items())


def test_checkpoints_of_ddp_and_fsdp2_have_one_form(saved: tuple[dict[str, Any], Path]) -> None:
    ddp, fsdp2 = (torch.load(saved[1] / f"{name}.ckpt", weights_only=True) for name in ("ddp", "fsdp2"))
    assert ddp["state_dict"].keys() == fsdp2["state_dict"].keys()
    assert {n: v.shape for n, v in ddp["state_dict"].items()} == {n: v.shape for n, v in fsdp2["state_dict"].items()}
    first, second = ddp["optimizer_states"][0], fsdp2["optimizer_states"][0]
    assert first["state"].keys() == second["state"].keys()
    assert first["param_groups"][0]["params"] == second["param_groups"][0]["params"]


def test_the_adapter_written_at_the_end_holds_the_whole_weights(saved: tuple[dict[str, Any], Path]) -> None:
    loaded = load_model(ModelSettings(name="tiny-random", dtype="float32"), saved[1] / "written/adapter", "cpu")
    set_trainable(loaded)
    expected = torch.load(saved[1] / "weights.pt", weights_only=True)
    found = {f"model.{name}": p for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() and len(found) == 56
    assert all(torch.equal(p, expected[name]) for name, p in found.items())


def test_a_sharded_checkpoint_without_its_files_is_named(saved: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"meta\.pt"):
        read_sharded(tmp_path)
    torch.save({"epoch": 1}, tmp_path / "meta.pt")
    with pytest.raises(ValueError, match="optimizer_groups, wanted a checkpoint that cogalign's fsdp2 wrote"):
        read_meta(tmp_path)
