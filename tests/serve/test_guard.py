"""T22 and T23: who asks wrongly is refused, whatever he sends, and the next one is answered. Counts are printed."""

import asyncio
import io
import resource
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image

from asgi import HOST, Answer, ask, asked, running
from convnet.errors import UsageError
from convnet.serve import listening
from convnet.serve.guard import Guard, Limits, Patient
from convnet.serve.routes import Server, application

BODIES = 10_000
MIB = 1 << 20


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((("host", "127.0.0.1:8000"),), 200),
        ((("host", "[::1]:8000"),), 200),
        ((("host", "localhost:8000"), ("origin", "http://localhost:8000")), 200),
        ((("host", "evil.example"),), 403),
        ((("host", "192.168.1.7:8000"),), 403),
        ((("host", "localhost.evil.example:8000"),), 403),
        ((), 403),
        ((*HOST, ("origin", "http://evil.example")), 403),
        ((*HOST, ("origin", "http://localhost:9000")), 403),
        ((*HOST, ("origin", "null")), 403),
        ((*HOST, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")), 403),
        ((*HOST, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")), 200),
    ],
)
def test_only_this_servers_own_page_may_ask(app: Guard, headers: tuple[tuple[str, str], ...], status: int) -> None:
    answer = ask(app, "GET", "/api/net", headers=headers)
    assert answer.status == status
    assert status == 200 or answer.json["error"]


def test_a_navigation_from_elsewhere_may_only_read(app: Guard) -> None:
    headers = (*HOST, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"))
    assert ask(app, "POST", "/api/pictures", b"x", headers=headers).status == 403


@pytest.mark.parametrize(
    "path",
    [
        *("/../pyproject.toml", "/runs/../../etc/passwd", "/runs/%2e%2e/report.html", "/runs/..%2f../report.html"),
        *("//etc/passwd", "/style.css/../main.js", "/page/page.html", "/api/pictures/../net", "/\x00"),
    ],
)  # fmt: skip
def test_no_path_leads_out(app: Guard, path: str) -> None:
    assert ask(app, "GET", path).status == 404


def test_every_answer_forbids_other_hosts(app: Guard) -> None:
    for target in ("/", "/style.css", "/api", "/nothing"):
        headers = ask(app, "GET", target).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_a_body_over_the_limit_is_413(server: Server) -> None:
    """Declared or not, and its sender hears it after the whole of it."""
    app = Guard(application(server), limits=Limits(body=1000))
    for body in (b"x" * 1001, [b"x" * 300] * 4):
        assert ask(app, "POST", "/api/pictures", body).status == 413
    declared = (*HOST, ("content-length", f"{10**12}"))
    assert ask(app, "POST", "/api/pictures", b"", headers=declared, receive=_never).status == 413
    assert app.n_bytes == 0


async def _never() -> dict[str, object]:
    await asyncio.Event().wait()
    raise AssertionError


def test_a_sender_without_an_end_is_408_and_one_without_end_413(server: Server) -> None:
    assert (
        ask(Guard(application(server), limits=Limits(seconds=0.01)), "POST", "/api/pictures", receive=_never).status
        == 408
    )

    async def endless() -> dict[str, object]:
        return {"type": "http.request", "body": bytes(MIB), "more_body": True}

    app = Guard(application(server))
    assert ask(app, "POST", "/api/pictures", receive=endless).status == 413
    assert app.n_bytes == 0


def test_all_bodies_together_are_bounded(server: Server) -> None:
    app = Guard(application(server), limits=Limits(bodies=1000))

    async def both() -> list[Answer]:
        gate = asyncio.Event()
        pieces = [b"x" * 900, b""]

        async def slow() -> dict[str, object]:
            if len(pieces) == 1:
                await gate.wait()
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        first = asyncio.create_task(asked(app, "POST", "/api/pictures", receive=slow))
        while app.n_bytes < 900:
            await asyncio.sleep(0)
        second = await asked(app, "POST", "/api/pictures", b"x" * 200)
        gate.set()
        return [await first, second]

    assert [each.status for each in asyncio.run(both())] == [422, 503]
    assert app.n_bytes == 0


def hostile_bodies(good: bytes) -> Iterator[bytes]:
    """Noise, noise with the first bytes of a picture, pictures damaged or cut short; a few sent as JSON."""
    generator = np.random.default_rng(0)
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(good)).convert("RGB").save(jpeg, "jpeg")
    heads = [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"II*\0",
        b"RIFF\0\0\0\0WEBP",
        b"BM",
        b"P6\n99 99\n255\n",
    ]
    for i in range(BODIES):
        noise = generator.bytes(int(generator.integers(0, 400)))
        match i % 4:
            case 0:
                yield noise
            case 1:
                yield heads[i // 4 % len(heads)] + noise
            case 2:
                yield jpeg.getvalue()[: int(generator.integers(0, len(jpeg.getvalue()) - 2))]
            case _:
                damaged = bytearray(good)
                damaged[int(generator.integers(8, len(good) - 12))] ^= int(generator.integers(1, 256))
                yield bytes(damaged)


def test_ten_thousand_hostile_bodies(app: Guard, pngs: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """T22: each is refused, memory stays, the next good one is answered."""
    counts: Counter[int] = Counter()
    ask(app, "POST", "/api/pictures", pngs[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bodies = hostile_bodies(pngs[1])

    async def client() -> None:
        for i, body in enumerate(bodies):
            target = "/api/batch" if i % 40 == 0 else "/api/pictures"
            counts[(await asked(app, "POST", target, body)).status] += 1

    async def several() -> None:
        await asyncio.gather(*(client() for _ in range(16)))

    asyncio.run(several())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    with capsys.disabled():
        print(f"\nT22: {counts.total():,} hostile bodies, answers {dict(counts)}, memory grew by {grown} MiB")
    assert counts.total() == BODIES
    assert {*counts} <= {400, 422}
    assert grown < 100
    assert ask(app, "POST", "/api/pictures", pngs[0]).status == 200


@pytest.mark.parametrize(
    ("size", "reason"), [((60_000, 60_000), "pixels"), ((8_000, 8_000), "pixels"), ((1, 60_000), "too elongated")]
)
def test_bombs_are_refused_unread(app: Guard, size: tuple[int, int], reason: str) -> None:
    """Small files that promise much: as pictures, or resized, they would take hundreds of MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = ask(app, "POST", "/api/pictures", png_that_promises(*size))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 100
    assert answer.status == 422
    assert reason in answer.json["error"]


def png_that_promises(width: int, height: int) -> bytes:
    """A black picture of one bit a pixel, if it isn't too large to be made."""
    rows = zlib.compress(bytes((1 + -(-width // 8)) * min(height, 60_000 if width == 1 else 8_000)), 1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    sums = [zlib.crc32(name + data) for name, data in chunks]
    ends = (struct.pack(">I", len(data)) + name + data for name, data in chunks)
    whole = (end + struct.pack(">I", crc) for end, crc in zip(ends, sums, strict=True))
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


@pytest.mark.parametrize("begun", [b"", b"GET /api HTTP/1.1\r\nHost: local"])
def test_who_sends_no_head_is_left(app: Guard, begun: bytes) -> None:
    class Hasty(Patient):
        seconds = 0.1

    with running(app, Hasty) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(begun)
        assert client.recv(1) == b""  # the server ended it


def test_who_sends_no_second_head_is_left_too(app: Guard) -> None:
    class Waiting(Patient):
        seconds = 60.0

    with running(app, Waiting) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += client.recv(65536)
        Waiting.seconds = 0.1
        client.sendall(b"GE")
        assert client.recv(1) == b""


def test_over_a_connection_a_refusal_is_heard_and_the_next_request_answered(server: Server, pngs: list[bytes]) -> None:
    """Too much without a length and with one, from elsewhere; and then a picture."""
    app = Guard(application(server), limits=Limits(body=5000))
    statuses = []
    with running(app) as port:
        for body, headers in (
            (iter([b"x" * 3000] * 3), {}),
            (b"x" * 5001, {}),
            (pngs[0], {"Origin": "http://evil.example"}),
            (pngs[0], {}),
        ):
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/api/pictures", body, headers)
            statuses.append(connection.getresponse().status)
            connection.close()
    assert statuses == [413, 413, 403, 200]


def test_a_port_in_use_is_told() -> None:
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: cannot listen there: .*; choose another --port"):
            listening("127.0.0.1", port)
