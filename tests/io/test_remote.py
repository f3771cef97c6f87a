"""Files behind a URL: what a network and a stranger's server may do, and that nothing wrong comes of it."""

import base64
import builtins
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convnet.errors import DataError, UsageError
from convnet.io import remote
from convnet.io.remote import NotThereError, Remote, cache_bytes
from convnet.io.urls import Url, place, without_secrets
from runs import Notes
from web import Handler, Web, serving

obstore = pytest.importorskip("obstore", reason="reading from URLs needs obstore, an optional dependency")
DATA = bytes(range(256)) * 20
FIRST, LENGTH = 100, 1000
PART = DATA[FIRST : FIRST + LENGTH]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second in place of two minutes; a cache of its own."""
    monkeypatch.setattr(remote, "own_folder", lambda: (tmp_path / "cache", ""))
    for name, value in {"OPENING": 0.5, "PATIENCE": 0.5, "FIRST_PAUSE": 0.01, "STALL": 0.2}.items():
        monkeypatch.setattr(remote, name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web" / "below").mkdir(parents=True)
    (tmp_path / "web" / "below" / "file").write_bytes(DATA)
    return tmp_path / "web"


def ask(web: Web, notes: Notes | None = None, path: str = "below") -> bytes:
    opened = Remote(Url(f"{web.url}/{path}"), notes or Notes())
    return opened.part("file", FIRST, LENGTH, lambda data: data == PART, "file-0")


def partial(handler: Handler, body: bytes, length: int = LENGTH) -> None:
    """An answer that says of itself that it's the part."""
    handler.answer(206, body, {"Content-Range": f"bytes {FIRST}-{FIRST + LENGTH - 1}/{len(DATA)}"}, length)


def half(handler: Handler) -> None:
    partial(handler, PART[:500])
    handler.drop()


def stall(handler: Handler) -> None:
    partial(handler, PART[:500])
    handler.server.gone.wait(5)


