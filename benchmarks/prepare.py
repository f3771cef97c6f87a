"""How fast is preparation, against plain Pillow on the same pictures? Goal: 0.8 x plain x cores.

    python benchmarks/prepare.py [FOLDER] [--pictures 1000] [--repeats 3]

plain: one thread opens each file, converts it to RGB, scales its shorter side to 256 (bicubic), cuts out the square and
makes an array of it; nothing is checked, summed or written. Plain once as Pillow is, and once with Pillow told to keep
its memory blocks, which `prepare` does. All take turns in one process; the median and the extremes are printed.
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
from PIL import Image

from convnet.data.prepare import prepare
from convnet.data.sources import Source, open_source

SIZE = 256
BLOCKS = 64  # as in prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_photos(Path(scratch) / "in", options.pictures) if options.folder is None else options.folder
        source = first(open_source(folder, split=0), options.pictures)
        paths = [entry.place.path for entry in source.entries]
        rates: dict[str, list[float]] = {}
        for repeat in range(-1, options.repeats):  # -1 warms the disk cache
            for name, rate in measure(source, paths, Path(scratch) / f"store{repeat}").items():
                if repeat >= 0:
                    rates.setdefault(name, []).append(rate)
    report(rates, folder if options.folder else "synthetic photos of 500 x 375", len(paths), options.repeats)


def make_photos(root: Path, n: int) -> Path:
    """JPEGs of 500 x 375, smooth with some noise, about 90 kB each."""
    random = np.random.default_rng(0)
    for k in range(n):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = root / f"class{k % 10}" / f"{k:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=90)
    return root


def first(source: Source, n: int) -> Source:
    """Every so-many-th picture, n of them."""
    step = max(1, len(source.entries) // n)
    kept = source.entries[::step][:n]
    return Source(
        source.name, source.kind, source.classes, kept, (), (), source.natural_size, source.notes, source.reader
    )


def measure(source: Source, paths: Sequence[Path], to: Path) -> dict[str, float]:
    """Pictures per second of each way, once."""
    rates = {}
    for name, blocks in (("plain Pillow", 0), ("plain, memory blocks kept", BLOCKS)):
        Image.core.set_blocks_max(blocks)
        began = perf_counter()
        for path in paths:
            plain(path)
        rates[name] = len(paths) / (perf_counter() - began)
    for workers in (1, 2):
        Image.core.set_blocks_max(0)
        began = perf_counter()
        prepare(source, to / str(workers), size=SIZE, workers=workers)
        rates[f"prepare, {workers} worker{'s' * (workers > 1)}"] = len(paths) / (perf_counter() - began)
        for old in (to / str(workers)).iterdir():
            old.unlink()
    return rates


def plain(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        image = file.convert("RGB")
    shorter = min(image.size)
    width, height = (round(side * SIZE / shorter) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def report(rates: dict[str, list[float]], what: Path | str, n: int, repeats: int) -> None:
    base = statistics.median(rates["plain Pillow"])
    print(f"{what}, {n} pictures, {repeats} repeats, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {np.__version__}, {sys.platform}")
    print(f"{'':28}{'pictures/s':>12}{'lowest':>9}{'highest':>9}{'/ (plain x cores)':>19}")
    for name, values in rates.items():
        cores = int(name.split()[1]) if name.startswith("prepare") else 1
        middle = statistics.median(values)
        row = f"{middle:12,.0f}{min(values):9,.0f}{max(values):9,.0f}{middle / (base * cores):19.2f}"
        print(f"{name:28}{row}")


if __name__ == "__main__":
    main()
