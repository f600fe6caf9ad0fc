"""A chat model behind an OpenAI-compatible endpoint (GPT, Gemini, vLLM): one conversation in, one answer out."""

from __future__ import annotations

import base64
import os
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from cogalign.models.endpoint_http import Wire, goes_unencrypted, shown
from cogalign.models.endpoint_pace import Pace, retry_after
from cogalign.models.endpoint_wire import Message, Usage, content_of, estimate, is_cut, message_of, usage_of
from cogalign.training.progress import say

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first repetition, doubled each time, up to the longest; half to all of it, by chance."""
BUSY = 8
"""After `429` without `Retry-After` pauses are so many times longer."""
LONGEST_WAIT = 120.0
"""A server that asks to wait longer (a quota of the day) ends the work."""
MISTAKES = (401, 402, 403, 404, 405)
"""Answers that every other request would get too."""
AGAIN = (408, 409, 425, 429)
"""Answers below 500 after which the same request may succeed."""
LEAST_SECRET = 8
"""Characters of a key that is masked in answers too; shorter ones (`none`) are words that an answer may hold."""
LONGEST_REASON = 300
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError,
           httpx.LocalProtocolError)  # fmt: skip
"""Failures before the request was out."""


class EndpointError(ConnectionError):
    """The endpoint cannot be used as the settings say; the message never holds the key."""


class EndpointStopped(Exception):
    """No request may go out any more: `ChatEndpoint.stop` was called, or the purse is empty."""

    usage = Usage()
    """Of the requests for this answer that went out before."""


@dataclass(frozen=True)
class EndpointSettings:
    """Where the model is and how it is asked."""

    url: str
    """OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1."""
    model: str
    """Name of the model there."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is written nowhere."""
    max_completion_length: int = 2048
    """Longest answer in tokens; what a reasoning model thinks counts too."""
    concurrency: int = 4
    """Connections at once."""
    timeout: float = 60.0
    """Seconds for one request, from the connection to the last byte of the answer."""
    retries: int = 3
    """Times that a failed request is sent again."""
    requests_per_minute: float | None = None
    """Requests are spread so that there are no more; None for no limit."""
    tokens_per_minute: int | None = None
    """Likewise for tokens of prompts and answers."""
    temperature: float | None = 0.0
    """Not sent if None, or once the server has refused it."""
    reasoning_effort: str | None = None
    """`low`, `medium`, ... for models that think; not sent if None."""

    def __post_init__(self) -> None:
        wanted = {
            "max_completion_length": (self.max_completion_length >= 1, "at least 1"),
            "concurrency": (self.concurrency >= 1, "at least 1"),
            "timeout": (self.timeout > 0, "more than 0 seconds"),
            "retries": (self.retries >= 0, "0 or more"),
            "requests_per_minute": (self.requests_per_minute is None or self.requests_per_minute > 0, "more than 0"),
            "tokens_per_minute": (self.tokens_per_minute is None or self.tokens_per_minute > 0, "more than 0"),
        }
        for name, (good, text) in wanted.items():
            if not good:
                raise ValueError(f"endpoint.{name}: found {getattr(self, name)!r}, wanted {text}")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str | None
    """None: there was no answer, see `reason`."""
    reason: str
    """Why there is none."""
    usage: Usage
    """Of all requests for this answer, failed ones included."""
    cut: bool = False
    """The answer ended at the token limit."""
    refused: bool = False
    """The server refuses this request, but may take others."""


@dataclass
class _Tally:
    """What the requests for one answer used so far."""

    usage: Usage = field(default_factory=Usage)


class Purse(Protocol):
    """Somebody who watches the spending."""

    def take(self, prompt: int, completion: int) -> bool:
        """Whether a request of about so many prompt tokens and at most so many of the answer may go out."""
        ...

    def settle(self, prompt: int, completion: int, usage: Usage) -> None:
        """Tell what became of a request for which `take` said yes."""
        ...


