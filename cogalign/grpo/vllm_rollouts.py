"""A vLLM server for the length of a run: started by the first process, used by all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogalign.generation.vllm_sampler import VllmSampler
from cogalign.generation.vllm_server import VllmServer
from cogalign.models.load import LoadedModel
from cogalign.recipe import VllmSettings


class VllmRollouts:
    """Opens the server when the ranks are known, gives it each new policy, and closes it."""

    def __init__(self, settings: VllmSettings, loaded: LoadedModel, folder: Path, revision: str | None) -> None:
        self.settings, self.loaded, self.folder, self.revision = settings, loaded, folder, revision
        self.server: VllmServer | None = None
        self.sampler: VllmSampler | None = None
        self._adapters = folder

    def open(self, rank: int, world_size: int, broadcast: Callable[[Any], Any]) -> VllmSampler:
        """Start the server (rank 0) or find it (the others), and connect.

        Args:
            rank: this process.
            world_size: number of processes.
            broadcast: gives rank 0's object to all.
        """
        self._adapters = self.folder / "vllm" / f"rank-{rank}"
        if rank == 0:
            self.server = VllmServer(
                self.settings, self.loaded, self.folder, revision=self.revision, adapters=world_size
            )
        url = broadcast(self.server.url if self.server else None)
        if rank > 0:
            self.server = VllmServer(replace(self.settings, url=url), self.loaded, self.folder, adapters=world_size)
        assert self.server is not None
        self._adapters.mkdir(parents=True, exist_ok=True)
        self.sampler = VllmSampler(self.loaded, self.server, self.settings)
        return self.sampler

    def sync(self) -> None:
        """Give the policy's adapter, as it is now, to the server."""
        assert self.sampler is not None
        self.sampler.sync(self._adapters)

    def close(self) -> None:
        """Disconnect, and end the server if it was started here."""
        if self.sampler is not None:
            self.sampler.close()
        if self.server is not None:
            self.server.close()
        self.sampler = self.server = None
