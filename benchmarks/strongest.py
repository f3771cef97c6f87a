"""What does the search for the strongest pictures cost, and does it read the store once for all layers, on the CPU?

    python benchmarks/strongest.py [--net alexnet] [--pictures 128] [--repeats 5] [--cpu-time]

Goal: each picture is read once, however many layers and maps are searched. forward: ready batches through the net that
keeps all its stages, no more; one layer, three layers: `strongest` from a raw store, all maps of conv1, and of conv1,
conv3 and conv5. Weights are random. The ways take turns in one process; the first turn doesn't count. --cpu-time counts
seconds of all threads in place of the wall's: other processes disturb them less.
"""

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from prepare import make_photos

from convnet import device
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources import open_source
from convnet.data.store import Split
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets import create_model, trace
from convnet.visualize import top_activations
from convnet.visualize.search import BATCH

LAYERS = {"one layer": ("conv1",), "three layers": ("conv1", "conv3", "conv5")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="alexnet")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    how, clock = device.choose("fp32", "cpu"), process_time if options.cpu_time else perf_counter
    net = how.take(create_model(options.net, seed=0)).eval()
    crop, n = net.input_size, options.pictures
    pre = Preprocessing(256, 0, crop, "rgb", np.full((256, 256, 3), 117, np.float32), 1.0, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_photos(Path(scratch) / "in", n)
        split = prepare(open_source(folder, split=0), Path(scratch) / "store", size=256).split("train")
        reads = count_reads()
        images = (50 * torch.randn(BATCH, 3, crop, crop)).contiguous(memory_format=how.memory_format)
        seconds: dict[str, list[float]] = {name: [] for name in ("forward", *LAYERS)}
        counts: dict[str, set[int]] = {name: set() for name in LAYERS}
        for repeat in range(-1, options.repeats):
            for name, taken in seconds.items():
                reads.clear()
                began = clock()
                if name == "forward":
                    for first in range(0, n, BATCH):
                        trace(net, images[: min(BATCH, n - first)])
                else:
                    top_activations(TrainedNet(net, pre, (), how), split, dict.fromkeys(LAYERS[name]))
                    counts[name].add(len(reads))
                if repeat >= 0:
                    taken.append(clock() - began)
    load = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{how.reason}; {load}; {'CPU time' if options.cpu_time else 'wall time'}, {options.repeats} repeats")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")
    print(f"\n{options.net}, {n} pictures, batch {BATCH}")
    print(f"{'':14}{'pictures/s':>12}{'lowest':>9}{'highest':>9}{'reads':>8}")
    for name, values in seconds.items():
        rates = [n / value for value in values]
        count = " ".join(map(str, sorted(counts.get(name, ())))) or "-"
        print(f"{name:14}{statistics.median(rates):12,.1f}{min(rates):9,.1f}{max(rates):9,.1f}{count:>8}")


def count_reads() -> list[int]:
    """Every picture that is read from a store from now on."""
    reads: list[int] = []
    picture = Split.picture

    def counted(self: Split, i: int) -> np.ndarray:
        reads.append(i)
        return picture(self, i)

    Split.picture = counted  # type: ignore[method-assign]
    return reads


if __name__ == "__main__":
    main()
