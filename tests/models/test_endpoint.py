"""A chat endpoint against a real local HTTP server."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.models.endpoint import (
    ChatEndpoint,
    EndpointError,
    EndpointSettings,
    EndpointStopped,
    read_key,
)
from cogalign.models.endpoint_pace import Pace, retry_after
from cogalign.models.endpoint_wire import Usage, data_uri, estimate, turn
from tests.local_server import Reply, serve

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
QUESTION = [turn("system", "rules"), turn("user", "what?", ["data:image/jpeg;base64,AAAA"])]


class Server:
    """Answers requests one after the other from `replies`; the last one repeats. None drops the connection."""

    def __init__(self) -> None:
        self.replies: list[Reply | Callable[[dict[str, Any]], Reply] | None] = []
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.http, self.url = serve(self._answer)

    def _answer(self, request: dict[str, Any]) -> Reply | None:
        with self.lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply(request) if callable(reply) else reply


def says(text: str | None = "ok", *, finish: str = "stop", **usage: int) -> Reply:
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if usage:
        body["usage"] = {f"{name}_tokens": number for name, number in usage.items()}
    return 200, {}, json.dumps(body).encode()


def fails(status: int, message: str = "no", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message}}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", "sk-secret-1")
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


def chat(server: Server, **fields: Any) -> ChatEndpoint:
    extra = {name: fields.pop(name) for name in ("purse", "name") if name in fields}
    given = EndpointSettings(url=server.url, model="seer", api_key_env="TEST_KEY", **fields)
    return ChatEndpoint(given, first_pause=0.01, **extra)


def test_an_answer_comes_with_its_tokens(server: Server) -> None:
    server.replies = [says("ok", prompt=900, completion=40, total=940)]
    answer = chat(server).ask(QUESTION)
    assert (answer.text, answer.cut, answer.refused) == ("ok", False, False)
    assert answer.usage == Usage(prompt=900, completion=40, requests=1)
    (request,) = server.requests
    assert request["messages"] == QUESTION and request["model"] == "seer" and request["temperature"] == 0


def test_thoughts_that_only_the_total_counts_are_counted(server: Server) -> None:
    server.replies = [says("ok", prompt=900, completion=40, total=1500)]
    assert chat(server).ask(QUESTION).usage.completion == 600


def test_an_answer_without_a_count_is_estimated_and_says_so(server: Server) -> None:
    server.replies = [says("12345678")]
    usage = chat(server).ask(QUESTION, prompt_tokens=300).usage
    assert usage == Usage(prompt=300, completion=2, requests=1, estimated=1)


def test_an_answer_that_ended_at_the_limit_is_marked(server: Server) -> None:
    server.replies = [says("{", finish="length", prompt=1, completion=1)]
    assert chat(server).ask(QUESTION).cut


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_stumbles_is_asked_again(server: Server, status: int) -> None:
    server.replies = [fails(status, Retry_After="0"), says("ok", prompt=10, completion=2)]
    answer = chat(server).ask(QUESTION)
    assert answer.text == "ok" and answer.usage == Usage(10, 2, requests=2)


def test_a_dropped_connection_is_tried_again_and_counted_as_lost(server: Server) -> None:
    server.replies = [None, says("ok", prompt=10, completion=2)]
    answer = chat(server).ask(QUESTION)
    assert answer.text == "ok" and answer.usage == Usage(10, 2, requests=2, lost=1)


def test_a_timeout_is_lost_and_an_unreachable_server_is_not(server: Server) -> None:
    def late(_: dict[str, Any]) -> Reply:
        time.sleep(0.4)
        return says()

    server.replies = [late]
    answer = chat(server, timeout=0.1, retries=0).ask(QUESTION)
    assert answer.text is None and "Timeout" in answer.reason and answer.usage.lost == 1
    nobody = ChatEndpoint(EndpointSettings("http://127.0.0.1:9/v1", "m", "UNSET_KEY", retries=0))
    answer = nobody.ask(QUESTION)
    assert answer.text is None and not answer.refused and answer.usage == Usage(requests=1)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_mistake_ends_it_at_once_and_never_tells_the_key(server: Server, status: int) -> None:
    server.replies = [fails(status, "bad key sk-secret-1")]
    with pytest.raises(EndpointError, match="TEST_KEY, which is set") as caught:
        chat(server).ask(QUESTION)
    assert len(server.requests) == 1 and "sk-secret-1" not in str(caught.value)


def test_a_used_up_quota_is_no_reason_to_wait(server: Server) -> None:
    body = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}).encode()
    server.replies = [(429, {}, body)]
    with pytest.raises(EndpointError, match="quota is used up"):
        chat(server).ask(QUESTION)


def test_one_refused_request_is_told_and_others_go_on(server: Server) -> None:
    server.replies = [fails(413, "too large"), says("ok")]
    endpoint = chat(server)
    refused = endpoint.ask(QUESTION)
    assert refused.text is None and refused.refused and "too large" in refused.reason
    assert endpoint.ask(QUESTION).text == "ok"


def test_the_wait_that_a_server_asks_for_is_kept_by_all_requests(server: Server) -> None:
    server.replies = [fails(429, Retry_After="0.3"), says("ok")]
    endpoint = chat(server, concurrency=2)
    other = threading.Timer(0.1, lambda: endpoint.ask(QUESTION))
    other.start()
    assert endpoint.ask(QUESTION).text == "ok"
    other.join()
    assert len(server.times) == 3 and min(server.times[1:]) - server.times[0] >= 0.29


def test_a_wait_of_hours_ends_it(server: Server) -> None:
    server.replies = [fails(429, "daily limit", Retry_After="7200")]
    with pytest.raises(EndpointError, match="asks to wait 7200 s"):
        chat(server).ask(QUESTION)


def test_a_schema_is_sent_and_left_out_where_the_server_refuses_it(server: Server) -> None:
    server.replies = [fails(400, "unknown field"), says("plain"), says("again")]
    endpoint = chat(server)
    assert [endpoint.ask(QUESTION, SCHEMA).text for _ in range(2)] == ["plain", "again"]
    assert [("response_format" in request) for request in server.requests] == [True, False, False]
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_where_the_schema_was_taken_a_refusal_means_something_else(server: Server) -> None:
    server.replies = [says("{}"), fails(400, "image too small"), says("{}")]
    endpoint = chat(server)
    assert endpoint.ask(QUESTION, SCHEMA).text == "{}"
    assert endpoint.ask(QUESTION, SCHEMA).refused
    endpoint.ask(QUESTION, SCHEMA)
    assert all("response_format" in request for request in server.requests)


def test_limits_that_a_model_does_not_know_are_renamed_or_left_out(server: Server) -> None:
    server.replies = [
        fails(400, "use 'max_completion_tokens' instead"),
        fails(400, "reasoning_effort is unknown"),
        says(),
    ]
    assert chat(server, reasoning_effort="low", max_completion_length=77).ask(QUESTION).text == "ok"
    last = server.requests[-1]
    assert last["max_completion_tokens"] == 77 and not {"max_tokens", "temperature", "reasoning_effort"} & last.keys()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b'{"choices": [null]}', b'{"choices": [{"message": null}]}',
                                  b"\xff\xfe", b"[" * 100_000])  # fmt: skip
def test_nonsense_is_asked_for_again_and_then_told(server: Server, body: bytes) -> None:
    server.replies = [(200, {}, body)]
    answer = chat(server, retries=1).ask(QUESTION)
    assert answer.text is None and answer.reason == "the answer is no chat completion" and len(server.requests) == 2


@given(content=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                                st.sampled_from(("choices", "message", "content", "usage", "prompt_tokens", "text")),
                                inner, max_size=3), max_leaves=12))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_json_is_an_answer_or_none_but_never_an_exception(content: Any) -> None:
    import httpx

    from cogalign.models.endpoint_wire import content_of, is_cut, message_of, usage_of

    response = httpx.Response(200, json=content)
    found = content_of(response)
    assert found is None or isinstance(found, str)
    assert usage_of(response, 5).requests == 1 and isinstance(message_of(response), str)
    assert is_cut(response) in (True, False)


def test_after_a_stop_nothing_is_sent_and_waiting_ends(server: Server) -> None:
    server.replies = [fails(500)]
    endpoint = ChatEndpoint(EndpointSettings(server.url, "seer", "TEST_KEY", retries=9), first_pause=30)
    threading.Timer(0.1, endpoint.stop).start()
    began = time.monotonic()
    with pytest.raises(EndpointStopped) as caught:
        endpoint.ask(QUESTION)
    assert time.monotonic() - began < 5 and caught.value.usage == Usage(requests=1)
    with pytest.raises(EndpointStopped):
        endpoint.ask(QUESTION)
    assert len(server.requests) == 1


class Once:
    """A purse for one request."""

    def __init__(self) -> None:
        self.settled: list[Usage] = []

    def take(self, prompt: int, completion: int) -> bool:
        return not self.settled

    def settle(self, prompt: int, completion: int, usage: Usage) -> None:
        self.settled.append(usage)


def test_a_purse_is_asked_before_each_request_repetitions_too(server: Server) -> None:
    server.replies = [fails(500), says()]
    purse = Once()
    with pytest.raises(EndpointStopped):
        chat(server, purse=purse).ask(QUESTION)
    assert len(server.requests) == 1 and purse.settled == [Usage(requests=1)]


def test_the_key_must_fit_into_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", " sk-1\n")
    assert read_key("TEST_KEY") == "sk-1"
    for bad in ("", " ", "sk 1", "sk-\u00e9"):
        monkeypatch.setenv("TEST_KEY", bad)
        with pytest.raises(EndpointError, match="TEST_KEY") as caught:
            read_key("TEST_KEY")
        assert "sk" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://a:b:c", "ftp://a/v1", "not an address", ""])
def test_an_address_must_be_one(url: str) -> None:
    with pytest.raises(EndpointError, match=r"endpoint\.url: found"):
        ChatEndpoint(EndpointSettings(url, "m", "UNSET_KEY"))


@pytest.mark.parametrize("field", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0.0}, {"requests_per_minute": 0.0}])
def test_settings_out_of_range_are_errors_that_name_them(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"endpoint.{next(iter(field))}: found"):
        EndpointSettings("http://127.0.0.1/v1", "m", **field)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 4000)), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_no_minute_has_more_requests_or_tokens_than_allowed(steps: list[tuple[float, int]]) -> None:
    now = 0.0
    pace = Pace(requests_per_minute=10, tokens_per_minute=5000, clock=lambda: now)
    sent: list[tuple[float, int]] = []
    for gap, tokens in steps:
        now += gap
        sent.append((now + pace.reserve(tokens), tokens))
    for index, (start, _) in enumerate(sent):
        later = [(time_, size) for time_, size in sent[index:] if time_ < start + 60 - 1e-6]
        assert len(later) <= 10
        assert sum(size for _, size in later[:-1]) <= 5000 + 1e-6  # the last one may begin just before the end


def test_fewer_tokens_than_reserved_let_the_next_go_earlier() -> None:
    pace = Pace(tokens_per_minute=60, clock=lambda: 0.0)
    assert pace.reserve(60) == 0
    pace.settle(60, 30)
    assert pace.reserve(1) == pytest.approx(30)


def test_a_wait_is_a_number_or_a_date() -> None:
    assert retry_after("3") == 3 and retry_after("-1") == 0
    assert retry_after("soon") is None and retry_after(None) is None and retry_after("nan") is None
    told = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True))
    assert told is not None and 45 < told <= 50


def test_an_image_goes_out_as_a_jpeg_of_its_size() -> None:
    import base64

    import cv2

    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 200
    encoded = base64.b64decode(data_uri(image).removeprefix("data:image/jpeg;base64,"))
    back = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert back.shape == (20, 30, 3) and back[..., 2].mean() > 190 and back[..., 0].mean() < 10


def test_tokens_are_estimated_from_letters_and_images() -> None:
    assert estimate([turn("user", "x" * 40)]) == 10
    assert estimate([turn("user", "x" * 40, ["data:..."])], image_tokens=100) == 110
