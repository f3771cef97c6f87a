"""A store behind a URL is the store in its folder, whatever the network does; nothing secret is kept."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Run
from convnet import checkpoint
from convnet.data.loader import Loader
from convnet.data.preprocess import of_recipe
from convnet.data.store import Split, Store
from convnet.device import choose
from convnet.errors import DataError, Interrupted
from convnet.io import remote
from convnet.io.processes import Processes
from convnet.io.signals import Stop
from convnet.recipe import load_recipe, with_settings
from convnet.training.train import train
from forked import Ended
from forked import run as forked
from runs import Notes
from web import Handler, Web, serving

pytest.importorskip("obstore", reason="reading from URLs needs obstore, an optional dependency")
RECIPE = with_settings(load_recipe("lenet5_small"), ["epochs=2", "batch=16"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "own_folder", lambda: (tmp_path / "convnet", ""))
    for name, value in {"FIRST_PAUSE": 0.01, "STALL": 1.0}.items():
        monkeypatch.setattr(remote, name, value)


@pytest.fixture(scope="module")
def undisturbed(few_digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(RECIPE, few_digits, out)
    return out


def same(out: Path, other: Path) -> bool:
    """Whether two runs are the same, but for where they found their store."""
    found, expected = (checkpoint.load(place / "last.ckpt") for place in (out, other))
    assert (out / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert all(np.array_equal(found.weights[name], expected.weights[name]) for name in expected.weights)
    return bool(found.position == expected.position)


def url_of(web: Web) -> str:
    return f"{web.url}/store"


def test_training_from_a_url_is_training_from_the_folder_whatever_the_network_does(
    few_digits: Store, undisturbed: Path, tmp_path: Path
) -> None:
    faults, kinds, seen = Counter[str](), ("drop", "stall", "busy", "wrong"), set[str]()

    def fault(handler: Handler, name: str, n: int) -> bool:
        """Each third record fails when it is asked for the first time: dropped, late, busy or wrong."""
        part = f"{name} {handler.headers['Range']}"
        with handler.server.lock:
            first, kind = part not in seen, kinds[len(seen) // 3 % 4]
            seen.add(part)
            if not first or len(seen) % 3 or not name.endswith(".tar") or (kind == "stall" and faults[kind] >= 4):
                return False
            faults[kind] += 1
        if kind == "drop":
            handler.drop()
        elif kind == "stall":
            handler.server.gone.wait(2)
        elif kind == "busy":
            handler.answer(503, b"")
        else:
            handler.send(bytes((few_digits.path / name).stat().st_size))
        return True

    notes = Notes()
    with serving(few_digits.path.parent, fault) as web:
        train(RECIPE, f"{web.url}/store", tmp_path / "run", progress=notes)
    assert min(faults[kind] for kind in kinds) >= 4
    assert same(tmp_path / "run", undisturbed)
    assert sum("asked again" in line for line in notes.lines) == 1
    print(f"{sum(faults.values())} faults, all reached: {dict(faults)}")


def test_each_picture_is_fetched_once_and_then_comes_out_of_the_cache(few_digits: Store, tmp_path: Path) -> None:
    with serving(few_digits.path.parent) as web:
        for _ in range(2):
            train(replace(RECIPE, epochs=1), url_of(web), tmp_path / f"run{_}")
        parts = Counter((path, part) for path, part, _ in web.requests if path.endswith(".tar"))
        assert set(parts.values()) == {1}
        assert len(parts) == 315 + 45 + 90
        assert web.asked["store.json"] == 2


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_in_the_middle_ends_the_run_saved_and_it_goes_on_as_if_undisturbed(
    code: int, few_digits: Store, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnet.data.store.AHEAD", 1)
    monkeypatch.setattr("convnet.data.store.IN_FLIGHT", 1)

    def fault(handler: Handler, name: str, n: int) -> bool:
        if not (refused := name == "train-00000.tar" and n > 200):
            return False
        handler.answer(code, b"")
        return refused

    with serving(few_digits.path.parent, fault) as web:
        with pytest.raises(DataError, match=rf"picture 'train/\d+': {url_of(web)}/train-00000.tar .*{code}"):
            train(RECIPE, url_of(web), tmp_path / "run")
        assert checkpoint.load(tmp_path / "run" / "last.ckpt").position.step >= 5
        web.fault = None
        train(RECIPE, url_of(web), tmp_path / "run", resume=True)
    assert same(tmp_path / "run", undisturbed)


@pytest.mark.large
def test_killed_at_random_moments_it_goes_on_as_if_undisturbed(few_digits: Store, tmp_path: Path) -> None:
    """Of a server that drops every ninth request for a file."""

    def fault(handler: Handler, name: str, n: int) -> bool:
        if n % 9 == 0:
            handler.drop()
        return n % 9 == 0

    with serving(few_digits.path.parent, fault) as web:
        killed = [(1, [url_of(web), str(tmp_path), "20", "0"])]
        (ended,) = forked("kill_driver:main", killed, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert ended.codes == [0], ended.stderr
    report = json.loads(ended.stdout)
    assert report["kills"] == 20
    assert not report["different"]


def test_a_picture_that_stays_wrong_is_an_error_that_names_shard_and_picture(few_digits: Store) -> None:
    size = (few_digits.path / "train-00000.tar").stat().st_size

    def fault(handler: Handler, name: str, n: int) -> bool:
        if name == "train-00000.tar":
            handler.send(bytes(size))
        return name == "train-00000.tar"

    with serving(few_digits.path.parent, fault) as web:
        split = Store(url_of(web)).split("train")
        with pytest.raises(
            DataError, match=rf"picture {few_digits.split('train').keys[7]!r}: .*/train-00000.tar: .*4 "
        ):
            split.square(7)
        assert web.asked["train-00000.tar"] == remote.WRONG


def test_names_are_asked_for_by_who_reads(few_digits: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come through the threads that fetch: if these waited for names, all of them could wait for each other."""
    askers, called = list[str](), Split._called

    def watched(self: Split, i: int) -> str:
        askers.append(threading.current_thread().name)
        return called(self, i)

    def fault(handler: Handler, name: str, n: int) -> bool:
        if name == "train-00000.tar":
            handler.answer(403, b"")
        return name == "train-00000.tar"

    monkeypatch.setattr(Split, "_called", watched)
    with serving(few_digits.path.parent, fault) as web:
        split = Store(url_of(web)).split("train")
        next(split.ahead([np.arange(2)]))
        with pytest.raises(DataError, match=rf"picture {few_digits.split('train').keys[1]!r}: .*403"):
            split.square(1)
    assert askers == [threading.current_thread().name]


