"""Requests are sent again where that may help, and errors say what happened; a scripted HTTP server answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cogalign.generation import vllm_client
from cogalign.generation.vllm_client import VllmClient
from cogalign.generation.vllm_server import VllmError, VllmServer
from cogalign.models.load import LoadedModel
from cogalign.recipe_grpo import VllmSettings

Answer = tuple[int, Any]


class Scripted(ThreadingHTTPServer):
    """Answers `/health` with 200 and every other request with the next of `answers` (None: hang up)."""

    def __init__(self) -> None:
        self.answers: list[Answer | None] = []
        self.seen: list[tuple[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        script = self.server
        assert isinstance(script, Scripted)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer: Answer | None = (200, {})
        if self.path != "/health":
            script.seen.append((self.path, json.loads(body) if body else None))
            answer = script.answers.pop(0)
        if answer is None:
            self.close_connection = True
            return
        text = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def script() -> Iterator[Scripted]:
    server = Scripted()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


Connect = Callable[[int], VllmClient]


@pytest.fixture
def connect(script: Scripted, adapted: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connect:
    monkeypatch.setattr(vllm_client, "FIRST_PAUSE", 0.01)

    def made(retries: int) -> VllmClient:
        settings = VllmSettings(url=script.url, retries=retries, request_timeout=5)
        return VllmClient(VllmServer(settings, adapted, tmp_path), settings)

    return made


BUSY: Answer = (503, {"error": {"message": "warming up"}})


def test_a_request_is_sent_again_after_a_stumble(connect: Connect, script: Scripted) -> None:
    script.answers = [BUSY, None, (200, {"choices": []})]
    assert connect(2).chat({"n": 2}) == {"choices": []}
    assert script.seen == [("/v1/chat/completions", {"n": 2})] * 3


def test_after_the_last_try_the_error_says_what_the_server_said(connect: Connect, script: Scripted) -> None:
    script.answers = [BUSY] * 3
    with pytest.raises(
        VllmError, match=r"127\.0\.0\.1:\d+ failed 3 times on /v1/chat/completions: HTTP 503: warming up"
    ):
        connect(2).chat({})
    assert len(script.seen) == 3


def test_a_refusal_is_not_sent_again(connect: Connect, script: Scripted) -> None:
    script.answers = [(400, {"error": {"message": "temperature must be\n in [0, 2]"}})]
    with pytest.raises(VllmError, match=r"refused /v1/chat/completions: HTTP 400: temperature must be in \[0, 2\]"):
        connect(3).chat({})
    assert len(script.seen) == 1


def test_a_server_that_is_gone_is_an_error(connect: Connect, script: Scripted) -> None:
    client = connect(1)
    script.shutdown()
    script.server_close()
    with pytest.raises(VllmError, match=r"failed 2 times on /v1/models: ConnectError"):
        client.base_name()


def test_the_base_model_is_the_one_without_a_parent(connect: Connect, script: Scripted) -> None:
    models = [{"id": "adapter", "parent": "base"}, {"id": "base", "parent": None}]
    script.answers = [(200, {"data": models})]
    assert connect(0).base_name() == "base"


def test_a_server_without_adapters_at_run_time_is_an_error_that_says_how(connect: Connect, script: Scripted) -> None:
    script.answers = [(404, {"detail": "Not Found"})]
    with pytest.raises(VllmError, match=r"--enable-lora.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        connect(0).load_adapter("policy-1", "folder")


def test_an_adapter_whose_answer_was_lost_counts_as_loaded(connect: Connect, script: Scripted) -> None:
    script.answers = [None, (400, {"error": {"message": "The lora adapter 'a' has already been loaded. If"}})]
    connect(1).load_adapter("a", "folder")
    script.answers = [(404, {"error": {"message": "The lora adapter 'a' cannot be found."}})]
    connect(1).unload_adapter("a")
    assert [path for path, _ in script.seen][-1] == "/v1/unload_lora_adapter"


def test_an_adapter_that_cannot_be_read_is_an_error(connect: Connect, script: Scripted) -> None:
    script.answers = [(404, {"error": {"message": "No adapter found for 'a' in 'folder'"}})]
    with pytest.raises(VllmError, match=r"HTTP 404: No adapter found for 'a'"):
        connect(0).load_adapter("a", "folder")


@pytest.mark.parametrize(("logprob", "good"), [(0.0, True), (-6.5, False)])
def test_raw_log_probabilities_are_refused(connect: Connect, script: Scripted, logprob: float, good: bool) -> None:
    answer = {"choices": [{"logprobs": {"content": [{"logprob": logprob}]}}]}
    script.answers = [(200, answer)]
    client = connect(0)
    if good:
        client.require_sampling_distribution("base", 2)
    else:
        with pytest.raises(VllmError, match=r"got -6\.500, wanted 0.*--logprobs-mode processed_logprobs"):
            client.require_sampling_distribution("base", 2)
    assert script.seen[0][1]["allowed_token_ids"] == [2]
