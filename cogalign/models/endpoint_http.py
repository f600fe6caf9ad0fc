"""Sending JSON and reading the whole answer, within one limit of time and one of size."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import httpx

MIB = 1024 * 1024
LARGEST = 16 * MIB
"""Bytes of an answer, unpacked; a chat completion has a few thousand."""
LONGEST_CONNECT = 10.0
"""Seconds to connect, at most."""
HERE = ("127.0.0.1", "localhost", "::1")
_EARLIER = 0.9
"""Share of the time after which a connection that is still not there counts as failed, so before the request does."""
_KEPT = ("content-type", "retry-after")


class AnswerTooLarge(httpx.RequestError):
    """The answer has more bytes than `LARGEST`; the rest of it was not read."""


class Wire:
    """Connections to one server. `post` may be called from several threads.

    The requests run in one thread of their own, where a limit of time can end them at any point: httpx itself limits each
    silence, not the whole.

    Args:
        base_url: before all paths.
        key: sent as a bearer token; an empty text sends none.
        timeout: seconds from the first byte that is sent to the last one of the answer, connecting included.
        connections: at once.
    """

    def __init__(self, base_url: httpx.URL, key: str, timeout: float, connections: int) -> None:
        self._timeout = timeout
        early = timeout * _EARLIER
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(LONGEST_CONNECT, early), pool=early),
            limits=httpx.Limits(max_connections=connections),
            verify=base_url.scheme == "https",  # plain HTTP needs no certificates, and redirects are not followed
            trust_env=base_url.host not in HERE,  # a proxy is of no use on this machine
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """The answer to one request, read to its end.

        Raises:
            httpx.RequestError: there is none; `ReadTimeout`: not within the time; `AnswerTooLarge`.
        """
        if self._loop.is_closed():
            raise httpx.LocalProtocolError("the connections are closed")
        return asyncio.run_coroutine_threadsafe(self._post(path, body), self._loop).result()

    def close(self) -> None:
        """Close the connections; requests that are under way end with an error."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        try:
            async with asyncio.timeout(self._timeout), self._http.stream("POST", path, json=body) as response:
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > LARGEST:
                        raise AnswerTooLarge(f"the answer has more than {LARGEST // MIB} MiB")
        except TimeoutError:
            raise httpx.ReadTimeout(f"no whole answer within {self._timeout:g} s") from None
        except asyncio.CancelledError:
            raise httpx.ReadError("the connections were closed") from None
        headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
        return httpx.Response(response.status_code, headers=headers, content=bytes(content))

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()


def shown(url: str) -> str:
    """An address without user name and password, for messages."""
    return re.sub(r"(?<=//).*@", "***@", url, flags=re.DOTALL)


def goes_unencrypted(url: httpx.URL) -> bool:
    """Whether what is sent to an address crosses a network as plain text."""
    return url.scheme == "http" and url.host not in HERE