class ChatEndpoint:
    """Chat completions of an OpenAI-compatible endpoint. `ask` may be called from several threads.

    Args:
        settings: url, model, environment variable of the key, and limits.
        name: of the settings, for messages (`counterfactual.masks.grounding`).
        key: the key, if it was read before; None reads it.
        first_pause: seconds before the first repetition.
        purse: asked before each request, failed ones included.

    Raises:
        EndpointError: the address is none, or the key cannot be sent.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        name: str = "endpoint",
        key: str | None = None,
        first_pause: float | None = None,
        purse: Purse | None = None,
    ) -> None:
        self.settings = settings
        self._key = read_key(settings.api_key_env) if key is None else key
        self._first_pause = FIRST_PAUSE if first_pause is None else first_pause
        self._purse = purse
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._chance = random.Random()
        self._schema: bool | None = None  # whether the server takes a JSON schema; None: not yet known
        self._limits: dict[str, Any] = {"max_tokens": settings.max_completion_length}
        if settings.temperature is not None:
            self._limits["temperature"] = settings.temperature
        if settings.reasoning_effort is not None:
            self._limits["reasoning_effort"] = settings.reasoning_effort
        self._secrets = _secrets(self._key, settings.url)
        self._http = _connections(settings, name, self._key)

    def close(self) -> None:
        """Let no request go any more and close the connections."""
        self._stop.set()
        self._http.close()

    def stop(self) -> None:
        """Let no new request go, repetitions included; those under way may end."""
        self._stop.set()

    def ask(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, prompt_tokens: int | None = None
    ) -> Answer:
        """One answer; no text where the endpoint refused this request or failed `retries` times more.

        Args:
            messages: the conversation; see `turn`.
            schema: JSON schema of the answer, sent where the server takes one (OpenAI, Gemini, vLLM); without any effect
                elsewhere.
            prompt_tokens: about how many the messages have, for pace and purse; default: `estimate`.

        Raises:
            EndpointError: key, address or model are wrong, or the server asks to wait longer than `LONGEST_WAIT`.
            EndpointStopped: nothing may be sent any more.
        """
        tally = _Tally()
        try:
            return self._answer(messages, schema, estimate(messages) if prompt_tokens is None else prompt_tokens, tally)
        except EndpointStopped as stopped:
            stopped.usage = tally.usage
            raise

    def _answer(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None, size: int, tally: _Tally
    ) -> Answer:
        """See `ask`; what was used stands in the tally, also if this raises."""
        reason = ""
        for attempt in range(self.settings.retries + 1):
            response, failure = self._try(messages, schema, size, tally)
            busy = False
            if response is None:
                reason = failure
            elif response.status_code < 400:
                text = content_of(response)
                if text is not None:
                    return Answer(self._clean(text, LEAST_SECRET), "", tally.usage, is_cut(response))
                reason = "the answer is no chat completion"
            else:
                reason = self._clean(f"HTTP {response.status_code}: {message_of(response)}")[:LONGEST_REASON]
                self._fatal(response, reason)
                if response.status_code < 500 and response.status_code not in AGAIN:
                    return Answer(None, reason, tally.usage, refused=True)
                busy = response.status_code == 429
            if attempt < self.settings.retries:
                self._rest(attempt, busy)
        return Answer(None, reason, tally.usage)

    def _try(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None, size: int, tally: _Tally
    ) -> tuple[httpx.Response | None, str]:
        """Send until the server takes the form of the request; the response, or None and why there is none."""
        while True:
            form = self._form(schema)
            body = {"model": self.settings.model, "messages": list(messages), **form}
            try:
                response = self._post(body, size, tally)
            except httpx.LocalProtocolError:  # its text would quote headers, so the key
                return None, "LocalProtocolError: the request cannot be sent"
            except httpx.RequestError as error:
                return None, self._clean(f"{type(error).__name__}: {error}")[:LONGEST_REASON]
            if response.status_code == 400 and self._mend(response.text, form):
                continue
            if response.status_code < 400 and "response_format" in form:
                self._schema = True
            return response, ""

    def _form(self, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        """Limits and format of a request, as far as the server takes them."""
        with self._lock:
            form = dict(self._limits)
            if schema is not None and self._schema is not False:
                inner = {"name": "answer", "strict": True, "schema": dict(schema)}
                form["response_format"] = {"type": "json_schema", "json_schema": inner}
            return form

    def _mend(self, complaint: str, form: Mapping[str, Any]) -> bool:
        """Whether a request that was refused with 400 should go out once more in another form.

        Newer models of OpenAI want another name for the length and no temperature. A server that knows no schema often
        does not say so: the first refusal with one is taken for that.
        """
        with self._lock:
            if "max_completion_tokens" in complaint and "max_tokens" in form:
                self._limits = {"max_completion_tokens": self.settings.max_completion_length}
                if self.settings.reasoning_effort is not None:
                    self._limits["reasoning_effort"] = self.settings.reasoning_effort
                return True
            for name in ("temperature", "reasoning_effort"):
                if name in complaint and name in form:
                    self._limits.pop(name, None)
                    return True
            if "response_format" in form and self._schema is not True:
                self._schema = False
                return True
            return False

    def _post(self, body: dict[str, Any], size: int, tally: _Tally) -> httpx.Response:
        """One request in its turn, counted."""
        longest = self.settings.max_completion_length
        if self._stop.wait(self._pace.reserve(size)) or self._stop.wait(self._pace.held()):
            raise EndpointStopped("stopped")
        if self._purse is not None and not self._purse.take(size, longest):
            raise EndpointStopped("the purse is empty")
        usage = Usage(requests=1, lost=1)
        try:
            response = self._http.post("chat/completions", body)
            usage = usage_of(response, size)
            return response
        except _UNSENT:
            usage = Usage(requests=1)
            raise
        finally:
            tally.usage += usage
            if self._purse is not None:
                self._purse.settle(size, longest, usage)
            self._pace.settle(size, usage.prompt + usage.completion)

    def _fatal(self, response: httpx.Response, reason: str) -> None:
        """Raise where no other request would be answered either."""
        where = f"{shown(self.settings.url)} refused model {self.settings.model!r} ({reason})"
        if response.status_code in MISTAKES:
            raise EndpointError(
                f"{where}; its key is read from the environment variable {self.settings.api_key_env}, which is "
                f"{'set' if self._key else 'not set'}"
            )
        if response.status_code == 429 and "insufficient_quota" in response.text:
            raise EndpointError(f"{where}; its quota is used up")
        wait = retry_after(response.headers.get("Retry-After"))
        if wait is not None and wait > LONGEST_WAIT:
            raise EndpointError(f"{where}; it asks to wait {wait:.0f} s, run again then")
        if wait is not None and (response.status_code in AGAIN or response.status_code >= 500):
            self._pace.hold(wait)

    def _rest(self, attempt: int, busy: bool) -> None:
        """Wait before a request goes out again; no longer than needed where the server said how long."""
        pause = min(self._first_pause * 2**attempt, LONGEST_PAUSE) * self._chance.uniform(0.5, 1.0)
        held = self._pace.held()
        if held > 0:
            pause = held + pause / BUSY  # not all at the same moment
        elif busy:
            pause *= BUSY
        if self._stop.wait(pause):
            raise EndpointStopped("stopped")

    def _clean(self, text: str, least: int = 1) -> str:
        """The text without key and password (those of at least so many characters), should a server have repeated them."""
        for secret in self._secrets:
            text = text.replace(secret, "***") if len(secret) >= least else text
        return text


def read_key(variable: str) -> str:
    """The key in an environment variable, without the blanks around it; an empty text where it is not set.

    Raises:
        EndpointError: it holds nothing, or what a header cannot carry; the message names the variable, not the key.
    """
    value = os.environ.get(variable)
    if value is None:
        return ""
    key = value.strip()
    wanted = "wanted the endpoint's key in printable ASCII, or unset it where the endpoint wants none"
    if not key:
        raise EndpointError(f"environment variable {variable}: found nothing or blanks only, {wanted}")
    if not all("!" <= letter <= "~" for letter in key):
        raise EndpointError(f"environment variable {variable}: found a blank, control or foreign character, {wanted}")
    return key


def _secrets(key: str, address: str) -> list[str]:
    """What no message may hold: the key, and the password of an address, as it stands there and as it is sent."""
    found = [key]
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        return [key] if key else []
    if url.password:
        given = url.userinfo.decode("ascii", "replace")
        found += [url.password, given.partition(":")[2]]
        found.append(base64.b64encode(f"{url.username}:{url.password}".encode()).decode("ascii"))
    return sorted({secret for secret in found if secret}, key=len, reverse=True)


def _connections(settings: EndpointSettings, name: str, key: str) -> Wire:
    """Connections to the endpoint."""
    wanted = "wanted an endpoint such as http://127.0.0.1:8000/v1"
    found = shown(settings.url)
    try:
        url = httpx.URL(settings.url.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        reason = f" ({error})" if found == settings.url else ""  # which may quote a password
        raise EndpointError(f"{name}.url: found {found!r}{reason}, {wanted}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise EndpointError(f"{name}.url: found {found!r}, {wanted}")
    if goes_unencrypted(url) and (key or url.password):
        say(f"warning: {name}.url: {found} is not encrypted: who listens on the way can read the key and the images")
    return Wire(url, key, settings.timeout, settings.concurrency)
