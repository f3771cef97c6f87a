"""Does extraction run at the net's own rate, and does its memory stay?

    python benchmarks/extract.py CHECKPOINT FOLDER [--stage pool5] [--n 10000] [--precision auto]

FOLDER: photos, named again under other names until there are n of them. By turns, five times: a fifth of the photos is
extracted, decoding and writing included, and the net runs on one ready batch of as many. Printed: both rates by the
clock, their ratio, and the memory resident after each turn.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from convnet import device, hardware
from convnet.evaluation.inference import BATCH
from convnet.evaluation.trained_net import TrainedNet, load
from convnet.retrieval.extract import extract
from convnet.retrieval.pictures import Pictures, pictures_at

TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", default="pool5")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    device.keep_memory()
    net = load(given.checkpoint, device.choose(given.precision))
    each = given.n // TURNS
    print(f"{hardware.processor().name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {net.device}")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = named_again(given.folder, Path(folder) / "photos", given.n)
        alone(net, BATCH * 4)
        for turn in range(TURNS):
            part = pictures.some(np.arange(turn * each, (turn + 1) * each))
            begin = perf_counter()
            extract(net, "0" * 64, part, Path(folder) / str(turn), [given.stage])
            rate, of_net = each / (perf_counter() - begin), alone(net, each)
            ratios.append(rate / of_net)
            print(f"{rate:.0f} photos/s, the net {of_net:.0f}: {ratios[-1]:.3f}; {resident():.0f} MB", flush=True)
    print(f"{given.n:,} photos, {given.stage}: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def named_again(photos: Path, folder: Path, n: int) -> Pictures:
    """n names of the photos: links, in as many folders as it takes."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for i in range(n):
        name = folder / str(i // len(found)) / f"{i % len(found):06d}{found[i % len(found)].suffix}"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(found[i % len(found)].resolve())
    return pictures_at([folder])


def alone(net: TrainedNet, n: int) -> float:
    """Pictures a second of the net on a ready batch."""
    narrowed, crop = net.narrowed(), net.preprocessing.crop
    images = (torch.randn(BATCH, net.net.in_channels, crop, crop) * 60).to(memory_format=net.device.memory_format)
    with torch.no_grad(), net.device.autocast():
        narrowed.net(images)
        begin = perf_counter()
        for _ in range(n // BATCH):
            narrowed.net(images)
        return n // BATCH * BATCH / (perf_counter() - begin)


def resident() -> float:
    """MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1e3


if __name__ == "__main__":
    main()
