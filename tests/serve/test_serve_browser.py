"""The page in a real browser: every part works at a telephone's width and a screen's, and no other host is asked."""

import base64
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asgi import running
from browser import MISSING, Browser, browser, until
from conftest import CPU
from convnet.data.store import Store
from convnet.recipe import load_recipe, to_toml
from convnet.serve import server_of
from convnet.serve.guard import Guard
from convnet.serve.routes import application
from convnet.training import metrics_log

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
WIDTHS = (390, 1280)
GIVE = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "digit.png", { type: "image/png" }));
if (arguments[1] === "paste") document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
else if (arguments[1] === "drop") document.dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
else {
  const input = document.getElementById("file");
  input.files = data.files;
  input.dispatchEvent(new Event("change"));
}
"""
SHIFTS = """
window.shifts = 0;
new PerformanceObserver((list) => { for (const each of list.getEntries()) window.shifts += each.value; })
  .observe({ type: "layout-shift", buffered: true });
"""
UNNAMED = """
const name = (each) => each.textContent.trim() || each.getAttribute("aria-label") || each.labels?.[0].textContent;
const controls = [...document.querySelectorAll("button, input, select, canvas, a")];
return controls.filter((each) => each.checkVisibility()).filter((each) => !name(each)).map((each) => each.outerHTML);
"""


@pytest.fixture(scope="module")
def runs(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has a net, and the first of its four epochs."""
    folder = tmp_path_factory.mktemp("served")
    run = folder / "<b>digits"
    run.mkdir()
    (run / "best.ckpt").write_bytes(untrained.read_bytes())
    (run / "recipe.toml").write_text(to_toml(load_recipe("lenet5_small")), encoding="utf-8")
    add_epoch(run, 1)
    return folder


def add_epoch(run: Path, epoch: int) -> None:
    row = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "lr": 0.01, "train_loss": 1 / epoch, "train_error": 0.5}
    metrics_log.append(run / "metrics.jsonl", row | {"val_loss": 1.0, "val_top1_error": 0.4, "val_top5_error": 0.1})


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with running(Guard(application(server_of(runs, None, None, CPU)))) as port:
        yield f"http://localhost:{port}/"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@contextmanager
def opened(window: Browser, address: str, width: int, name: str) -> Iterator[Browser]:
    """Opened anew; in the end nothing failed, nobody else was asked, and nothing is wider than the page."""
    window.open("about:blank", width)
    window.log("browser"), window.requests()
    window.open(address, width, prefers_color_scheme="dark" if width < 600 else "light")
    assert until(lambda: text(window, "#name") == name)
    yield window
    assert window.log("browser") == []
    assert {url.split("/")[2] for url in window.requests() if not url.startswith(("data:", "blob:"))} == {
        address.split("/")[2]
    }
    assert window.run("return document.documentElement.scrollWidth") == width
    assert window.run(UNNAMED) == []


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, window: Browser, address: str) -> Iterator[Browser]:
    with opened(window, address, request.param, "<b>digits") as made:
        yield made


def text(page: Browser, css: str) -> str:
    return str(page.run("return document.querySelector(arguments[0])?.textContent.trim() ?? ''", css))


def give(page: Browser, data: bytes, way: str = "upload") -> list[str]:
    """A picture in; the five bars' texts."""
    page.run("document.getElementById('bars').replaceChildren()")
    page.run(GIVE, base64.b64encode(data).decode(), way)
    assert until(lambda: page.run("return document.querySelectorAll('#bars li').length") == 5)
    return list(page.run("return [...document.querySelectorAll('#bars b')].map((each) => each.textContent)"))


def test_a_picture_is_classified_and_looked_into(page: Browser, address: str, pngs: list[bytes]) -> None:
    page.run(SHIFTS)
    bars = give(page, pngs[0])
    assert sorted(bars) == sorted(set(bars))
    assert give(page, pngs[0], "paste") == bars == give(page, pngs[0], "drop")
    assert page.run("return window.shifts") < 0.1  # what web.dev calls good; here there is none
    page.click("#cam")
    assert until(lambda: text(page, "#legend").startswith("Bright: what speaks for"))
    page.click("#occlusion")
    assert until(lambda: "a grey square of 4 x 4 pixels" in text(page, "#legend"))
    page.click("#units")
    assert until(lambda: page.run("return document.querySelectorAll('#found img').length") == 12)


def test_what_is_no_picture_is_told(page: Browser) -> None:
    page.run(GIVE, base64.b64encode(b"no picture").decode())
    assert until(lambda: text(page, "#problem"))
    assert until(lambda: page.log("browser"))  # the answer's status, which Chromium notes there


