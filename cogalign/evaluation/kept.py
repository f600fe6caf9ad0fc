"""Completions kept batch by batch while a model is asked, so that a stage that was killed goes on in the middle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cogalign.generation.hf import Completion
from cogalign.training.atomic import append_lines


class KeptCompletions:
    """One model's completions, in `<role>-<key>.jsonl`: a line a batch, with a checksum; gone once all are there.

    Batches are kept whole and under the ids of their cases, for a completion may depend on those beside it.

    Args:
        path: the file; its name holds all that decides the completions but the batches. None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[tuple[str, ...], list[Completion]] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().split(b"\n"):
                self._add(line)

    def get(self, kind: str, ids: Sequence[str]) -> list[Completion] | None:
        """The completions of a batch of cases, or None if they are not there."""
        return self._known.get((kind, *ids))

    def put(self, kind: str, ids: Sequence[str], completions: Sequence[Completion]) -> None:
        """Keep the completions of a batch.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        if self.path is None:
            return
        content = {
            "kind": kind,
            "ids": list(ids),
            "completions": [[one.text, one.finished, one.token_ids] for one in completions],
        }
        append_lines(self.path, [{**content, "sum": _sum(content)}])

    def __bool__(self) -> bool:
        return bool(self._known)

    def _add(self, line: bytes) -> None:
        """A line of the file; one that is cut off or damaged does not count, and its batch is asked again."""
        try:
            content = json.loads(line)
            checksum = content.pop("sum")
            found = [
                Completion(str(text), tuple(map(int, ids)), bool(done)) for text, done, ids in content["completions"]
            ]
            key = (content["kind"], *content["ids"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if checksum == _sum(content) and len(found) == len(key) - 1:
            self._known[key] = found


def _sum(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
