"""One server over HTTP: a pool of connections, waits that end, and no answer counted twice."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import httpx

from speceval.engines.server import address
from speceval.engines.server.address import short
from speceval.errors import UserError
from speceval.foreign import parse_json

TRIES = 6
"""Of a request that the server has not taken: it was busy, or not there."""
LONGEST_PAUSE = 30.0
"""Seconds between two of them, whatever the server asks for."""
SECONDS = 600.0
"""Without a byte, after which a server has stalled."""
SECONDS_OF_A_FAREWELL = 3.0
"""For what a server is asked on the way out, which it may be too broken to do."""
BUSY = (429, 503)
"""Status of a request that was turned away before any work on it."""
NO_KEY = 401
RESUMES = "what was finished is stored, the same command resumes"
"""What to do when the server of a run fails."""
STANDS_ALONE = "is the server up, and its address right?"
"""The same, where nothing is stored."""


LONGEST_LINE = 1 << 24
"""Characters of one event of a stream."""
EVENTS_OF_A_TOKEN, SPARE_EVENTS = 2, 100
"""Of a stream that ends; one a token is what servers send."""
LARGEST = 1 << 30
"""Bytes of an answer: recordings of many long requests are some hundred million."""
T = TypeVar("T")


@dataclass(frozen=True)
class Stream:
    """What came piece by piece: the parsed events, and how many seconds after the call each came."""

    sent: float
    """Unix time of the call: of its first try."""
    events: list[Any]
    came: list[float]


class Gone(UserError):
    """The server cannot be reached, has stalled, or broke off."""


class Refused(UserError):
    """The server answered with an error: `status`, and its own words."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Calls to the server at `url`, all made by one thread with an event loop; threads may share it.

    A call is made again only where the server has done nothing for it: no connection, 429 or 503. One that breaks off
    later is an error, because the server's own totals may hold its tokens. Redirects are not followed, so that a key
    reaches the host that was named and no other.
    """

    def __init__(
        self,
        url: str,
        connections: int = 1,
        key_variable: str | None = None,
        seconds: float = SECONDS,
        mend: str = RESUMES,
    ) -> None:
        """`key_variable`: environment variable that holds the key; `mend` ends the lines that say what went wrong.

        Raises `UserError`.
        """
        self.url, self._key, self._mend = address.normal(url), address.key(key_variable), mend
        self._timeout, self._tries = httpx.Timeout(seconds, connect=10.0, pool=None), TRIES
        self._http = _http(self.url, self._key, connections)
        self._room = asyncio.Semaphore(connections)
        """For calls that `begin`: those that wait must not wait in the pool, which looks through all of them each time
        that one ends, nor before what is asked besides."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="calls", daemon=True)
        self._thread.start()

    def text(self, path: str) -> str:
        """What GET answers."""
        return self._start(self._call("GET", path, None)).result().decode(errors="replace")

    def get(self, path: str) -> Any:
        """What GET answers, parsed."""
        return self._parsed(self._start(self._call("GET", path, None)).result(), path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What POST answers, parsed; not among the calls that `begin` counts."""
        return self._parsed(self._start(self._call("POST", path, body)).result(), path)

    def begin(self, path: str, body: dict[str, Any]) -> Future[Any]:
        """POST: what it will answer, parsed. As many calls as there are connections are out at once, others wait."""

        async def answer() -> Any:
            async with self._room:
                return self._parsed(await self._call("POST", path, body), path)

        return self._start(answer())

    def begin_stream(self, path: str, body: dict[str, Any], tokens: int) -> Future[Stream]:
        """POST: the events of what it will answer, for so many tokens at most."""

        async def answer() -> Stream:
            async with self._room:
                return await streamed()

        async def streamed() -> Stream:
            sent, begun, events, came = time.time(), time.perf_counter(), list[Any](), list[float]()
            seconds = self._seconds
            async with self._opened("POST", path, body) as response, asyncio.timeout(seconds) as limit:
                if not response.is_success:
                    self._refuse(response, await _content(response), path)
                async for line in _lines(response):
                    if not line.startswith("data:") or (text := line[5:].strip()) == "[DONE]":
                        continue
                    limit.reschedule(self._loop.time() + seconds)
                    came.append(time.perf_counter() - begun)
                    events.append(self._event(text, path))
                    if len(events) > EVENTS_OF_A_TOKEN * tokens + SPARE_EVENTS:
                        raise httpx.RemoteProtocolError("a stream without an end")
            if not events:
                raise UserError(f"{self.url}{path}: answered nothing that is a stream: {self._mend}")
            return Stream(sent, events, came)

        return self._start(answer())

    def _event(self, text: str, path: str) -> Any:
        """One event of a stream. Raises `UserError` for what is none, and for an error that a server sends as one."""
        event = self._parsed(text, path)
        if not isinstance(event, dict):
            raise UserError(f"{self.url}{path}: answered something that is no JSON object: {self._mend}")
        if event.get("error"):
            raise UserError(f"{self.url}{path}: {short(_told(event), self._key)}: {self._mend}")
        return event

    def hurry(self) -> None:
        """Nobody waits long any more: calls from now on are made once, and end within seconds."""
        self._timeout, self._tries = httpx.Timeout(SECONDS_OF_A_FAREWELL), 1

    def close(self) -> None:
        """Drop every connection, which ends what still runs on the server; again: nothing."""
        if self._loop.is_closed():
            return

        async def drop() -> None:
            calls = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await self._http.aclose()

        self._start(drop()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    async def _call(self, verb: str, path: str, body: dict[str, Any] | None) -> bytes:
        """What was answered. Raises `UserError` in one line, `Refused` for an answer that is an error."""
        # Pauses between bytes may be short for ever: all of an answer must be here in the time of one.
        async with self._opened(verb, path, body) as answer, asyncio.timeout(self._seconds):
            content = await _content(answer)
            if not answer.is_success:
                self._refuse(answer, content, path)
            return content

    @asynccontextmanager
    async def _opened(self, verb: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[httpx.Response]:
        """The answer as it begins, once the server takes the call. Errors until its end are those of `_call`."""
        try:
            async with AsyncExitStack() as open_:
                yield await self._taken(open_, self._http.build_request(verb, path, json=body, timeout=self._timeout))
        except (httpx.TimeoutException, TimeoutError) as error:
            raise Gone(f"{self.url}{path}: no answer in time, the server stalled: {self._mend}") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Gone(f"{self.url}{path}: the connection broke off ({_line(error)}): {self._mend}") from error

    async def _taken(self, open_: AsyncExitStack, request: httpx.Request) -> httpx.Response:
        """The answer of a server that was there and not too busy, not read yet."""
        for number in range(1, self._tries + 1):
            last = number == self._tries
            try:
                answer = await self._http.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                encrypted = "SSL" in str(error)  # which is as wrong the next time
                if last or encrypted:
                    mend = f"SSL_CERT_FILE=FILE names a certificate to trust; {self._mend}" if encrypted else self._mend
                    raise Gone(f"{self.url}: cannot be reached ({_line(error)}): {mend}") from error
                await asyncio.sleep(_pause(None, number))
                continue
            if answer.status_code in BUSY and not last:
                await answer.aclose()
                await asyncio.sleep(_pause(answer.headers.get("Retry-After"), number))
                continue
            open_.push_async_callback(answer.aclose)
            return answer
        raise AssertionError("unreachable")

    def _refuse(self, answer: httpx.Response, content: bytes, path: str) -> NoReturn:
        if answer.is_redirect:
            where = short(answer.headers.get("Location", "nowhere"), self._key)
            raise Refused(f"{self.url}{path}: redirects to {where}: give that address if you trust it", 300)
        reason = short(_reason(content), self._key) or short(answer.reason_phrase)
        if answer.status_code == NO_KEY:
            reason += ": is the key right?" if self._key else ": --api-key-env NAME sends a key"
        raise Refused(f"{self.url}{path}: {answer.status_code} {reason}", answer.status_code)

    def _parsed(self, content: bytes | str, path: str) -> Any:
        """As stored JSON is read: no number without sense, which could be written and not be read again."""
        try:
            return parse_json(content, path)
        except UserError as error:
            raise UserError(f"{self.url}{path}: answered something that is no JSON: {self._mend}") from error

    @property
    def _seconds(self) -> float:
        """Within which something must come."""
        return self._timeout.read or SECONDS


async def _content(answer: httpx.Response) -> bytes:
    """All of an answer, unpacked."""
    content = bytearray()
    async for piece in answer.aiter_bytes():
        content += piece
        if len(content) > LARGEST:
            raise httpx.RemoteProtocolError("an answer without an end")
    return bytes(content)


def _http(url: str, key: str, connections: int) -> httpx.AsyncClient:
    # One connection a call: an idle one may be dropped, by the server or here, just as it is used again.
    limits = httpx.Limits(max_connections=connections + 1, max_keepalive_connections=0)
    try:
        return httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=limits,
            follow_redirects=False,
            # With a transport of its own it asks none of the environment's proxies.
            transport=httpx.AsyncHTTPTransport(limits=limits) if address.is_here(url) else None,
        )
    except (ImportError, ValueError, OSError) as error:
        variables = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE"
        raise UserError(f"{url}: the environment's {variables} name what cannot be used: {_line(error)}") from error


def _pause(asked: str | None, number: int) -> float:
    """Seconds before try `number` + 1; `asked`: the server's Retry-After, which may also be a date."""
    try:
        seconds = float(asked) if asked is not None else 0.5 * 2 ** (number - 1)
    except ValueError:
        seconds = LONGEST_PAUSE
    return min(seconds, LONGEST_PAUSE) if seconds >= 0 else LONGEST_PAUSE  # also for what is no number


async def _lines(answer: httpx.Response) -> AsyncIterator[str]:
    """The lines of a stream, each as soon as it is whole; it ends with a newline, or was cut off.

    Only a newline ends one: texts hold all kinds of separators.
    """
    left = ""
    async for piece in answer.aiter_text():
        *whole, left = (left + piece).split("\n")
        for line in whole:
            yield line
        if len(left) > LONGEST_LINE:
            raise httpx.RemoteProtocolError("a line without an end")
    if left.strip():
        yield left


def _told(content: Any) -> Any:
    """What an answer says that is an error: the server's own words."""
    error = content.get("error", content.get("detail", content))
    return error.get("message", error) if isinstance(error, dict) else error


def _reason(content: bytes) -> Any:
    try:
        return _told(json.loads(content))
    except (ValueError, AttributeError, RecursionError):
        return content[:1000].decode(errors="replace")


def _line(error: Exception) -> str:
    return short(error) or type(error).__name__
