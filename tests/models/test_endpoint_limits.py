"""What a chat endpoint never does: wait without end, read without end, pay twice, tell a secret."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cogalign.models import endpoint_http
from cogalign.models.endpoint import ChatEndpoint, EndpointError, EndpointSettings
from cogalign.models.endpoint_http import shown
from cogalign.models.endpoint_wire import Usage
from tests.models.test_endpoint import QUESTION, Server, chat, fails, says, server  # noqa: F401

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def dripping(first: bytes, piece: bytes, every: float) -> Iterator[str]:
    """The address of a server that sends `first`, then `piece` again and again."""
    listening = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(first)
                while not done.wait(every):
                    connection.sendall(piece)
            except OSError:
                pass  # the client has given up

    def accept() -> None:
        while not done.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        done.set()
        listening.close()


@pytest.mark.parametrize("first", [HEAD + b"Content-Length: 99999\r\n\r\n", HEAD + b"X-Slow: "], ids=["body", "head"])
def test_the_time_limit_is_that_of_the_whole_request_not_of_each_silence(first: bytes) -> None:
    with dripping(first, b" ", 0.05) as url:
        endpoint = ChatEndpoint(EndpointSettings(url, "m", "UNSET_KEY", retries=0, timeout=0.3))
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.append(endpoint.ask(QUESTION)), daemon=True)
        asking.start()
        asking.join(5)
        assert found and found[0].text is None
        assert "no whole answer within 0.3 s" in found[0].reason and found[0].usage == Usage(requests=1, lost=1)
        endpoint.close()


def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_http, "LARGEST", 300_000)
    with dripping(HEAD + b"Content-Length: 900000000\r\n\r\n", b" " * 100_000, 0.001) as url:
        endpoint = ChatEndpoint(EndpointSettings(url, "m", "UNSET_KEY", retries=0, timeout=20))
        began = time.monotonic()
        answer = endpoint.ask(QUESTION)
        assert answer.text is None and "AnswerTooLarge" in answer.reason and answer.usage.lost == 1
        assert time.monotonic() - began < 15


def test_closing_ends_a_request_that_is_under_way() -> None:
    with dripping(HEAD + b"Content-Length: 99999\r\n\r\n", b" ", 0.05) as url:
        endpoint = ChatEndpoint(EndpointSettings(url, "m", "UNSET_KEY", retries=0, timeout=30))
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.append(endpoint.ask(QUESTION)), daemon=True)
        asking.start()
        time.sleep(0.2)
        endpoint.close()
        endpoint.close()
        asking.join(5)
        assert found and found[0].text is None and "ReadError" in found[0].reason


@pytest.mark.parametrize("told", [10**400, 10**12, -5])
def test_a_count_that_cannot_be_is_replaced_by_an_estimate(server: Server, told: int) -> None:  # noqa: F811
    server.replies = [says("12345678", prompt=told, completion=told, total=told)]
    assert chat(server).ask(QUESTION, prompt_tokens=300).usage == Usage(300, 2, requests=1, estimated=1)


@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "assistant", "content": None}, None])
def test_an_answer_cut_before_its_first_word_is_an_answer_and_paid_once(server: Server, message: Any) -> None:  # noqa: F811
    body = {"choices": [{"message": message, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 900, "completion_tokens": 2048}}  # fmt: skip
    server.replies = [(200, {}, json.dumps(body).encode())]
    answer = chat(server).ask(QUESTION)
    assert (answer.text, answer.cut) == ("", True) and len(server.requests) == 1
    assert answer.usage == Usage(900, 2048, requests=1)


def test_a_key_that_an_answer_repeats_is_masked(server: Server) -> None:  # noqa: F811
    server.replies = [says("you sent Bearer sk-secret-1")]
    assert chat(server).ask(QUESTION).text == "you sent Bearer ***"


def test_a_short_key_is_a_word_that_answers_may_hold(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("TEST_KEY", "none")
    server.replies = [says("Polyps: none.")]
    assert chat(server).ask(QUESTION).text == "Polyps: none."


def test_a_key_at_the_end_of_a_long_complaint_is_masked_before_the_complaint_is_shortened(server: Server) -> None:  # noqa: F811
    server.replies = [fails(400, "x" * 292 + " sk-secret-1")]
    reason = chat(server, retries=0).ask(QUESTION).reason
    assert "sk-" not in reason and len(reason) <= 300


def test_no_message_tells_the_password_of_an_address(server: Server, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    url = server.url.replace("//", "//user:pass%20word@")
    told = base64.b64encode(b"user:pass word").decode()
    server.replies = [fails(401, f"user:pass%20word, pass word and Basic {told} are wrong")]
    with pytest.raises(EndpointError) as caught:
        ChatEndpoint(EndpointSettings(url, "seer", "UNSET_KEY")).ask(QUESTION)
    text = str(caught.value) + capsys.readouterr().err
    assert "***@127.0.0.1" in text
    assert not any(secret in text for secret in ("pass%20word", "pass word", told))


@pytest.mark.parametrize("url", ["ftp://user:geheim@host/v1", "http://user:geheim@a:b:c"])
def test_an_address_that_is_wrong_is_shown_without_its_password(url: str) -> None:
    with pytest.raises(EndpointError, match=r"endpoint\.url: found") as caught:
        ChatEndpoint(EndpointSettings(url, "m", "UNSET_KEY"))
    assert "geheim" not in str(caught.value) and "***@" in str(caught.value)
    assert shown("https://host/v1") == "https://host/v1"


@pytest.mark.parametrize(
    ("url", "key", "warned"),
    [("http://example.org/v1", "sk-secret-1", True), ("http://u:secret@10.0.0.7/v1", "", True),
     ("http://example.org/v1", "", False), ("https://example.org/v1", "sk-secret-1", False),
     ("http://127.0.0.1:8000/v1", "sk-secret-1", False)],
)  # fmt: skip
def test_a_secret_that_would_cross_the_network_unencrypted_is_warned_of(
    url: str, key: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ChatEndpoint(EndpointSettings(url, "m"), key=key).close()
    err = capsys.readouterr().err
    assert ("not encrypted" in err) == warned and "secret" not in err
