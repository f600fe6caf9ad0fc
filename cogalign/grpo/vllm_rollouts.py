"""A vLLM server for the length of a run: started by the first process, used by all of them, restarted where it dies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cogalign.generation.vllm_sampler import VllmSampler
from cogalign.generation.vllm_server import VllmError, VllmServer
from cogalign.grpo.ranks import Ranks
from cogalign.models.load import LoadedModel
from cogalign.recipe import VllmSettings
from cogalign.training.progress import say

T = TypeVar("T")


class VllmRollouts:
    """Opens the server when the ranks are known, gives it each new policy, and closes it.

    What a server may fail at goes through `surely`, at the same place on all ranks: they agree whether it worked, so
    that none waits for another that has given up.
    """

    def __init__(self, settings: VllmSettings, loaded: LoadedModel, folder: Path, revision: str | None) -> None:
        self.settings, self.loaded, self.folder, self.revision = settings, loaded, folder, revision
        self.server: VllmServer | None = None
        self.sampler: VllmSampler | None = None
        self.ranks = Ranks()
        self._may_restart = True

    def open(self, ranks: Ranks, nodes: int, broadcast: Callable[[Any], Any]) -> VllmSampler:
        """Start the server (rank 0) or find it (the others), and connect.

        Args:
            ranks: this process and the others.
            nodes: machines of the run.
            broadcast: gives rank 0's object to all.

        Raises:
            ValueError: several machines have no server that all of them reach.
            VllmError: the server did not start, or another rank had an error.
        """
        self.ranks = ranks
        if nodes > 1 and self.settings.url is None:
            raise ValueError(
                f"grpo.vllm.url: found null with trainer.num_nodes = {nodes}, wanted the address of a server that all "
                "machines reach, such as http://HOST:8000; one that the run starts is reached from its own machine only"
            )
        first = ranks.rank == 0
        self._together(lambda: self._serve(self.settings) if first else None)
        url = broadcast(self.server.url if self.server is not None else None)
        self._together(lambda: None if first else self._serve(replace(self.settings, url=url)))
        sampler = self._together(self._connected)
        sampler.run = broadcast(sampler.run)
        self.sampler = sampler
        return sampler

    def sync(self) -> None:
        """Give the policy's adapter, as it is now, to the server; it may be restarted once from here to the next time.

        Raises:
            VllmError: see `surely`.
        """
        self._may_restart = True
        self.surely(self._sync)

    def surely(self, work: Callable[[], T]) -> T:
        """The result of work with the server; if it fails on any rank, a server that has died is started once more.

        Args:
            work: done by every rank; done again by every rank after a restart, with the same result as at first.

        Raises:
            VllmError: it failed and a restart was of no use; says where the run goes on.
        """
        error, result = tried(work)
        if not self.ranks.anyone(error is not None):
            return result  # type: ignore[return-value]
        reason = error or VllmError("another rank could not sample; its own message says why")
        if self.ranks.anyone(not isinstance(reason, VllmError)):  # not the server's fault
            raise reason
        assert isinstance(reason, VllmError)
        again: Exception | None = reason
        if self._may_restart:
            self._may_restart = False
            again, _ = tried(lambda: self._restart(reason))
            if not self.ranks.anyone(again is not None):
                again, result = tried(work)
                if not self.ranks.anyone(again is not None):
                    return result  # type: ignore[return-value]
        raise VllmError(f"{again or reason}\n{self._kept()}") from reason

    def close(self) -> None:
        """Disconnect, and end the server if it was started here."""
        if self.sampler is not None:
            self.sampler.close()
        if self.server is not None:
            self.server.close()
        self.sampler = self.server = None

    def _together(self, work: Callable[[], T]) -> T:
        """The result of work that every rank does; an error of one is an error of all."""
        error, result = tried(work)
        if self.ranks.anyone(error is not None):
            raise error or VllmError("another rank could not open the vLLM server; its own message says why")
        return result  # type: ignore[return-value]

    def _serve(self, settings: VllmSettings) -> None:
        self.server = VllmServer(settings, self.loaded, self.folder, revision=self.revision)

    def _connected(self) -> VllmSampler:
        assert self.server is not None
        return VllmSampler(self.loaded, self.server, self.settings, first=self.ranks.rank == 0)

    def _sync(self) -> None:
        assert self.sampler is not None
        self.sampler.sync(self.folder / "vllm")

    def _restart(self, reason: VllmError) -> None:
        """Start a dead server again (rank 0), with the adapter that it had."""
        if self.ranks.rank > 0:
            return
        assert self.server is not None and self.sampler is not None
        if not self.server.started_here or self.server.healthy():
            raise reason
        say(f"warning: {str(reason).partition(';')[0]}; it is started once more")
        self.server.restart()
        self.sampler.reload()

    def _kept(self) -> str:
        """Where the run goes on."""
        if any((self.folder / "checkpoints").glob("*.ckpt")):
            return f"The newest checkpoint in {self.folder / 'checkpoints'} is kept: the same command goes on from it"
        return "No checkpoint had been written: the same command begins this stage again"


def tried(work: Callable[[], T]) -> tuple[Exception | None, T | None]:
    """What went wrong, and the result if nothing did."""
    try:
        return None, work()
    except Exception as error:
        return error, None