PASSING: dict[str, Callable[[Handler], object]] = {
    "dropped at once": lambda handler: handler.drop(),
    "dropped in the middle": half,
    "stalls": stall,
    "never answers": lambda handler: handler.server.gone.wait(5),
    "busy": lambda handler: handler.answer(503, b""),
    "too many": lambda handler: handler.answer(429, b""),
    "wrong bytes": lambda handler: partial(handler, bytes(LENGTH)),
    "too few": lambda handler: partial(handler, PART[:500], 500),
}
FINAL: dict[str, tuple[Callable[[Handler], object], str]] = {
    "refused": (lambda handler: handler.answer(403, b""), "can't be read: the server answers 403 Forbidden"),
    "unknown": (lambda handler: handler.answer(401, b""), "the server answers 401 Unauthorized"),
    "gone": (lambda handler: handler.answer(404, b""), r"is not there \(404\)"),
    "no ranges": (lambda handler: handler.answer(200, DATA), "sends no parts of files"),
    "more than asked": (lambda handler: partial(handler, bytes(9000), 9000), "more than the 1,000 bytes that it may"),
    "in a circle": (lambda handler: handler.answer(302, b"", {"Location": "/below/file"}), "redirects in a circle"),
    "always wrong": (PASSING["wrong bytes"], "the server sent damaged bytes, 4 times in a row"),
    "away": (PASSING["dropped at once"], "can't be read: .*run the same command again"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_asked_again_with_one_warning(name: str, folder: Path) -> None:
    def fault(handler: Handler, _: str, n: int) -> bool:
        if n <= 2:
            PASSING[name](handler)
        return n <= 2

    notes = Notes()
    with serving(folder, fault) as web:
        assert ask(web, notes) == PART
        assert web.asked["file"] == 3
    assert len(notes.lines) == 1
    assert f"{web.url}/below/file: " in notes.lines[0]


@pytest.mark.parametrize("name", FINAL)
def test_what_does_not_pass_is_an_error_that_names_the_file(name: str, folder: Path) -> None:
    answer, text = FINAL[name]

    def fault(handler: Handler, *_: object) -> bool:
        answer(handler)
        return True

    with serving(folder, fault) as web:
        with pytest.raises(DataError, match=f"{web.url}/below/file.*{text}") as raised:
            ask(web)
        assert isinstance(raised.value, NotThereError) == (name == "gone")
        assert web.asked["file"] in (1, remote.WRONG, 11) or name == "away"


def test_an_answer_without_an_end_is_not_read_to_its_end(folder: Path) -> None:
    sent = 0

    def fault(handler: Handler, *_: object) -> bool:
        nonlocal sent
        partial(handler, b"", 1 << 40)
        for sent in range(1000):  # noqa: B007 - mebibytes
            handler.wfile.write(bytes(1 << 20))
        return True

    with serving(folder, fault) as web:
        with pytest.raises(DataError, match="more than the 1,000 bytes"):
            ask(web)
    assert sent < 100


def test_a_redirect_is_followed_but_who_asks_is_told_to_nobody_else(folder: Path) -> None:
    with serving(folder) as other:

        def fault(handler: Handler, *_: object) -> bool:
            handler.answer(302, b"", {"Location": f"{other.url}/below/file"})
            return True

        with serving(folder, fault) as web:
            opened = Remote(Url(web.url.replace("//", "//me:secret@") + "/below"))
            assert opened.part("file", FIRST, LENGTH, lambda data: data == PART, "f") == PART
            told = "Basic " + base64.b64encode(b"me:secret").decode()
            assert [request[2] for request in (*web.requests, *other.requests)] == [told, None]


def test_a_query_reaches_the_server_and_nobody_else(folder: Path) -> None:
    def fault(handler: Handler, *_: object) -> bool:
        handler.answer(403, b"")
        return True

    with serving(folder, fault) as web, pytest.raises(DataError) as raised:
        ask(web, path="below?token=secret")
    assert web.requests[0][0] == "/below/file?token=secret"
    assert "secret" not in str(raised.value)


def test_buckets_are_asked_in_their_own_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder) as web:
        for name, value in {"ENDPOINT": web.url, "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b",
                            "REGION": "here"}.items():  # fmt: skip
            monkeypatch.setenv(f"AWS_{name}", value)
        opened = Remote(Url("s3://below"))
        assert opened.part("file", FIRST, LENGTH, lambda data: data == PART, "f") == PART
        path, part, signed = web.requests[0]
        assert (path, part) == ("/below/file", f"bytes={FIRST}-{FIRST + LENGTH - 1}")
        assert signed is not None
        assert signed.startswith("AWS4")


def test_many_are_asked_at_once_and_none_is_waited_for_after_a_stop(folder: Path) -> None:
    together = threading.Barrier(8)

    def fault(*_: object) -> bool:
        together.wait(10)  # until eight requests are there
        return False

    with serving(folder, fault) as web:
        opened = Remote(Url(f"{web.url}/below"))
        futures = [opened.call(lambda: opened.part("file", FIRST, LENGTH, lambda data: True, "f")) for _ in range(8)]
        assert [future.result(10) for future in futures] == [PART] * 8


def test_a_server_that_is_away_at_first(tmp_path: Path) -> None:
    opened = Remote(Url("http://127.0.0.1:9/store"))
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/store/a can't be read: no connection; mend that"):
        opened.whole("a", 10, lambda data: True)


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def none(name: str, *more: Any) -> object:
        if name.startswith("obstore"):
            raise ImportError(name)
        return load(name, *more)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(UsageError, match=r'needs obstore; install it with: pip install "convnet-classics\[remote\]"'):
        Remote(Url("http://localhost/a"))


def test_what_is_no_url() -> None:
    with pytest.raises(UsageError, match="is no URL of a store"):
        Remote(Url("http://[/a"))


@pytest.mark.parametrize("text", ["16 GB", "-1", "", "1e9", "nan"])
def test_the_bound_of_the_cache(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(remote.VARIABLE, raising=False)
    assert cache_bytes() == 16 * 10**9
    monkeypatch.setenv(remote.VARIABLE, "0.5")
    assert cache_bytes() == 5 * 10**8
    monkeypatch.setenv(remote.VARIABLE, text)
    with pytest.raises(UsageError, match=f"CONVNET_CACHE_GB={text}: it must be a number of gigabytes"):
        cache_bytes()


def test_a_url_stays_one_as_a_path() -> None:
    for text in ("http://host:80/a/b", "s3://bucket/prefix/", "http://me:pass@host/a?token=1#x"):
        url = place(text, "the store")
        assert isinstance(url, Url)
        assert place(Path(text), "the store") == url
    assert str(url / "c") == "http://host/a/c"
    assert "pass" not in f"{url} {url!r} {url.name} {url.resolve()}"
    assert place("photos/http", "the store") == Path("photos/http")
    assert without_secrets("cat 'gs://a:b@c@d/e?f' --x") == "cat 'gs://d/e' --x"
