"""A disk that fails at any moment: the command says so, and the same command, or --resume, ends as if undisturbed.

`faults.Disk` counts what a command changes, and fails at the k-th change: the disk is full or broken, takes half of a
write, or the power goes. Every k in the large size, where each kind of fault is a test; in the small one some, spread
evenly, each kind in turn.
"""

import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnet import checkpoint
from convnet.cli import train as cli_train
from convnet.data import preprocess
from convnet.io import atomic
from convnet.kernels.cpu import compiled
from convnet.nets import create_model
from convnet.recipe import load_recipe
from convnet.retrieval import activations
from exported import program_once
from faults import EVERY, POWER, Disk, PowerLoss

Command = Callable[..., tuple[int, str, str]]
SETTINGS = ("epochs=2", "batch=14", "size=28", "net_options.output=linear", "loss=softmax", "save_minutes=1e-9")
VERBS: dict[str, tuple[str, ...]] = {
    "prepare": ("prepare", "{pictures}", "{place}/made", "--size", "28", "--workers", "2"),
    "train": ("train", "{store}", "--recipe", "lenet5_small", *(f"--set={s}" for s in SETTINGS), "--out",
              "{place}/made", "-q"),
    "evaluate": ("evaluate", "{run}", "{store}", "--split", "train", "--posteriors", "{place}/made/a.posteriors"),
    **{f"extract {kind}": ("extract", "{run}", "{pictures}/val", "--stages", "s4,f6", "--format", kind, "--out",
                           "{place}/made") for kind in ("npy", "hdf5", "parquet")},
    "report": ("report", "{run}", "--out", "{place}/made/report.html", "-q"),
    "index": ("index", "{run}", "{store}", "{place}/made/a.index", "--codes", "16", "--coder", "itq", "-q"),
    "show": ("show", "filters", "{run}", "--out", "{place}/made/filters.png"),
    **{f"export {kind}": ("export", "{run}", f"{{place}}/made/net.{kind}") for kind in ("npz", "onnx", "caffemodel")},
    "resume": ("train", "--resume", "--out", "{place}/made", "-q"),
}  # fmt: skip
TIMES = ("timing.jsonl", "summary.json", "environment.json")  # differ from run to run
SMALL = {"prepare": 16, "train": 8, "evaluate": 8, "report": 2, "index": 6, "show": 4, "compile": 8}  # faults
SMALL |= {"extract npy": 16, "extract hdf5": 8, "extract parquet": 8}
SMALL |= {"export npz": 8, "export caffemodel": 8, "export onnx": 8}
C = "float twice(float x) { return 2.0f * x; }\n"


@dataclass
class Ready:
    """The folder that a verb changes, and how to run the verb."""

    name: str
    place: Path
    verb: Callable[[], tuple[int, str, str]]
    resume: Callable[[], tuple[int, str, str]]

    def contents(self) -> dict[str, bytes]:
        """Of what the verb has made; what differs from run to run is only there."""
        kind = "convnet/*.so" if self.name == "compile" else "**/*"  # what is loaded: a compiler may leave other files
        paths = [path for path in sorted((self.place / "made").glob(kind)) if path.is_file()]
        paths = [path for path in paths if not path.name.endswith(".lock")]  # of no process: no lock
        names = [path.relative_to(self.place).as_posix() for path in paths]
        return {n: b"" if n.endswith(TIMES) else path.read_bytes() for n, path in zip(names, paths, strict=True)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("faults"), np.random.default_rng(0)
    for split, n in {"train": 9, "val": 3, "test": 3}.items():
        for k in range(3):
            (folder / split / f"c{k}").mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 255, (28, 28, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / f"c{k}" / f"{i}.png")
    return folder


@pytest.fixture
def ready(pictures: Path, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Ready]:
    """What a verb needs, made by the verbs before it."""
    monkeypatch.setattr(cli_train, "after_training", lambda *_: None)  # the report is a verb of its own
    names = {"pictures": pictures, "store": tmp_path / "store", "run": tmp_path / "run", "place": tmp_path / "place"}

    def command(verb: str, **other: Path) -> tuple[int, str, str]:
        return run(*(text.format(**names | other) for text in VERBS[verb]))

    def compile_c() -> tuple[int, str, str]:
        library, text = compiled.library.__wrapped__()
        return 0, "", text if library is not None else f"no library: {text}"

    def made(verb: str) -> Ready:
        if verb == "compile":
            (tmp_path / "twice.c").write_text(C, encoding="utf-8")
            monkeypatch.setattr(compiled, "SOURCES", (tmp_path / "twice.c",))
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "place" / "made"))
            monkeypatch.delenv("CONVNET_KERNELS", raising=False)
            return Ready(verb, tmp_path / "place", compile_c, compile_c)
        if verb == "export caffemodel":  # Caffe has no LeNet-5 as it was
            recipe = load_recipe("cifar_18")
            done = preprocess.of_recipe(recipe, np.zeros((32, 32, 3), np.float32), np.zeros(3))
            weights = dict(create_model("cifar_18", seed=0).state_dict())
            checkpoint.save(names["run"], checkpoint.Checkpoint(recipe, done, tuple("0123456789"), weights))
            return Ready(verb, tmp_path / "place", lambda: command(verb), lambda: command("resume"))
        if "extract" in verb:
            monkeypatch.setattr(activations, "BATCH", 4)
            recipe = load_recipe("lenet5_small")
            done = preprocess.of_recipe(recipe, np.zeros((28, 28, 3), np.float32), np.zeros(3))
            weights = dict(create_model("lenet5", seed=0, **recipe.net_options).state_dict())
            checkpoint.save(names["run"], checkpoint.Checkpoint(recipe, done, tuple("0123456789"), weights))
            if "parquet" in verb:
                pytest.importorskip("pyarrow", reason='needs pip install "convnet-classics[features]"')
            return Ready(verb, tmp_path / "place", lambda: command(verb), lambda: command("resume"))
        if verb == "export onnx":
            for package in ("onnx", "onnxruntime", "onnxscript"):
                pytest.importorskip(package, reason='needs pip install "convnet-classics[onnx]"')
            program_once(monkeypatch)
        for earlier, name in (("prepare", "store"), ("train", "run")):
            if verb != "prepare" and earlier != verb:
                base = tmp_path / "base"
                assert command(earlier, place=base)[0] == 0
                (base / "made").rename(names[name])
        return Ready(verb, tmp_path / "place", lambda: command(verb), lambda: command("resume"))

    return made


