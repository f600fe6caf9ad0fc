import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.counterfactual import grounding_client
from cogalign.counterfactual.grounding import grounding_prompt, parse_boxes
from cogalign.counterfactual.grounding_client import EndpointGrounder, GroundingError, OwnGrounder
from cogalign.data.case import Box, Case
from cogalign.recipe import GroundingSettings, ModelSettings

WIDTH, HEIGHT = 640, 480
BOX = Box("lesion", 100, 50, 300, 200)


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d": [100, 50, 300, 200], "label": "thing"}]',
        '```json\n[\n  {"bbox_2d": [100, 50, 300, 200], "label": "thing"},\n]\n```',
        'Sure! Here it is: {"bbox": [100, 50, 300, 200]} Hope that helps [1].',
        '{"box": ["100", "50", "300.0", "200"]}',
        '{"lesions": [{"xmin": 100, "ymin": 50, "xmax": 300, "ymax": 200}]}',
        '{"x1": 100, "y1": 50, "x2": 300, "y2": 200}',
        '{"x": 100, "y": 50, "width": 200, "height": 150}',
        '{"BBox": {"left": 100, "top": 50, "right": 300, "bottom": 200}}',
        "[{'bbox_2d': [100, 50, 300, 200], 'label': None}]",
        "[100, 50, 300, 200]",
        "[[100, 50, 300, 200]]",
        '{"bbox_2d": [[100, 50], [300, 200]]}',
        '{"boxes": [[100, 50, 300, 200]]}',
        '{"bbox_2d": [300, 200, 100, 50]}',
        '{"bbox_2d": [100.4, 50.9, 299.6, 199.2]}',
        "<|box_start|>(100,50),(300,200)<|box_end|>",
        "<ref>polyp</ref><box>(100,50),(300,200)</box>",
        "<box>[[100, 50, 300, 200]]</box>",
        "The lesion lies at (100, 50, 300, 200).",
        "from (100, 50) to (300, 200)",
        '[{"bbox_2d": [100, 50, 300, 200]}, {"bbox_2d": [400, 10, 5',
    ],
)
def test_one_box_is_read_from_every_form(text: str) -> None:
    assert parse_boxes(text, WIDTH, HEIGHT, "pixels") == [BOX]
    assert parse_boxes(text, WIDTH, HEIGHT, "auto") == [BOX]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "I see no lesion.", "{}", "[1, 2, 3]", '{"bbox_2d": null}', '{"bbox_2d": [1, 2, "a", 4]}',
     '{"bbox_2d": [true, 2, 3, 4]}', '{"bbox_2d": [NaN, 0, 1e999, 5]}', '{"bbox_2d": [5, 5, 5, 9]}', "[" * 5000,
     "{" * 3000 + "}" * 3000, '{"bbox_2d": [1000000, 1000000, 2000000, 2000000]}',
     '{"bbox_2d": [-50, -50, -10, -10]}', "<box>none</box>"],
)  # fmt: skip
def test_nonsense_gives_no_box(text: str) -> None:
    assert parse_boxes(text, WIDTH, HEIGHT, "pixels") == []


def test_several_boxes_keep_their_order_and_labels_and_repetitions_are_dropped() -> None:
    text = (
        '[{"bbox_2d": [1, 2, 30, 40], "label": "colon polyps"}, {"bbox_2d": [50, 60, 70, 80], "label": "Ulcer"},'
        ' {"bbox_2d": [1, 2, 30, 40], "label": "polyp"}]'
    )
    found = parse_boxes(text, WIDTH, HEIGHT, "pixels")
    assert found == [Box("polyp", 1, 2, 30, 40), Box("ulcer", 50, 60, 70, 80)]


def test_boxes_beyond_the_image_are_cut() -> None:
    assert parse_boxes("[-20, 30, 700, 900]", WIDTH, HEIGHT, "pixels") == [Box("lesion", 0, 30, 640, 480)]


def test_only_box_2d_has_y_first() -> None:
    assert parse_boxes('{"box_2d": [100, 250, 500, 750]}', 400, 200) == [Box("lesion", 100, 20, 300, 100)]
    assert parse_boxes('{"bbox_2d": [100, 250, 500, 750]}', 400, 200, "thousand") == [Box("lesion", 40, 50, 200, 150)]
    assert parse_boxes('{"box_2d": [10, 20, 30, 40]}', 400, 200, "pixels") == [Box("lesion", 20, 10, 40, 30)]


def test_auto_tells_fractions_and_thousandths_from_pixels() -> None:
    assert parse_boxes("[0.25, 0.25, 0.5, 0.75]", 400, 200) == [Box("lesion", 100, 50, 200, 150)]
    assert parse_boxes("[250, 250, 500, 750]", 400, 200) == [Box("lesion", 100, 50, 200, 150)]
    assert parse_boxes("[100, 50, 200, 150]", 400, 200) == [Box("lesion", 100, 50, 200, 150)]
    assert parse_boxes("[100, 50, 1900, 1050]", 1920, 1072) == [Box("lesion", 100, 50, 1900, 1050)]


