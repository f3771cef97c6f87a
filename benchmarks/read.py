"""How fast are crops of 224 read from a raw store of 256? Goal: 8,000 pictures/s, 10 times a DataLoader over JPEGs.

    python benchmarks/read.py [FOLDER] [--pictures 1000] [--repeats 3]

store: `Split.crops` in batches of 128 in random order at random offsets, one thread; in the first pass each record's
sum is checked. DataLoader: torch's, over the folder's JPEGs: open, shorter side to 256, random crop of 224, uint8
batches of 128, with 0 and 2 workers. All read from the disk cache, in one process.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import PIL
import torch
from PIL import Image
from prepare import first, make_photos
from torch.utils.data import DataLoader, Dataset

from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Store

SIZE, CROP, BATCH = 256, 224, 128


class Jpegs(Dataset[torch.Tensor]):
    """A random crop of each picture, uint8 (3, 224, 224): what a loader over a folder does."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self.paths[i]) as file:
            image = file.convert("RGB")
        shorter = min(image.size)
        width, height = (round(side * SIZE / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (int(torch.randint(side - CROP + 1, ())) for side in image.size)
        return torch.from_numpy(np.array(image.crop((left, top, left + CROP, top + CROP))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_photos(Path(scratch) / "in", options.pictures) if options.folder is None else options.folder
        source = first(open_source(folder, split=0), options.pictures)
        paths = [entry.place.path for entry in source.entries]
        store = prepare(source, Path(scratch) / "store", size=SIZE).path
        rates: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            split = Store(store).split("train")
            for name in ("store, first pass", "store, later passes"):
                rates.setdefault(name, []).append(crops(split, len(rates)))
            for workers in (0, 2):
                name = f"DataLoader, {workers} workers"
                rates.setdefault(name, []).append(load(paths, workers))
    report(rates, folder if options.folder else "synthetic photos of 500 x 375", split.n, options.repeats)


def crops(split, seed: int) -> float:
    """Pictures per second of one pass."""
    random = np.random.default_rng(seed)
    order = random.permutation(split.n)
    began = perf_counter()
    for start in range(0, split.n, BATCH):
        ids = order[start : start + BATCH]
        tops, lefts = random.integers(0, SIZE - CROP + 1, (2, len(ids)))
        split.crops(ids, tops, lefts, CROP)
    return split.n / (perf_counter() - began)


def load(paths: Sequence[Path], workers: int) -> float:
    """Pictures per second of one epoch, starting the workers included."""
    began = perf_counter()
    n = sum(len(batch) for batch in DataLoader(Jpegs(paths), BATCH, shuffle=True, num_workers=workers))
    return n / (perf_counter() - began)


def report(rates: dict[str, list[float]], what: Path | str, n: int, repeats: int) -> None:
    base = statistics.median(rates["DataLoader, 0 workers"])
    versions = f"torch {torch.__version__}, Pillow {PIL.__version__}, numpy {np.__version__}"
    print(f"{what}, {n} pictures, {repeats} repeats, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, {versions}, {sys.platform}")
    print(f"{'':28}{'pictures/s':>12}{'lowest':>9}{'highest':>9}{'/ DataLoader, 0':>17}")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"{name:28}{middle:12,.0f}{min(values):9,.0f}{max(values):9,.0f}{middle / base:17.1f}")


if __name__ == "__main__":
    main()