def test_a_server_that_has_gone_is_not_waited_for_again(few_digits: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its picture is told by its number then, as soon as it is sure that it doesn't come."""
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    with serving(few_digits.path.parent) as web:
        split = Store(url_of(web)).split("train")
    slept = list[float]()
    monkeypatch.setattr(remote, "sleep", slept.append)
    monkeypatch.setattr(remote, "monotonic", lambda: 0.25 * len(slept))
    why = "(no connection|the connection broke off)"  # whichever request notices it
    with pytest.raises(DataError, match=rf"picture 3 of train: .* can't be read: {why}"):
        split.square(3)
    assert len(slept) == 1, "the record was asked for again, the names were not"


@pytest.mark.parametrize("name", ["store.json", "train.index.npy", "mean.npy", "train.keys.jsonl", "left_out.jsonl"])
def test_small_files_are_held_against_their_sums_too(name: str, few_digits: Store) -> None:
    def fault(handler: Handler, asked: str, n: int) -> bool:
        if asked == name:
            data = bytearray((few_digits.path / name).read_bytes() or b"?")
            data[len(data) // 2] ^= 1
            handler.answer(200, bytes(data))
        return asked == name

    def read(url: str) -> None:
        store = Store(url)
        _ = store.mean_picture, store.split("train").keys, store.left_out()

    with serving(few_digits.path.parent, fault) as web, pytest.raises(DataError, match=f"/store/{name}: "):
        read(url_of(web))


def test_damage_in_the_cache_is_made_good(few_digits: Store, tmp_path: Path) -> None:
    expected = [few_digits.split("val").square(i).copy() for i in range(45)]
    with serving(few_digits.path.parent) as web:
        for damage in (
            lambda data: data[:-1],
            lambda data: b"",
            lambda data: data[:700] + bytes([data[700] ^ 1]) + data[701:],
        ):
            split = Store(url_of(web)).split("val")
            assert all(np.array_equal(split.square(i), expected[i]) for i in range(45))
            kept = [path for path in (tmp_path / "convnet").rglob("*") if path.is_file() and path.name[0] != "."]
            assert len(kept) >= 45
            for path in kept:
                path.write_bytes(damage(path.read_bytes()))
        asked = web.asked["val-00000.tar"]
        split = Store(url_of(web)).split("val")
        assert all(np.array_equal(split.square(i), expected[i]) for i in range(45))
        assert web.asked["val-00000.tar"] == asked + 45


def test_the_cache_keeps_within_its_bound(
    few_digits: Store, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(remote.VARIABLE, "0.0005")  # 500 kB of 1.9 MB
    sizes = []

    def look(*_: object) -> bool:
        files = list((tmp_path / "convnet" / "stores").glob("*/*"))
        sizes.append(sum(path.stat().st_size for path in files if path.exists()))
        return False

    with serving(few_digits.path.parent, look) as web:
        train(RECIPE, url_of(web), tmp_path / "run")
    assert 300_000 < max(sizes) <= 500_000
    assert same(tmp_path / "run", undisturbed)
    monkeypatch.setenv(remote.VARIABLE, "0")
    with serving(few_digits.path.parent) as web:
        split = Store(url_of(web)).split("val")
        assert np.array_equal(split.square(3), split.square(3))
        assert web.asked["val-00000.tar"] == 2


def test_without_a_folder_for_the_cache_it_is_said_once(few_digits: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "own_folder", lambda: (None, "others may write to it"))
    notes = Notes()
    with serving(few_digits.path.parent) as web:
        split = Store(url_of(web), notes).split("val")
        assert np.array_equal(split.square(3), few_digits.split("val").square(3))
        assert notes.lines == [
            f"warning: {url_of(web)} is read without a cache, each time anew: others may write to it"
        ]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_process_reads_only_its_part(workers: int, few_digits: Store) -> None:
    pre = of_recipe(RECIPE, few_digits.mean_picture, few_digits.statistics.mean_rgb)
    ids = np.arange(few_digits.split("train").n)
    with serving(few_digits.path.parent) as web:
        for rank in range(2):
            split = Store(url_of(web)).split("train")
            before = web.ranges("train-00000.tar")
            loader = Loader(split, few_digits.statistics, ids, RECIPE, pre, choose("fp32", "cpu").device, workers,
                            processes=Processes(rank, 2))  # fmt: skip
            n = sum(len(batch.images) for batch in loader.epoch(1))
            assert len(web.ranges("train-00000.tar") - before) == n
        assert len(web.ranges("train-00000.tar")) == len(ids)


def test_whoever_asks_a_run_to_end_is_heard_while_a_server_stalls(
    few_digits: Store, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "STALL", 60.0)
    stop = Stop()

    def fault(handler: Handler, name: str, n: int) -> bool:
        if name == "train-00000.tar" and n > 150:
            with handler.server.lock:
                if not stop:
                    stop.ask(2)
            handler.server.gone.wait(60)
            return True
        return False

    with serving(few_digits.path.parent, fault) as web:
        with pytest.raises(Interrupted, match="everything is saved"):
            train(RECIPE, url_of(web), tmp_path / "run", stop=stop)
    with serving(few_digits.path.parent) as web:
        train(RECIPE, url_of(web), tmp_path / "run", resume=True)
    assert same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("by", ["torchrun", pytest.param("--processes", marks=pytest.mark.large)])
def test_the_command_from_end_to_end_and_nothing_secret_is_kept(
    by: str, run: Run, few_digits: Store, tmp_path: Path
) -> None:
    """Two processes train, one resumes by the run's own record, a net is tested; the password is nowhere."""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "CONVNET_KERNELS": "plain"}
    with serving(few_digits.path.parent) as web:
        secret = web.url.replace("//", "//me:hush@") + "/store?token=hush"
        words = ("train", secret, "--out", "run", "--epochs", "1", "--set", "batch=64")
        done: Ended | subprocess.CompletedProcess[str]
        if by == "torchrun":
            (done,) = forked("forked:command", [(2, words)], **environment)
            assert done.codes == [0, 0], done.stderr
        else:
            environment = os.environ | environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
            command = [sys.executable, "-m", "convnet", *words, "--processes", "2"]
            done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8")
            assert done.returncode == 0, done.stderr
        n, texts = web.asked["train-00000.tar"], [done.stdout, done.stderr]
        assert len(web.ranges("train-00000.tar")) == 315
        for again in (("train", "--resume", "--out", "run", "--epochs", 2), ("evaluate", "run", secret)):
            code, out, shown = run(*again)
            assert (code, web.asked["train-00000.tar"]) == (0, n), shown
            texts += [out, shown]
        assert "n 90" in out
        assert {request[0].partition("?")[2] for request in web.requests} == {"token=hush", ""}
    files = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert all(b"hush" not in text for text in files)
    assert all("hush" not in text for text in texts)
    assert any(url_of(web).encode() in text for text in files)


def test_what_needs_a_copy_or_a_folder_says_so(run: Run, few_digits: Store, tmp_path: Path) -> None:
    with serving(few_digits.path.parent) as web:
        wrong = f"{web.url}/nothing"
        for words, text in {
            ("check", url_of(web)): "copy the store to a disk and check the copy",
            ("prepare", "digits", url_of(web)): "a store is made in a folder",
            ("train", wrong): f"{wrong} is not a store (it has no store.json)",
            ("evaluate", url_of(web).replace("//", "//me:hush@")): "name a checkpoint and then a store",
        }.items():
            code, _, shown = run(*words)
            assert (code, text in shown, "hush" in shown) == (2, True, False), shown
