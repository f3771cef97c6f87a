"""How fast is preparation, against plain Pillow on the same pictures? Goal: 0.8 x plain x cores.

    python benchmarks/prepare.py [FOLDER] [--pictures 1000] [--repeats 5] [--side 375]

plain: one thread opens each file, converts it to RGB, scales its shorter side to 256 (bicubic), cuts out the square and
makes an array of it; nothing is checked, summed or written. All take turns in one process; medians and extremes are
printed: of the clock, and of the processor time of all threads, which other work on the machine changes little.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import PIL
from PIL import Image

from convnet.data.prepare import prepare
from convnet.data.sources import Source, open_source

SIZE = 256
PLAIN = "plain Pillow"
Times = tuple[float, float]  # milliseconds a picture: by the clock, and of the processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=375, help="the shorter side of the photos that are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (
            make_photos(Path(scratch) / "in", options.pictures, options.side)
            if options.folder is None
            else options.folder
        )
        source = first(open_source(folder, split=0), options.pictures)
        paths = [entry.place.path for entry in source.entries]
        times: dict[str, list[Times]] = {}
        for repeat in range(-1, options.repeats):  # -1 warms the disk cache
            for name, taken in measure(source, paths, Path(scratch) / f"store{repeat}").items():
                if repeat >= 0:
                    times.setdefault(name, []).append(taken)
    made = f"synthetic photos of {options.side * 4 // 3} x {options.side}"
    report(times, made if options.folder is None else folder, len(paths), options.repeats)


def make_photos(root: Path, n: int, side: int) -> Path:
    """JPEGs of 4 : 3, smooth with some noise; of 500 x 375 about 55 kB each."""
    random = np.random.default_rng(0)
    for k in range(n):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC), np.int16)
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


def measure(source: Source, paths: Sequence[Path], to: Path) -> dict[str, Times]:
    """The times of each way, once."""
    Image.core.set_blocks_max(0)  # Pillow's own default; prepare sets it
    times = {PLAIN: timed(lambda: [plain(path) for path in paths], len(paths))}
    for workers in (1, 2):
        place, name = to / str(workers), f"prepare, {workers} worker{'s' * (workers > 1)}"
        times[name] = timed(lambda: prepare(source, place, size=SIZE, workers=workers), len(paths))  # noqa: B023
        for old in place.iterdir():
            old.unlink()
    return times


def timed(work: Callable[[], object], n: int) -> Times:
    clock, processor = perf_counter(), process_time()
    work()
    return 1000 * (perf_counter() - clock) / n, 1000 * (process_time() - processor) / n


def plain(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        image = file.convert("RGB")
    shorter = min(image.size)
    width, height = (round(side * SIZE / shorter) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def report(times: dict[str, list[Times]], what: Path | str, n: int, repeats: int) -> None:
    print(f"{what}, {n} pictures, {repeats} repeats, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {np.__version__}, {sys.platform}")
    print(f"{'':20}{'pictures/s':>11}{'plain x cores = 1':>26}{'processor, ms':>15}{'plain = 1':>22}")
    for name, rows in times.items():
        cores = int(name.split()[1]) if name.startswith("prepare") else 1
        by_clock = [base / own / cores for (base, _), (own, _) in zip(times[PLAIN], rows, strict=True)]
        by_processor = [base / own for (_, base), (_, own) in zip(times[PLAIN], rows, strict=True)]
        clock, processor = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:20}{1000 / clock:11,.0f}{spread(by_clock):>26}{processor:15.2f}{spread(by_processor):>22}")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