@settings(max_examples=60, deadline=None)
@given(
    x=st.tuples(st.integers(0, 639), st.integers(1, 200)),
    y=st.tuples(st.integers(0, 479), st.integers(1, 200)),
    coordinates=st.sampled_from(["pixels", "unit", "thousand"]),
)
def test_what_is_written_is_read_back_in_every_scale(x: tuple[int, int], y: tuple[int, int], coordinates: Any) -> None:
    box = Box("polyp", x[0], y[0], min(640, x[0] + x[1]), min(480, y[0] + y[1]))
    factor = {"pixels": (1.0, 1.0), "unit": (1 / 640, 1 / 480), "thousand": (1000 / 640, 1000 / 480)}[coordinates]
    numbers = [box.xmin * factor[0], box.ymin * factor[1], box.xmax * factor[0], box.ymax * factor[1]]
    text = json.dumps([{"bbox_2d": numbers, "label": "polyp"}])
    assert parse_boxes(text, WIDTH, HEIGHT, coordinates) == [box]


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="[]{}(),:\"'0123456789.-eE \n<>|/boxstartend_2dlabelNaN`", max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.sampled_from(["bbox_2d", "box", "box_2d", "label", "x1", "xmin"]), inner, max_size=4)
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value)),
    st.sampled_from(["auto", "pixels", "thousand", "unit"]),
)
def test_any_text_gives_boxes_with_area_inside_the_image(text: str, coordinates: Any) -> None:
    for box in parse_boxes(text, 37, 23, coordinates):
        assert 0 <= box.xmin < box.xmax <= 37 and 0 <= box.ymin < box.ymax <= 23


def test_the_prompt_names_findings_organ_and_scale() -> None:
    case = Case("a", "a.png", ("polyp", "ulcer"), "train", organ="small_bowel")
    prompt = grounding_prompt(case, 640, 480, "pixels")
    assert "every polyp and every ulcer" in prompt and "small bowel" in prompt and "640 wide and 480 high" in prompt
    unknown = grounding_prompt(Case("a", "a.png", ("something odd",), "train"), 640, 480, "thousand")
    assert "every focal lesion" in unknown and "thousandths" in unknown
    assert parse_boxes(prompt, 640, 480) == []


Script = list[tuple[int, bytes, float]]


class Endpoint:
    """A server that answers as OpenAI's does, from a script of (status, body, seconds); the last entry repeats."""

    def __init__(self) -> None:
        self.script: Script = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.busy = self.most_busy = 0
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    endpoint.busy += 1
                    endpoint.most_busy = max(endpoint.most_busy, endpoint.busy)
                    endpoint.requests.append({"path": self.path, **json.loads(body)})
                    endpoint.keys.append(self.headers.get("Authorization"))
                    script = endpoint.script
                    status, answer, seconds = script.pop(0) if len(script) > 1 else script[0]
                time.sleep(seconds)
                with lock:
                    endpoint.busy -= 1
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    pass  # the client has given up

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def says(text: str, seconds: float = 0.0) -> tuple[int, bytes, float]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode(), seconds


