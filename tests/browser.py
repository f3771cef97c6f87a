"""Chromium without a window, through Debian's chromedriver and its plain HTTP: enough to open a page and use it."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
MISSING = "" if CHROMIUM and DRIVER else "chromium and chromedriver are not installed (apt install chromium-driver)"
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's name in the protocol
PATIENCE = 60.0  # seconds until the driver must answer


class Browser:
    """A window with one page."""

    def __init__(self, url: str, session: str) -> None:
        self.url, self.session = url, session

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return _ask(f"{self.url}/session/{self.session}{path}", method, body)

    def open(self, page: Path | str, width: int, height: int = 900, **media: str) -> None:
        """Opens a file, or an address, at a width in pixels; media: as prefers_color_scheme="dark", or type="print"."""
        features = [{"name": n.replace("_", "-"), "value": v} for n, v in media.items() if n != "type"]
        self.command("Emulation.setEmulatedMedia", media=media.get("type", ""), features=features)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.ask("POST", "/url", {"url": page if isinstance(page, str) else page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that the body of a function returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def command(self, name: str, **values: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": name, "params": values})

    def find(self, css: str) -> str:
        return str(self.ask("POST", "/element", {"using": "css selector", "value": css})[ELEMENT])

    def click(self, css: str) -> None:
        self.ask("POST", f"/element/{self.find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        self.ask("POST", f"/element/{self.find(css)}/value", {"text": text})

    def point(
        self, css: str, x: float, y: float, *, press: bool = False, to: tuple[float, float] | None = None
    ) -> None:
        """Moves the mouse to a place in an element, shares of its width and height; presses there, or drags."""
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", {ELEMENT: self.find(css)})
        box = self.run("const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]",
                       {ELEMENT: self.find(css)})  # fmt: skip

        def send(kind: str, place: tuple[float, float], **more: Any) -> None:
            at = {"x": box[0] + place[0] * box[2], "y": box[1] + place[1] * box[3]}
            self.command("Input.dispatchMouseEvent", type=kind, **at, **more)

        send("mouseMoved", (x, y))
        if press or to:
            send("mousePressed", (x, y), button="left", clickCount=1)
            if to:
                send("mouseMoved", to, button="left", buttons=1)
            send("mouseReleased", to or (x, y), button="left", clickCount=1)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last question: "browser" is the console, "performance" the DevTools' events."""
        rows = self.ask("POST", "/se/log", {"type": kind})
        return [json.loads(row["message"])["message"] for row in rows] if kind == "performance" else list(rows)

    def requests(self) -> list[str]:
        """The addresses of all requests since the last question."""
        return [row["params"]["request"]["url"] for row in self.log("performance")
                if row["method"] == "Network.requestWillBeSent"]  # fmt: skip

    def save(self, path: Path, *, whole: bool = False) -> None:
        """A screenshot, of the whole page or of what is seen."""
        found = self.command("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; it is gone when the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HOME": str(profile), "TMPDIR": str(profile)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([str(DRIVER), f"--port={port}"], env=environment, **quiet) as driver:  # type: ignore[call-overload]
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url)
            options = {"binary": CHROMIUM, "args": [*ARGUMENTS, f"--user-data-dir={profile / 'profile'}"]}
            always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
            session = _ask(f"{url}/session", "POST", {"capabilities": {"alwaysMatch": always}})["sessionId"]
            made = Browser(url, session)
            try:
                yield made
            finally:
                with suppress(URLError, OSError):
                    made.ask("DELETE", "")
        finally:
            driver.terminate()


def until(holds: Callable[[], Any]) -> Any:
    """What `holds` gives as soon as it is true: the page draws when it has time."""
    began = time.monotonic()
    while not (found := holds()) and time.monotonic() - began < PATIENCE:
        time.sleep(0.02)
    return found


def _wait(url: str) -> None:
    began = time.monotonic()
    while True:
        try:
            if _ask(f"{url}/status", "GET")["ready"]:
                return
        except (URLError, OSError):
            if time.monotonic() - began > PATIENCE:
                raise
        time.sleep(0.05)


def _ask(url: str, method: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(error.read().decode()) from error
