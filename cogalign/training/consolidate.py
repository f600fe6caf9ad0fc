"""Sharded checkpoints: a folder into which every rank writes its part (torch's DCP), and one file made of it.

`meta.pt` holds all of a checkpoint but weights and optimizer states, and which parameters the optimizers know. The
folder loads on any number of ranks.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cogalign.training.atomic import atomic_file
from cogalign.training.checkpoint_content import META, canonical
from cogalign.training.ranks import by_first

GROUPS = "optimizer_groups"
OWN = ("params", "foreach", "fused", "capturable")
"""Settings of a group of parameters that belong to the strategy, not to the checkpoint."""


def save_sharded(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write this rank's part of a checkpoint; all ranks call it.

    Args:
        checkpoint: canonical but for its tensors, which are this rank's parts (DTensors) or whole ones.
        folder: is made.

    Raises (on all ranks):
        OSError: a rank could not write its part.
    """
    weights, states = checkpoint.pop("state_dict"), checkpoint.pop("optimizer_states", [])
    tensors = {_key("weights", name): values for name, values in weights.items()}
    for number, state in enumerate(states):
        for name, values in state["state"].items():
            tensors |= {_key(str(number), name, key): value for key, value in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with _plain_errors(folder):
        dcp.save(tensors, storage_writer=FileSystemWriter(folder, single_file_per_rank=True, sync_files=True))
    checkpoint[GROUPS] = [state["param_groups"] for state in states]
    by_first(lambda: _write(checkpoint, folder / META))


def load_sharded(folder: Path, module: nn.Module, optimizers: Sequence[Any]) -> dict[str, Any]:
    """Fill a sharded module and its optimizers from a folder that any number of ranks wrote.

    Returns:
        The rest of the checkpoint, with no weights and optimizer states in it.

    Raises:
        ValueError: it was made of other weights.
    """
    here = {canonical(name): p for name, p in module.named_parameters()}
    reader = FileSystemReader(folder)
    kinds = reader.read_metadata().state_dict_metadata
    split = {key: _parts(key) for key in kinds}
    saved = {parts[1] for parts in split.values() if parts[0] == "weights"}
    require_same(saved, {name for name, p in here.items() if p.requires_grad}, set(here))
    meta = read_meta(folder)
    wanted: dict[str, Any] = {_key("weights", name): here[name].detach() for name in saved}
    for key, parts in split.items():
        if parts[0] != "weights":
            number, name, part = parts
            value = _room(kinds[key], here[name])
            optimizers[int(number)].state[here[name]][part] = value
            wanted[key] = value
    with torch.no_grad(), _plain_errors(folder):
        dcp.load(wanted, storage_reader=reader)
    for optimizer, groups in zip(optimizers, meta.pop(GROUPS), strict=True):
        take_groups(optimizer, groups)
    return {**meta, "state_dict": {}, "optimizer_states": [{} for _ in optimizers]}


def _room(kind: Any, like: Tensor) -> Tensor:
    """An empty tensor for a part of an optimizer's state."""
    if tuple(kind.size) == tuple(like.shape):
        return torch.zeros_like(like.detach(), dtype=kind.properties.dtype)
    return torch.zeros(tuple(kind.size), dtype=kind.properties.dtype)


def read_sharded(folder: Path) -> dict[str, Any]:
    """The canonical checkpoint in a folder: whole tensors on the CPU. No process group is needed.

    Raises:
        FileNotFoundError, ValueError: it is not whole.
    """
    meta = read_meta(folder)
    reader = FileSystemReader(folder)
    kinds = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        key: torch.empty(tuple(kind.size), dtype=kind.properties.dtype)
        for key, kind in kinds.items()
        if isinstance(kind, TensorStorageMetadata)
    }
    with _plain_errors(folder):
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    states = [{"state": {}, "param_groups": groups} for groups in meta.pop(GROUPS)]
    weights: dict[str, Tensor] = {}
    for key, values in tensors.items():
        first, name, *rest = _parts(key)
        if first == "weights":
            weights[name] = values
        else:
            states[int(first)]["state"].setdefault(name, {})[rest[0]] = values
    return {**meta, "state_dict": weights, "optimizer_states": states}


def consolidate(folder: Path, file: Path) -> Path:
    """Write the canonical file of a sharded checkpoint, by rename.

    Raises:
        FileNotFoundError, ValueError: the folder is not whole.
    """
    _write(read_sharded(folder), file)
    return file


def read_meta(folder: Path) -> dict[str, Any]:
    """All of a sharded checkpoint but weights and optimizer states.

    Raises:
        FileNotFoundError: `folder` is none.
        ValueError: it was written by something else.
    """
    meta = torch.load(folder / META, map_location="cpu", weights_only=True)
    if not isinstance(meta, dict) or GROUPS not in meta:
        raise ValueError(f"{folder / META}: found no {GROUPS}, wanted a checkpoint that cogalign's fsdp2 wrote")
    return dict(meta)


def _write(content: dict[str, Any], file: Path) -> None:
    """Write a whole file."""
    with atomic_file(file) as opened:
        torch.save(content, opened)


@contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    """The error behind DCP's own, which is no `Exception`, so that nobody would handle it."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise OSError(getattr(cause, "errno", None) or errno.EIO, f"rank {rank}: {reason}", str(folder)) from cause


def _key(*parts: str) -> str:
    """A flat key; names hold dots, so the parts are parted by slashes."""
    return "/".join(parts)


def _parts(key: str) -> list[str]:
    return key.split("/")


def take_groups(optimizer: Any, saved: list[dict[str, Any]]) -> None:
    """Give an optimizer's groups the settings of a checkpoint, but for those that belong to the strategy."""
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        group.update({name: value for name, value in values.items() if name not in OWN})


def require_same(saved: set[str], trained: set[str], known: set[str]) -> None:
    """Check that a checkpoint's weights are those that are trained here.

    Raises:
        ValueError: names the first one that is missing or strange.
    """
    strange, missing = sorted(saved - known), sorted(trained - saved)
    if strange or missing:
        raise ValueError(
            f"the checkpoint holds {len(saved)} weights, {len(trained)} are trained here; "
            f"{(strange or missing)[0]} is in one of them only: was another model or LoRA trained in this folder?"
        )
