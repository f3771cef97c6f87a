"""Who may ask, how much, and how slowly? What stands before every request, whoever sends it.

A request is refused that names another host than this server (so that a page elsewhere can't reach it through a name of
its own that leads here), that comes from another origin, whose body is too large or too slow, or for which there is no
room. A body is read whole before anybody is asked; all bodies in memory together are bounded.
"""

import asyncio
import ipaddress
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

BODY = 20 << 20  # bytes of a request's body: a large photo, or some dozens of small ones
BODIES = 256 << 20  # bytes of all bodies in memory
READ_ON = 4 * BODY  # bytes: so much of a body that is too large is read and dropped, so that its sender hears why
SECONDS = 30.0  # for a request's head, for its body, and for a piece of an answer
CONNECTIONS = 256  # at a time; the next one is told 503

LOCAL = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):  # noqa: N818 - the answer to a request
    """A request that isn't answered: the HTTP status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Limits:
    """What a request may cost, as the constants above say; tests have smaller ones."""

    body: int = BODY
    bodies: int = BODIES
    seconds: float = SECONDS


class Guard:
    """The ASGI application `app` for requests that are to be answered; `host`: where the server listens."""

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1", limits: Limits | None = None) -> None:
        self.app, self.host, self.limits = app, host, limits or Limits()
        self.n_bytes = 0  # of the bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await asyncio.wait_for(send(message), self.limits.seconds)  # who doesn't read isn't waited for

        body = bytearray()
        try:
            check_sender(scope["method"], Headers(scope=scope), self.host)
            await self._read(Headers(scope=scope), receive, body)
            await self.app(scope, _whole(bytes(body)), answer)
        except Refused as refused:
            await _refuse(answer, refused)
        except TimeoutError:  # of an answer that nobody read
            return
        finally:
            self.n_bytes -= len(body)

    async def _read(self, headers: Mapping[str, str], receive: Receive, body: bytearray) -> None:
        """The request's body into `body`. Raises: Refused."""
        most, declared = self.limits.body, headers.get("content-length", "0")
        large = Refused(413, f"the body has more than the {most:,} bytes that are taken; send a smaller picture")
        if int(declared) > READ_ON:  # h11 has checked that it is a number
            raise large
        n, more = 0, True
        try:
            async with asyncio.timeout(self.limits.seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the connection ended before the body")
                    more = message.get("more_body", False)
                    n += len(chunk := message.get("body", b""))
                    if n > READ_ON:
                        raise large
                    if n <= most:
                        if self.n_bytes + len(chunk) > self.limits.bodies:
                            raise Refused(503, "too many pictures at once; send it again in a moment")
                        body += chunk
                        self.n_bytes += len(chunk)
        except TimeoutError:
            text = f"the body was not there after {self.limits.seconds:g} seconds; send it faster"
            raise Refused(408, text) from None
        if n > most:
            raise large


def check_sender(method: str, headers: Mapping[str, str], host: str) -> None:
    """Whether a request is for this server, and from its own page or from no page. Raises: Refused."""
    named = headers.get("host", "")
    if not is_ours(named.rpartition(":")[0] if named.rpartition(":")[2].isdecimal() else named, host):
        raise Refused(403, f"this server is not {named[:100]!r}; open it by the address that convnet serve printed")
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{named}", f"https://{named}"):
        raise Refused(403, f"a page of {origin[:100]!r} asks; only this server's own page may")
    from_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if from_elsewhere and not (method == "GET" and headers.get("sec-fetch-mode") == "navigate"):  # a link to us
        raise Refused(403, "a page of another site asks; only this server's own page may")


def is_ours(name: str, host: str) -> bool:
    """Whether a Host header may name this server, which listens at `host`: by names that nobody else can own.

    >>> is_ours("localhost", "127.0.0.1"), is_ours("evil.example", "0.0.0.0"), is_ours("192.168.1.7", "0.0.0.0")
    (True, False, True)
    >>> is_ours("192.168.1.7", "127.0.0.1")
    False
    """
    if name in LOCAL:
        return True
    if host in ("127.0.0.1", "localhost", "::1"):
        return False
    if name in (host, f"[{host}]", socket.gethostname()):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True  # an address is nobody's name


def _whole(body: bytes) -> Receive:
    """What an application receives of a body that is there already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


async def _refuse(send: Send, refused: Refused) -> None:
    body = json.dumps({"error": refused.reason}).encode()
    headers = {"content-type": "application/json", "content-length": f"{len(body)}", "connection": "close"}
    rows = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": rows})
    await send({"type": "http.response.body", "body": body})


class Patient(H11Protocol):
    """A connection, but for one whose request's head doesn't come within SECONDS: it ends."""

    seconds = SECONDS
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._late is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(self.seconds, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
