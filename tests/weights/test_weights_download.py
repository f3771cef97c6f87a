"""Known files: only the right bytes get the name. Against a server on this machine that drops, lies and stalls."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnet.errors import ConvnetError, DataError
from convnet.nets import MODELS
from convnet.nets.published import Known
from convnet.progress import Silent
from convnet.weights import download
from convnet.weights.download import KNOWN, fetch

DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)


class Server(ThreadingHTTPServer):
    """Serves DATA at any address; `behave` is the list of what goes wrong, one for each request, then nothing does."""

    daemon_threads = True
    behave: list[str]
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        how = self.server.behave.pop(0) if self.server.behave else ""
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and how != "no ranges" else 0
        if how in ("404", "503"):
            self.send_error(int(how))
            return
        if begin >= len(DATA):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(DATA)}")
            self.end_headers()
            return
        body = {"html": b"<html>log in</html>", "wrong": bytes(len(DATA)), "short": DATA[:-5]}.get(how, DATA)[begin:]
        self.send_response(206 if wanted and how != "no ranges" else 200)
        if begin:
            first = begin + (7 if how == "wrong range" else 0)
            self.send_header("Content-Range", f"bytes {first}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Type", "text/html" if how == "html" else "application/octet-stream")
        if how != "no length":
            n = 1 << 40 if how == "huge" else len(body) - 10 if how == "too little said" else len(body)
            self.send_header("Content-Length", str(n))
        self.end_headers()
        if how == "drop":
            body = body[: len(body) // 2]
        if how == "stall":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            threading.Event().wait(1)
            return
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        made.behave, made.asked = [], []
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def file(server: Server, digest: str = f"sha256:{SHA256[:8]}") -> Known:
    return Known("vgg_d", f"http://127.0.0.1:{server.server_port}/net-{SHA256[:8]}.pth", digest)


def test_a_whole_file_gets_its_name(server: Server, tmp_path: Path) -> None:
    path = fetch(file(server), tmp_path / "weights")
    assert path.read_bytes() == DATA
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    fetch(file(server), tmp_path / "weights")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("behave", "n_requests", "ranges"),
    [
        (["drop"], 2, True),
        (["drop", "drop", "drop"], 4, True),
        (["stall"], 2, True),
        (["503"], 2, False),
        (["drop", "no ranges"], 2, True),
        (["drop", "503", "drop"], 4, True),
        (["no length"], 1, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_breaks_off_goes_on(
    server: Server, tmp_path: Path, behave: list[str], n_requests: int, ranges: bool
) -> None:
    server.behave = list(behave)
    assert fetch(file(server), tmp_path).read_bytes() == DATA
    assert len(server.asked) == n_requests
    assert any(server.asked) == ranges


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("404", "the server answers 404 Not Found"),
        ("html", "the server sends text/html, not weights"),
        ("wrong", f"its sha256 begins with .*, published is {SHA256[:8]}; thrown away"),
        ("short", "its sha256 begins with"),
        ("too little said", "its sha256 begins with"),
        ("huge", "the server announces 1,099,511,627,776 bytes"),
    ],
)
def test_wrong_bytes_are_never_accepted(server: Server, tmp_path: Path, how: str, text: str) -> None:
    server.behave = [how]
    with pytest.raises(DataError, match=text):
        fetch(file(server), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fetch(file(server), tmp_path).read_bytes() == DATA


def test_a_later_call_goes_on_and_verifies_the_whole(server: Server, tmp_path: Path) -> None:
    server.behave = ["503"] * download.ATTEMPTS
    part = tmp_path / f".net-{SHA256[:8]}.pth.part"
    part.write_bytes(DATA[:1000])
    with pytest.raises(ConvnetError, match="run the same command again to go on"):
        fetch(file(server), tmp_path)
    assert fetch(file(server), tmp_path).read_bytes() == DATA
    assert server.asked[-1] == "bytes=1000-"
    for content in (b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 9)):  # parts of something else
        (tmp_path / f"net-{SHA256[:8]}.pth").unlink(missing_ok=True)
        part.write_bytes(content)
        if len(content) <= len(DATA):
            with pytest.raises(DataError, match="thrown away"):
                fetch(file(server), tmp_path)
        assert fetch(file(server), tmp_path).read_bytes() == DATA


def test_a_wrong_range_is_refused(server: Server, tmp_path: Path) -> None:
    server.behave = ["drop", "wrong range"]
    with pytest.raises(DataError, match="the server goes on at byte"):
        fetch(file(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_digest_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.behave = ["drop"]
    assert fetch(file(server, ""), tmp_path).read_bytes() == DATA
    assert server.asked == [None, None]


def test_without_a_published_digest_its_own_is_kept(server: Server, tmp_path: Path) -> None:
    class Warned(Silent):
        lines: list[str] = []  # noqa: RUF012

        def warn(self, text: str) -> None:
            self.lines.append(text)

    path = fetch(file(server, ""), tmp_path)
    own = path.with_name(f"{path.name}.sha256")
    assert own.read_text(encoding="ascii") == f"{SHA256}  {path.name}\n", "as sha256sum writes it"
    fetch(file(server, ""), tmp_path, Warned())
    assert not Warned.lines
    for damaged, content in ((path, DATA[:-1] + b"?"), (own, b""), (own, own.read_bytes()[1:])):
        right = damaged.read_bytes()
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=r"pth: its sha256 is not the one in .*; remove both to download"):
            fetch(file(server, ""), tmp_path)
        damaged.write_bytes(right)
    own.unlink()
    fetch(file(server, ""), tmp_path, Warned())
    assert ["no digest of it is published or kept" in line for line in Warned.lines] == [True]
    assert len(server.asked) == 1


def test_a_wrong_file_of_the_users_stays_and_is_named(server: Server, tmp_path: Path) -> None:
    path = tmp_path / f"net-{SHA256[:8]}.pth"
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="remove it to download it again"):
        fetch(file(server), tmp_path)
    assert path.read_bytes() == b"mine"
    assert server.asked == []


def test_no_server_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConvnetError, match=r"can't be downloaded: Connection refused; .* put the file into .*weights"):
        fetch(Known("vgg_d", "http://127.0.0.1:1/a-00000000.pth", "sha256:0"), tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "weights").mkdir()
    with pytest.raises(ConvnetError, match="refused"):
        fetch(Known("vgg_d", "http://127.0.0.1:1/a-00000000.pth", "sha256:0"), tmp_path / "weights")
    assert list(tmp_path.iterdir()) == [tmp_path / "weights"], "a folder of the user's stays"


def test_the_known_files_are_for_nets_that_exist() -> None:
    assert len(KNOWN) >= 15
    for name, each in KNOWN.items():
        assert each.net in MODELS
        kind, _, digits = each.digest.partition(":")
        assert (kind, len(digits)) in (("sha256", 8), ("sha1", 40), ("", 0)), name
        assert each.pixels or each.mean_colour
    assert download.known_by_digest("1378be20" + "0" * 56) is KNOWN["googlenet.torchvision"]
