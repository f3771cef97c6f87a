"""What does a store of 15 million pictures in 21,841 classes cost, before a picture is read?

    python benchmarks/index.py FOLDER [--pictures 15000000] [--classes 21841] [--batches 2000] [--json]

Makes the header, the index, the keys and the digests of such a store in FOLDER (1.9 GB; what is there already serves),
not its pictures. A process of its own then opens it and goes through the first batches of a shuffled epoch: the ids of
their pictures, and the labels, for which the blocks of the index that hold them are checked. Seconds of batches are
the processor's. --json: the figures as JSON.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet.data import index
from convnet.data.store_header import FORMAT, VERSION, header_bytes, is_store, shard_name

SIZE, PER_SHARD, PORTION = 256, 680, 1 << 18  # pixels; pictures
RECORD = index.BLOCK * -(-(index.NPY_HEADER + 3 * SIZE**2) // index.BLOCK) + 3 * index.BLOCK  # bytes
CHILD = """
import json, sys
from pathlib import Path
from time import perf_counter, process_time
import numpy as np
from convnet.data.store import Store
from convnet.io import rng

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

path, batch, n_batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
before, began = resident("VmRSS"), perf_counter()
store = Store(path)
told = {"open_seconds": perf_counter() - began, "before_bytes": before, "open_bytes": resident("VmHWM")}
began, split = perf_counter(), store.split("train")
order = rng.order(split.n, 0, rng.stream("order"), 1)
told["epoch_begins_seconds"] = perf_counter() - began
orders, labels = [], []  # seconds of the processor
for first in range(0, n_batches * batch, batch):
    began = process_time()
    ids = order[first : first + batch]
    middle = process_time()
    split.labels[ids]
    orders.append(middle - began)
    labels.append(process_time() - middle)
for name, seconds in (("order", orders), ("labels", labels)):
    told |= {f"{name}_first_seconds": seconds[0], f"{name}_median_seconds": float(np.median(seconds))}
    told[f"{name}_mean_seconds"] = float(np.mean(seconds))
told["read_bytes"] = resident("VmRSS")
print(json.dumps(told))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=15_000_000)
    parser.add_argument("--classes", type=int, default=21_841)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=2000, help="that are gone through, of the epoch's")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    path = made(given.folder / f"store-{given.pictures}-{given.classes}", given.pictures, given.classes)
    command = [sys.executable, "-c", CHILD, str(path), str(given.batch), str(given.batches)]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if given.json:
        print(json.dumps(told))
        return
    print(f"{platform.platform()}, Python {platform.python_version()}, numpy {np.__version__}")
    for name, value in told.items():
        what, unit = name.rsplit("_", 1)
        print(f"{what:16} {value * 1e3:12.3f} ms" if unit == "seconds" else f"{what:16} {value / 2**20:12.1f} MiB")


def made(path: Path, n: int, n_classes: int) -> Path:
    """The store without its shards, which nobody opens; rows and names are written as they are made."""
    if is_store(path):
        return path
    path.mkdir(parents=True, exist_ok=True)
    n_shards = -(-n // PER_SHARD)
    names = ("index.npy", "keys.jsonl", "blocks.npy")
    sums, blocks, end = {name: hashlib.sha256() for name in names}, [], 0
    with open(path / "train.index.npy", "wb") as of_rows, open(path / "train.keys.jsonl", "wb") as of_names:
        head = npy_head(n, index.ROW)
        of_rows.write(head)
        sums["index.npy"].update(head)
        for rows, lines in portions(n, n_classes):
            block = index.digests(rows, lines)
            block["end"] += np.uint64(end)
            end = int(block["end"][-1])
            blocks.append(block)
            for file, name, data in ((of_rows, "index.npy", rows.tobytes()), (of_names, "keys.jsonl", b"".join(lines))):
                file.write(data)
                sums[name].update(data)
    contents = {"train.blocks.npy": index.npy_bytes(np.concatenate(blocks)), "left_out.jsonl": b""}
    contents["mean.npy"] = index.npy_bytes(np.full((SIZE, SIZE, 3), 128, np.float32))
    files = {shard_name("train", k): {"bytes": PER_SHARD * RECORD + 1024} for k in range(n_shards)}
    for name, data in contents.items():
        (path / name).write_bytes(data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for name in names[:2]:
        files[f"train.{name}"] = {"bytes": (path / f"train.{name}").stat().st_size, "sha256": sums[name].hexdigest()}
    statistics = {"n": n, "mean_rgb": [128.0] * 3, "eigenvalues": [1.0] * 3}
    statistics |= {name: np.eye(3).tolist() for name in ("covariance", "eigenvectors")}
    per_class = np.bincount(np.arange(n) % n_classes, minlength=n_classes).tolist()
    header = {"format": FORMAT, "version": VERSION, "source": {"name": "synthetic", "kind": "rows", "notes": []},
              "encoding": "raw", "size": SIZE, "shorter_side": SIZE, "classes": [f"n{k:08d}" for k in range(n_classes)],
              "splits": {"train": {"n": n, "shards": n_shards, "per_class": per_class}},
              "counts": {"seen": n, "used": n, "skipped": 0, "failed": 0, "enlarged": 0},
              "statistics": statistics, "listing": "", "files": files}  # fmt: skip
    (path / "store.json").write_bytes(header_bytes(header))
    return path


def portions(n: int, n_classes: int) -> Iterator[tuple[NDArray[np.void], list[bytes]]]:
    """The rows, and the lines of the key list, a part at a time."""
    generator = np.random.default_rng(0)
    for first in range(0, n, PORTION):
        ids = np.arange(first, min(first + PORTION, n))
        rows = np.zeros(len(ids), index.ROW)
        rows["shard"], rows["offset"] = ids // PER_SHARD, ids % PER_SHARD * RECORD
        rows["length"], rows["payload"] = RECORD, index.NPY_HEADER + 3 * SIZE**2
        rows["label"], rows["height"], rows["width"] = ids % n_classes, SIZE, SIZE
        rows["sum"] = generator.integers(0, 1 << 63, len(ids))
        rows["sha256"] = generator.integers(0, 256, (len(ids), 32), np.uint8)
        yield rows, [b'"train/n%08d/n%08d_%d.JPEG"\n' % (i % n_classes, i % n_classes, i) for i in ids.tolist()]


def npy_head(n: int, dtype: "np.dtype[np.void]") -> bytes:
    """The header of a .npy file of n rows."""
    some = index.npy_bytes(np.zeros(0, dtype))
    text = some[10:].replace(b"(0,)", f"({n},)".encode()).rstrip()
    return some[:10] + text.ljust(len(some) - 11) + b"\n"


if __name__ == "__main__":
    main()
