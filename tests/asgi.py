"""A client within the process, which asks an ASGI application as a connection would, without one; and a server."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp, Message

from convnet.serve import listening, settings
from convnet.serve.guard import Guard, Patient

HOST = (("host", "localhost:8000"),)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def asked(
    app: ASGIApp,
    method: str,
    target: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Sequence[tuple[str, str]] = HOST,
    receive: Callable[[], Awaitable[Message]] | None = None,
) -> Answer:
    """What the application answers. body: in one piece or in several. receive: instead of a body."""
    path, _, query = target.partition("?")
    pieces = [body] if isinstance(body, bytes) else list(body)
    rows = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
             "headers": rows, "http_version": "1.1", "scheme": "http", "root_path": "", "client": None,
             "server": None}  # fmt: skip
    sent: list[Message] = []

    async def give() -> Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def take(message: Message) -> None:
        sent.append(message)

    await app(scope, receive or give, take)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, b"".join(each.get("body", b"") for each in sent[1:]))


def ask(app: ASGIApp, method: str, target: str, body: bytes | Sequence[bytes] = b"", **how: Any) -> Answer:
    return asyncio.run(asked(app, method, target, body, **how))


@contextmanager
def running(app: Guard, protocol: type[Patient] = Patient) -> Iterator[int]:
    """The application on a port of its own, in a thread."""
    config = settings(app)
    config.http, config.timeout_keep_alive = protocol, 120
    server = uvicorn.Server(config)
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
