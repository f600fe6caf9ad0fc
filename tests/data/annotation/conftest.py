"""A small case set, and a teacher behind a real local HTTP server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogalign.cognition.report import render
from cogalign.cognition.templates import template_report
from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSetWriter
from cogalign.models import endpoint
from tests.local_server import Reply, serve

GOOD = {
    "location": "Colon, well distended lumen with a clear view and a few small bubbles.",
    "morphology": "A raised polyp with a sharp border and reddish colour in the upper left of the image, the surrounding "
    "mucosa is smooth, no ulcer, no bleeding.",
    "microvasculature": "Regular pit pattern on the surface, fine dilated capillaries, the demarcation line is visible.",
    "keywords": {
        "location": ["colon", "well distended", "small bubbles"],
        "morphology": ["sharp border", "reddish", "no ulcer"],
        "microvasculature": ["pit pattern", "dilated capillaries", "demarcation line"],
    },
}
NORMAL = {
    **GOOD,
    "morphology": "Smooth pink mucosa with intact folds, no ulcer, no erosion, no bleeding.",
    "keywords": {**GOOD["keywords"], "morphology": ["smooth", "intact folds", "no ulcer"]},  # type: ignore[dict-item]
}


class Teacher:
    """A server that answers with `reply(request)`; None drops the connection."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reply: Callable[[dict[str, Any]], Reply | None] = lambda request: self.says(self.report(request))
        self.lock = threading.Lock()
        self.http, self.url = serve(self._answer)

    def _answer(self, request: dict[str, Any]) -> Reply | None:
        with self.lock:
            self.requests.append(request)
        return self.reply(request)

    @staticmethod
    def says(content: Any, prompt: int = 1500, completion: int = 200) -> Reply:
        """A chat completion whose text is the JSON of `content`."""
        text = content if isinstance(content, str) else json.dumps(content)
        body = {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        }
        return 200, {}, json.dumps(body).encode()

    @staticmethod
    def fails(status: int, message: str = "no") -> Reply:
        return status, {}, json.dumps({"error": {"message": message}}).encode()

    @staticmethod
    def told(request: dict[str, Any]) -> str:
        """The text of the first question."""
        return str(request["messages"][1]["content"][1]["text"])

    def report(self, request: dict[str, Any]) -> dict[str, Any]:
        """A report that passes all checks."""
        return NORMAL if re.search("Findings: none", self.told(request)) else GOOD

    @staticmethod
    def turns(request: dict[str, Any]) -> int:
        """Answers that the conversation already holds."""
        return sum(message["role"] == "assistant" for message in request["messages"])


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Teacher]:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("TEST_KEY", "sk-secret-1")
    served = Teacher()
    yield served
    served.http.shutdown()
    served.http.server_close()


def write_cases(root: Path, count: int = 4) -> Path:
    """Polyps in the upper left and normal images in turns, with the reports of an import."""
    with CaseSetWriter(root) as writer:
        for number in range(count):
            lesion = number % 2 == 0
            image = np.full((64, 96, 3), 10 * number % 250, np.uint8)
            mask = np.zeros((64, 96), dtype=bool)
            mask[8:24, 12:36] = True
            findings = ("polyp",) if lesion else ("normal",)
            case = Case(
                id=f"case-{number}",
                file_name=f"images/{number}.png",
                findings=findings,
                split="train" if number < count - 1 else "test",
                organ="colon",
                mask_file_name=f"masks/{number}.png" if lesion else None,
                boxes=(Box("polyp", 12, 8, 36, 24),) if lesion else (),
                answer=render(template_report(findings, "colon")),
                attributes={"class": "polyps" if lesion else "normal-cecum"},
            )
            writer.add(case, image, mask if lesion else None)
    return root


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Four cases."""
    return write_cases(tmp_path / "set")


@pytest.fixture
def good() -> dict[str, Any]:
    """An answer for a polyp in the upper left of the colon that passes all checks."""
    copy: dict[str, Any] = json.loads(json.dumps(GOOD))
    return copy


@pytest.fixture
def write() -> Callable[..., Path]:
    """`write_cases`."""
    return write_cases
