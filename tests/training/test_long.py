"""100,000 steps: memory, files, threads and the time of a step stay what they were (CONVNET_STEPS: so many)."""

import os
import threading
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest

from convnet.data.prepare import prepare
from convnet.data.store import Store
from convnet.progress import Silent
from convnet.recipe import load_recipe, with_settings
from convnet.training import metrics_log
from convnet.training.train import train
from pictures import write_photos

BATCH, TRAIN = 4, 80  # 20 steps an epoch
SETTINGS = ("size=12", "pad=10", f"batch={BATCH}", "net_options.output=linear", "loss=softmax", "lr=0.0001")
FIRST = 0.1  # of the steps, in which memory is taken for good


class Watch(Silent):
    """Looks at the process every 100th epoch."""

    def __init__(self, out: Path) -> None:
        self.out, self.seen = out, list[dict[str, float]]()

    def note(self, text: str) -> None:
        epoch = int(text.partition(" ")[2].partition("/")[0]) if text.startswith("epoch ") else 1
        if epoch % 100:
            return
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        self.seen.append({
            "epoch": epoch,
            "resident": int(status.partition("VmRSS:")[2].split()[0]) << 10,
            "files": len(os.listdir("/proc/self/fd")),
            "threads": sum(thread.name != "save" for thread in threading.enumerate()),  # which may have ended or not
            "seconds": monotonic(),
            "checkpoint": (self.out / "last.ckpt").stat().st_size,
            "record": (self.out / "metrics.jsonl").stat().st_size,
        })  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Store:
    photos = write_photos(tmp_path / "in", {f"{part}/{name}": n for part, n in (("train", TRAIN // 2), ("val", 4))
                                            for name in "ab"})  # fmt: skip
    return prepare(photos, tmp_path / "store", size=12)


@pytest.mark.large
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux alone")
def test_a_hundred_thousand_steps_take_no_more_memory_than_ten_thousand(tiny: Store, tmp_path: Path) -> None:
    epochs = int(os.environ.get("CONVNET_STEPS", "100000")) * BATCH // TRAIN
    watch = Watch(tmp_path / "run")
    train(with_settings(load_recipe("lenet5_small"), [*SETTINGS, f"epochs={epochs}"]), tiny, watch.out, progress=watch)
    for one, other in list(pairwise(watch.seen))[:: max(1, len(watch.seen) // 10)]:
        print({name: f"{value:,.0f}" for name, value in one.items()}, f"{other['seconds'] - one['seconds']:.2f} s")
    first, last = watch.seen[int(FIRST * len(watch.seen))], watch.seen[-1]
    assert last["resident"] < 1.01 * first["resident"]
    assert last["files"] <= first["files"]
    assert last["threads"] <= first["threads"]
    a_later_epoch = (last["record"] - first["record"]) / max(1, last["epoch"] - first["epoch"])
    assert a_later_epoch < first["record"] / first["epoch"], "what an epoch adds to the record, and to each save, falls"
    rows = metrics_log.read(watch.out / "metrics.jsonl")
    assert sum(row["kind"] == "epoch" for row in rows) == epochs