def fails(status: int, message: str = "no") -> tuple[int, bytes, float]:
    return status, json.dumps({"error": {"message": message}}).encode(), 0.0


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(grounding_client, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("TEST_KEY", "sk-secret-1")
    served = Endpoint()
    yield served
    served.server.shutdown()
    served.server.server_close()


def ask(endpoint: Endpoint, count: int = 1, **fields: Any) -> list[str | None]:
    settings_ = GroundingSettings(url=endpoint.url, model="seer", api_key_env="TEST_KEY", **fields)
    grounder = EndpointGrounder(settings_)
    try:
        images = [np.full((20, 30, 3), number, np.uint8) for number in range(count)]
        return grounder.ask(images, [f"question {number}" for number in range(count)])
    finally:
        grounder.close()


def test_a_question_goes_out_as_a_chat_with_the_image_inside(endpoint: Endpoint) -> None:
    endpoint.script = [says("[1, 2, 3, 4]")]
    assert ask(endpoint, max_completion_length=99) == ["[1, 2, 3, 4]"]
    (request,) = endpoint.requests
    assert request["path"] == "/v1/chat/completions" and request["model"] == "seer"
    assert request["max_tokens"] == 99 and request["temperature"] == 0
    image, text = request["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,") and text["text"] == "question 0"
    assert endpoint.keys == ["Bearer sk-secret-1"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_stumbles_is_asked_again(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [fails(status), fails(status), says("ok")]
    assert ask(endpoint, retries=2) == ["ok"]
    assert len(endpoint.requests) == 3


def test_an_answer_that_is_no_chat_completion_is_asked_for_again(endpoint: Endpoint) -> None:
    endpoint.script = [(200, b"<html>busy</html>", 0.0), (200, b'{"choices": []}', 0.0), says("ok")]
    assert ask(endpoint) == ["ok"]


def test_a_timeout_is_tried_again(endpoint: Endpoint) -> None:
    endpoint.script = [says("late", 0.6), says("in time")]
    assert ask(endpoint, timeout=0.2) == ["in time"]


def test_an_endpoint_that_is_down_is_an_error_that_says_how_often_it_was_tried(endpoint: Endpoint) -> None:
    endpoint.script = [fails(500, "out of memory")]
    with pytest.raises(GroundingError, match="failed 2 times on each of 2 requests: HTTP 500: out of memory"):
        ask(endpoint, 2, retries=1)
    endpoint.server.server_close()
    with pytest.raises(GroundingError, match="Error"):
        EndpointGrounder(GroundingSettings(url="http://127.0.0.1:9/v1", model="m", retries=0)).ask(
            [np.zeros((8, 8, 3), np.uint8)], ["?"]
        )


def test_one_refused_image_does_not_stop_the_others(endpoint: Endpoint) -> None:
    endpoint.script = [fails(413, "too large"), says("ok")]
    assert ask(endpoint, 3, concurrency=1) == [None, "ok", "ok"]


def thought(text: str | None = None) -> tuple[int, bytes, float]:
    message = {"role": "assistant"} | ({} if text is None else {"content": text})
    return 200, json.dumps({"choices": [{"message": message, "finish_reason": "length"}]}).encode(), 0.0


def test_a_token_limit_that_no_answer_reaches_is_an_error_that_names_it(endpoint: Endpoint) -> None:
    endpoint.script = [thought()]
    with pytest.raises(GroundingError, match=r"raise counterfactual\.masks\.grounding\.max_completion_length"):
        ask(endpoint, 2)
    assert len(endpoint.requests) == 2


def test_one_answer_that_was_cut_before_its_first_word_is_none(endpoint: Endpoint) -> None:
    endpoint.script = [thought(), thought("[1, 2"), says("ok")]
    assert ask(endpoint, 3, concurrency=1) == [None, "[1, 2", "ok"]


def test_a_wrong_key_is_an_error_at_once_that_names_the_variable_but_never_the_key(endpoint: Endpoint) -> None:
    endpoint.script = [fails(401, "Incorrect API key provided: sk-secret-1")]
    with pytest.raises(GroundingError, match="TEST_KEY, which is set") as caught:
        ask(endpoint, retries=5)
    assert "sk-secret-1" not in str(caught.value) and len(endpoint.requests) == 1


def test_newer_models_get_the_name_of_the_length_that_they_want(endpoint: Endpoint) -> None:
    endpoint.script = [fails(400, "Unsupported parameter: use 'max_completion_tokens' instead"), says("ok")]
    assert ask(endpoint, 2, concurrency=1) == ["ok", "ok"]
    assert "max_completion_tokens" in endpoint.requests[1] and "max_tokens" not in endpoint.requests[2]


def test_requests_run_side_by_side_up_to_the_limit(endpoint: Endpoint) -> None:
    endpoint.script = [says("ok", 0.1)]
    assert ask(endpoint, 9, concurrency=3) == ["ok"] * 9
    assert endpoint.most_busy == 3


def test_an_endpoint_needs_a_model() -> None:
    with pytest.raises(GroundingError, match="the name of a model"):
        EndpointGrounder(GroundingSettings(url="http://127.0.0.1:1/v1"))


def test_the_recipes_own_model_answers_in_this_process() -> None:
    grounder = OwnGrounder(ModelSettings(name="tiny-random", dtype="float32"), 8, "cpu")
    images = [np.full((64, 64, 3), value, np.uint8) for value in (20, 200)]
    first, second = (grounder.ask(images, ["Where?", "Where?"]) for _ in range(2))
    assert first == second and len(first) == 2 and all(isinstance(answer, str) for answer in first)
    assert grounder.ask([], []) == []


def test_the_blanks_around_a_key_are_not_sent(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", " sk-secret-1\n")
    endpoint.script = [says("ok")]
    assert ask(endpoint) == ["ok"]
    assert endpoint.keys == ["Bearer sk-secret-1"]


@pytest.mark.parametrize("key", ["", " \n", "sk-sec\nret", "sk-s\u00e9cret", "sk-sec\x7fret", "sk sec"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_told(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("TEST_KEY", key)
    endpoint.script = [says("ok")]
    with pytest.raises(GroundingError, match="environment variable TEST_KEY: found") as caught:
        ask(endpoint)
    assert "sk" not in str(caught.value) and not endpoint.requests
    assert isinstance(caught.value, OSError)


def test_what_the_client_says_of_an_illegal_header_is_never_told(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding_client, "read_key", lambda variable: "sk-secret-1\n")  # as if one slipped through
    with pytest.raises(GroundingError, match="LocalProtocolError") as caught:
        ask(endpoint, retries=0)
    assert "secret" not in str(caught.value)


def test_without_a_key_none_is_sent(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    endpoint.script = [says("ok")]
    assert ask(endpoint) == ["ok"] and endpoint.keys == [None]


def test_an_address_that_is_none_is_an_error_that_names_the_key_of_the_recipe() -> None:
    with pytest.raises(GroundingError, match=r"counterfactual\.masks\.grounding\.url: found 'http://a:b:c'"):
        EndpointGrounder(GroundingSettings(url="http://a:b:c", model="seer"))