def test_one_walks_from_the_class_down_to_a_pixel(page: Browser, pngs: list[bytes]) -> None:
    give(page, pngs[0])
    page.click("nav a[href='#net']")
    assert until(lambda: page.run("return document.querySelectorAll('#arithmetic button').length"))
    assert text(page, "#strip [aria-pressed=true]").startswith("output")
    trail = ["output"]
    for stage in ("f6", "c5", "s4", "c3", "s2", "c1"):
        page.run("document.querySelector('#arithmetic button').click()")
        assert until(lambda stage=stage: text(page, "#strip [aria-pressed=true]").startswith(stage)), stage
        trail.append(stage)
    page.run("document.querySelector('#arithmetic button').click()")
    assert until(lambda: "of 255" in text(page, "#arithmetic"))
    assert text(page, "#readout").startswith("pixel, row")
    assert page.run("return document.querySelectorAll('#trail button').length") == len(trail) + 1
    page.run("document.querySelectorAll('#trail button')[3].click()")
    assert until(lambda: text(page, "#readout").startswith("s4, map"))


def test_the_keyboard_moves_from_unit_to_unit(page: Browser, pngs: list[bytes]) -> None:
    give(page, pngs[0])
    page.click("nav a[href='#net']")
    assert until(lambda: text(page, "#readout").startswith("output"))
    page.run("document.querySelector('#strip [data-stage=c3]').click()")
    assert until(lambda: text(page, "#readout").startswith("c3, map"))
    former = text(page, "#readout")
    page.type("#maps", "\ue00f" if "map 0" not in former else "\ue00e")  # Page Up: the map before
    page.type("#maps", "\ue015")  # down
    assert until(lambda: text(page, "#readout") != former)
    page.point("#maps", 0.01, 0.01, press=True)
    assert until(lambda: text(page, "#readout").startswith("c3, map 0, row 0, column 0"))


def test_a_run_that_goes_on_is_followed(page: Browser, runs: Path) -> None:
    page.click("nav a[href='#runs']")
    assert until(lambda: page.run("return document.querySelectorAll('#run-rows tr').length") == 1)
    assert text(page, "#run-rows td") == "<b>digits"
    epoch = int(text(page, "#run-rows td.number").split()[0])
    add_epoch(runs / "<b>digits", epoch + 1)
    assert until(lambda: text(page, "#run-rows td.number").startswith(f"{epoch + 1} / "))
    points = page.run("return document.querySelector('#charts polyline').getAttribute('points')")
    assert len(points.split()) == epoch + 1
    assert text(page, "#runs-note").startswith("1 run, 0 running")


@contextmanager
def training(store: Path, out: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`convnet train` in a process of its own, for more epochs than anybody waits for; at a rate that moves no weight,
    so that each epoch's net is as good as the best before, and takes its place."""
    words = ["train", store, "--recipe", "lenet5_small", "--epochs", 10_000, "--out", out, "--device", "cpu", "-q"]
    words += ["--set", "lr=1e-12"]
    command = [sys.executable, "-m", "convnet", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_training_beside_it_is_followed_without_loading(window: Browser, few_digits: Store, tmp_path: Path) -> None:
    """A real one: its curves grow, what a later net confuses takes the former's place, and its end is seen."""

    def points() -> int:
        line = "document.querySelector('#charts figure:nth-child(4) polyline')"
        return int(window.run(f"return {line}?.points.length ?? 0"))

    def epoch() -> int:
        told = re.search(r"^live, the net after (\d+) epoch.* of its 45 validation", text(window, "#confused-note"))
        return int(told[1]) if told else 0

    with running(Guard(application(server_of(tmp_path, None, None, CPU)))) as port:
        with training(few_digits.path, tmp_path / "live") as process:
            for width in WIDTHS:
                with opened(window, f"http://localhost:{port}/#runs", width, "Runs"):
                    window.run("window.isTheSame = true")
                    assert until(lambda: points() > 1)
                    former = points()
                    window.click("#confused-ask")
                    assert (net := until(epoch))
                    assert until(lambda former=former: points() > former + 1)
                    assert until(lambda net=net: epoch() > net)
                    assert window.run("return document.querySelectorAll('#pairs img.coarse').length") > 0
                    assert text(window, "#run-rows .state") == "running"
                    if width == WIDTHS[-1]:
                        process.send_signal(signal.SIGTERM)
                        assert until(lambda: text(window, "#run-rows .state") == "stopped")
                    assert window.run("return window.isTheSame") is True
