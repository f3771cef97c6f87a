"""A local HTTP server of a folder, with ranges and with faults: what a network and a stranger may do."""

import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Handler", str, int], bool]  # (handler, file's name, how often it was asked): whether it has answered


class Handler(BaseHTTPRequestHandler):
    """GET and ranges of the server's folder, as nginx or a bucket answers."""

    protocol_version = "HTTP/1.1"
    server: "Web"

    def do_GET(self) -> None:
        place = self.path.partition("?")[0]
        name = place.rsplit("/", 1)[-1]
        with self.server.lock:
            self.server.asked[name] += 1
            self.server.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
            n = self.server.asked[name]
        if self.server.gone.is_set() or (self.server.fault is not None and self.server.fault(self, name, n)):
            self.close_connection = True
            return
        path = self.server.folder / place.lstrip("/")
        if not path.is_file():
            self.answer(404, b"")
            return
        self.send(path.read_bytes())

    def send(self, data: bytes) -> None:
        """The file's bytes, or the range that was asked for."""
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2]), len(data) - 1)
            range_of = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            self.answer(206, data[first : last + 1], range_of)
        else:
            self.answer(200, data)

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        """length: what Content-Length says, when that isn't so."""
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body) if length is None else length)}.items():
            self.send_header(name, value)
        if self.server.fault is not None:
            self.send_header("Connection", "close")  # as it is after a fault
        self.end_headers()
        self.wfile.write(body)

    def drop(self) -> None:
        """Cuts the connection."""
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None: ...


class Web(ThreadingHTTPServer):
    """Serves `folder` at `url`. fault: is asked first; `gone` ends what stalls."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.fault, self.lock, self.gone = folder, fault, threading.Lock(), threading.Event()
        self.asked: Counter[str] = Counter()
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self, name: str) -> set[str]:
        """Those that were asked for of a file: what a busy machine has to ask for again counts once."""
        return {part for path, part, _ in self.requests if part and path.partition("?")[0].endswith(f"/{name}")}

    def handle_error(self, request: object, client_address: object) -> None: ...  # a client that left


@contextmanager
def serving(folder: Path, fault: Fault | None = None) -> Iterator[Web]:
    web = Web(folder, fault)
    thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.gone.set()
        web.shutdown()
        web.server_close()
        thread.join()