def points(name: str, n: int, kind: str | None) -> list[tuple[str, int]]:
    """(kind of fault, change at which it comes) of a verb that makes `n` changes; n + 1 for a power loss after it.

    kind: of which every change is taken; None takes some of each.
    """
    if kind is not None:
        return [(kind, at) for at in range(1, n + 1 + (kind in POWER))]
    kinds = (EVERY * 2)[: SMALL[name]]
    return [(each, 1 + i * (n - 1) // (len(kinds) - 1)) for i, each in enumerate(kinds)] + [(POWER[0], n + 1)]


def disturbed(ready: Ready, kind: str, at: int) -> tuple[int, str, bool]:
    """Runs the verb in an empty place on a disk that fails: exit code, what was said, whether the fault came."""
    shutil.rmtree(ready.place, ignore_errors=True)
    ready.place.mkdir()
    code, said = 0, ""
    with Disk(ready.place, kind, at) as disk:
        try:
            code, _, said = ready.verb()
            if kind in POWER and not disk.fired:
                disk.fired = 1  # after the end: what was said to be done must be there
        except PowerLoss:
            code = -1
    if kind in POWER:
        disk.lose_power(at)
    return code, said, disk.fired > 0


def check(ready: Ready, kind: str, at: int, whole: dict[str, bytes]) -> bool:
    """A fault, and the verb again: its end is that of the undisturbed one. Whether the fault came."""
    where = f"{kind} at change {at}"
    code, said, fired = disturbed(ready, kind, at)
    assert code in ((0,) if kind == "short" else (-1, 0) if kind in POWER else (0, 5)), f"{where}: {code}: {said}"
    if code == 5:
        assert str(ready.place) in said, where
        assert "disk full; " in said or kind not in ("ENOSPC", "EDQUOT"), f"{where}: {said}"
    if code == 0 and ready.name != "compile":  # whose library then serves this process alone
        contents = ready.contents()  # of what was removed, the power may bring back something
        assert {name: contents.get(name) for name in whole} == whole, where
        assert kind in POWER or len(contents) == len(whole), where
        return fired
    assert finished(ready, said) == "", where
    assert ready.contents() == whole, where
    return fired


def finished(ready: Ready, said: str) -> str:
    """Does what the verb's last words advise, or after a loss of power what one would; what is said of a failure."""
    code, _, text = ready.resume() if "--resume" in said else ready.verb()
    if code == 2 and not said and "go on with it by --resume" in text:
        code, _, text = ready.resume()
    is_there = code == 2 and not said and "exists; " in text  # an export or an index, whole
    return text if code and not is_there else ""


def attack(ready: Ready, kind: str | None = None) -> None:
    """Faults at every change, of one kind; or some of every kind; and their numbers."""
    ready.place.mkdir()
    with Disk(ready.place) as disk:
        assert ready.verb()[0] == 0
    whole, came, made = ready.contents(), Counter[str](), points(ready.name, len(disk.changes), kind)
    for each, at in made:
        came[each] += check(ready, each, at, whole)
    print(f"{ready.name}: {len(disk.changes)} changes, {len(made)} faults, of which came {dict(came)}")
    assert all(came[each] for each, _ in made), came


@pytest.mark.parametrize("missing", ["file", "folder"])
def test_a_missing_fsync_is_found(missing: str, ready: Callable[[str], Ready], monkeypatch: pytest.MonkeyPatch) -> None:
    """The atomic write without one of its two: what was said to be done is lost with the power."""
    show = ready("show")
    show.place.mkdir()
    with Disk(show.place) as disk:
        assert show.verb()[0] == 0
    whole, after = show.contents(), len(disk.changes) + 1
    assert check(show, "power: least", after, whole)
    is_left_out = stat.S_ISREG if missing == "file" else stat.S_ISDIR

    class Careless:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, handle: int) -> None:
            if not is_left_out(os.fstat(handle).st_mode):
                os.fsync(handle)

    monkeypatch.setattr(atomic, "os", Careless())
    with pytest.raises(AssertionError, match="power: least at change"):
        check(show, "power: least", after, whole)


@pytest.mark.parametrize("name", SMALL)
def test_a_fault_of_the_disk_changes_no_result(name: str, ready: Callable[[str], Ready]) -> None:
    attack(ready(name))


@pytest.mark.large
@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("name", SMALL)
def test_a_fault_of_the_disk_at_every_change_changes_no_result(
    name: str, kind: str, ready: Callable[[str], Ready]
) -> None:
    attack(ready(name), kind)
