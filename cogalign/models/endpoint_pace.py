"""How fast requests may go to an endpoint: a steady pace of requests and tokens, and a hold that the server asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class Pace:
    """Lets requests go so that neither limit is passed in any minute; safe for threads.

    Requests are spread evenly and do not come in bursts: after one of n tokens the next may go
    max(60 / requests_per_minute, 60 n / tokens_per_minute) seconds later.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: likewise; prompt and answer together.
        clock: seconds from any start.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._request_free = self._token_free = self._held = -float("inf")

    def reserve(self, tokens: int) -> float:
        """Take the next place for a request of about so many tokens; seconds until it may go."""
        with self._lock:
            now = self._clock()
            start = max(now, self._request_free, self._token_free, self._held)
            self._request_free = start + self._per_request
            self._token_free = start + self._per_token * tokens
            return start - now

    def settle(self, reserved: int, used: int) -> None:
        """Correct a reservation once it is known how many tokens there were."""
        with self._lock:
            self._token_free += self._per_token * (used - reserved)

    def hold(self, seconds: float) -> None:
        """Let no request go before so many seconds have passed."""
        with self._lock:
            self._held = max(self._held, self._clock() + seconds)

    def held(self) -> float:
        """Seconds for which requests are still held."""
        with self._lock:
            return max(0.0, self._held - self._clock())


def retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which is a number or a date (RFC 9110, 10.2.3); None if it is neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, IndexError, TypeError):
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds and seconds != float("inf") else None
