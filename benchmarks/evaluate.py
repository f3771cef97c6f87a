"""How much memory does `convnet evaluate` need? The goal: 200,000 pictures of 21,841 classes in less than 2 GB.

    python benchmarks/evaluate.py FOLDER [--pictures 200000] [--classes 21841] [--net lenet5] [--posteriors]

Makes a store of synthetic pictures and a net with random weights in FOLDER (1 GB; what is there already serves), runs
the command in a process of its own and prints the most memory that it held, in all: Python, torch and mapped files.
--posteriors keeps every posterior in a file, which has 17.5 GB, and as much beside it while it is made; --net alexnet
has weights of 585 MB. All posteriors in memory, as they once were, are 17.5 GB in float32 and 35 GB in float64.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources.listing import Entry, Source
from convnet.nets import create_model
from convnet.recipe import Recipe

SIZE = {"lenet5": 32, "alexnet": 224}  # pixels
OPTIONS = {"lenet5": {"output": "linear"}, "alexnet": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=21_841)
    parser.add_argument("--net", choices=SIZE, default="lenet5")
    parser.add_argument("--posteriors", action="store_true")
    given = parser.parse_args()
    store, net = made(given.folder, given.net, given.pictures, given.classes)
    command = ["convnet", "evaluate", str(net), str(store), "--split", "test", "--json", "-q"]
    if given.posteriors:
        command += ["--posteriors", str(given.folder / f"{given.net}-{given.pictures}.posteriors")]
    began = perf_counter()
    done = subprocess.run([sys.executable, "-c", "from convnet.cli.app import main; main()", *command[1:]],
                          stdout=subprocess.PIPE, check=True)  # fmt: skip
    seconds = perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    scores = json.loads(done.stdout)
    print(f"torch {torch.__version__}, {platform.platform()}, {torch.get_num_threads()} threads")
    print(f"{' '.join(command)}: n {scores['n']:,}, classes {len(scores['per_class']):,}")
    print(f"top-1 error {scores['top1_error']:.3%}, loss {scores['loss']:.4f}")
    print(f"at most {peak / 1e9:.2f} GB in {seconds:.0f} s")


def made(folder: Path, net: str, n: int, n_classes: int) -> tuple[Path, Path]:
    """The store, and the checkpoint of a net with random weights."""
    size = SIZE[net]
    classes = tuple(f"class{k:05d}" for k in range(n_classes))
    test = [Entry(f"test/{i:06d}", "test", label, i, str(i)) for i, label in labelled(n, n_classes)]
    train = [Entry(f"train/{k:05d}", "train", k, n + k, str(n + k)) for k in range(n_classes)]
    source = Source("synthetic", "noise", classes, [*train, *test], (), (), size, (), lambda entry: noise(entry, size))
    store = prepare(source, folder / f"store-{size}-{n}-{n_classes}", size=size)
    model = create_model(net, num_classes=n_classes, seed=0, **OPTIONS[net])
    channels = "grey" if model.in_channels == 1 else "rgb"
    recipe = Recipe(
        name=net, net=net, net_options=OPTIONS[net], size=size, crop=size, channels=channels, colour_std=0.0
    )
    done = Preprocessing(size, 0, size, channels, None, 1 / 64, -2.0)
    path = folder / f"{net}-{n_classes}.ckpt"
    checkpoint.save(path, Checkpoint(recipe, done, store.classes, model.state_dict()))
    return store.path, path


def labelled(n: int, n_classes: int) -> list[tuple[int, int]]:
    """(picture, class), in the order of a listing: class by class."""
    labels = np.sort(np.random.default_rng(0).integers(0, n_classes, n))
    return list(enumerate(labels.tolist()))


def noise(entry: Entry, size: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng(int(entry.place))
    return generator.integers(0, 256, (size, size, 3), np.uint8)


if __name__ == "__main__":
    main()
