"""The page that classifies in the browser: what is in it, and, where onnxruntime-web is at hand, that it works offline.

CONVNET_ORT_WEB is the folder dist of onnxruntime-web's package (npm pack onnxruntime-web).
"""

import base64
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_export import lenet5

from browser import MISSING, PATIENCE, Browser, browser
from conftest import trained_net
from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.errors import UsageError
from convnet.export import export, onnx, page
from exported import needs_onnx

HOSTILE = ("</script><script>alert(1)</script>", '"', "<b>", "&lt;", *"456789")
WEB = Path(os.environ.get("CONVNET_ORT_WEB", ""))


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """As if onnxruntime-web lay there."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in page.RUNTIME:
        (folder / name).write_bytes(name.encode() + b"</script>")
    return folder


def test_all_is_inside_and_names_are_inert(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(net: object, kept: Checkpoint, path: Path, floats: bool, takes: str) -> tuple[float, None]:
        assert (takes, floats) == ("picture", False)
        path.write_bytes(b"\x00net</script>")
        return 0.0, None

    monkeypatch.setattr(onnx, "write", write)
    export(replace(lenet5(), classes=HOSTILE), tmp_path / "a.html", runtime=runtime)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    parts = dict(re.findall(r'<script id="(\w+)" type="[^"]+">(.*?)</script>', text))
    assert tuple(json.loads(parts["classes"])) == HOSTILE
    assert base64.b64decode(parts["net"]) == b"\x00net</script>"
    for name, part in zip(page.RUNTIME, ("runtime", "wasm"), strict=True):
        assert base64.b64decode(parts[part]) == (runtime / name).read_bytes()
    assert "alert(1)" not in re.sub(r'<script id="classes".*', "", text)
    assert "default-src 'none'" in text
    assert re.findall(r"https?:", text) == []


def test_what_is_missing_is_said(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(text: str, name: str = "a.html", **how: Path) -> None:
        with pytest.raises(UsageError, match=text):
            export(lenet5(), tmp_path / name, **how)

    refused("a page holds what runs its net: npm pack onnxruntime-web, and give --runtime")
    refused("has no ort.wasm.bundle.min.mjs: npm pack", runtime=tmp_path)
    refused("--runtime is for .html; a .npz runs nothing", "a.npz", runtime=runtime)
    monkeypatch.setattr(page, "MOST", 100)
    refused("the net has 0 MiB, and a page at most 0: serve its .onnx", runtime=runtime)
    assert list(tmp_path.iterdir()) == [runtime]


def status(window: Browser, begins: str) -> str:
    """What the page says, once it begins so; a page that never does is a failure after a minute."""
    began, text = time.monotonic(), ""
    while not text.startswith(begins):
        assert time.monotonic() - began < PATIENCE, text
        time.sleep(0.1)
        text = str(window.run("return document.getElementById('status').textContent"))
    return text


@needs_onnx
@pytest.mark.peers
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.skipif(not (WEB / page.RUNTIME[0]).is_file(), reason="CONVNET_ORT_WEB names no dist of onnxruntime-web")
def test_it_classifies_from_the_disk(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As `predict` does, at a phone's width and a laptop's; it asks nothing but itself, and logs no error."""
    kept = replace(lenet5(), classes=("</script>", *"123456789"))
    export(kept, tmp_path / "a.html", runtime=WEB)
    trained = trained_net(checkpoint.rebuild(kept), kept.preprocessing, kept.classes)
    generator = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(generator.integers(0, 256, (40 + 9 * k, 60, 3), np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with browser(tmp_path_factory.mktemp("profile")) as window:  # a short name: it has sockets
        for width in (390, 1280):
            window.open(tmp_path / "a.html", width)
            window.requests()
            status(window, "Ready.")
            for k in range(3):
                window.type("#file", str(tmp_path / f"{k}.png"))
                told = trained.predict(tmp_path / f"{k}.png", top=1)[0]
                assert status(window, f"{k}.png: ") == f"{k}.png: {told.classes[0]}"
                shown = window.run("return document.querySelector('td:last-child').textContent")
                assert float(shown.split()[0]) == pytest.approx(100 * told.probabilities[0], abs=1)
            window.type("#file", str(tmp_path / "bad.png"))
            status(window, "bad.png can't be looked at")
            assert window.run("return document.documentElement.scrollWidth") <= width
            assert [url for url in window.requests() if not url.startswith(("blob:", "data:"))] == []
            assert window.log("browser") == []
