"""Does the loader keep up? Raw store on one core, JPEG store against decoding alone, training against its steps alone.

    python benchmarks/loader.py STORE [--jpeg STORE] [--net alexnet] [--steps 8] [--repeats 5] [--cpu-time]

raw        batches of the net's input from STORE (draws, crop, mean, colour, mirror, cast), by one thread, later passes:
           goal 12,000 pictures/s. Against the plain form, and against the crops alone as uint8.
jpeg       the same from a jpeg store, a worker for each core, against decoding alone in one thread, times the cores:
           goal 0.9. Decoding alone by Pillow, as one would write it, and by what the loader uses.
training   steps on the loader's batches, against steps on a batch that is ready: goal 0.95. Without validation and
           checkpoints, which come once an epoch and every ten minutes.

The ways of each part take turns in one process; the first turn doesn't count. --cpu-time counts seconds of all threads
in place of the wall's: other processes disturb them less, but waiting doesn't show in them.
"""

import argparse
import io
import os
import platform
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import perf_counter, process_time
from unittest import mock

import numpy as np
import PIL
import torch
from PIL import Image

from convnet import device
from convnet.data import augment, preprocess
from convnet.data.decode import stored_by
from convnet.data.loader import Batch, Loader
from convnet.data.store import Split, Store
from convnet.kernels.cpu import augment as augment_cpu
from convnet.kernels.cpu import compiled
from convnet.nets import create_model, recipe_of
from convnet.recipe import Recipe, load_recipe
from convnet.training.step import EagerSteps

Works = dict[str, Callable[[], object]]
RAW, PLAIN, CROPS = "raw store, one core", "the same, plain form", "uint8 crops alone"
JPEG, DECODE, OURS = "jpeg store, all cores", "Pillow alone, one core", "our decoder alone, one core"
THREADS = "our decoder alone, all cores"
TRAINING, STEPS = "training", "its steps alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--jpeg", type=Path)
    parser.add_argument("--net", default="alexnet")
    parser.add_argument("--steps", type=int, default=8, help="of a training's turn; 0 leaves that part out")
    parser.add_argument("--pictures", type=int, default=512, help="of a jpeg turn")
    parser.add_argument("--workers", type=int, default=1, help="threads that load in the training's part")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    recipe, where = load_recipe(recipe_of(given.net)), device.choose("auto", "cpu")
    device.keep_memory()
    clock, n_threads, cores = (
        process_time if given.cpu_time else perf_counter,
        torch.get_num_threads(),
        os.cpu_count() or 1,
    )
    print(f"{given.net}, {where.reason}; {compiled.state()}; {cores} cores, {n_threads} threads")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, Pillow {PIL.__version__}, "
          f"numpy {np.__version__}, stored JPEGs by {stored_by()}; python {' '.join(sys.argv)}")  # fmt: skip
    print(f"medians of {given.repeats} (least and most), {'CPU' if given.cpu_time else 'wall'} time")

    torch.set_num_threads(1)
    store = Store(given.store)
    recipe = replace(recipe, size=store.size)
    n = store.split("train").n
    found = turns(raw(store, recipe, where), dict.fromkeys((RAW, PLAIN, CROPS), n), given.repeats, clock)
    say(found, PLAIN)
    if given.jpeg is not None:
        store, n = Store(given.jpeg), given.pictures
        works = jpeg(store, recipe, where, n, cores)
        found = turns(works, dict.fromkeys(works, n), given.repeats, clock)
        say(found, DECODE)
        by = cores if not given.cpu_time else 1  # CPU time is that of all cores already
        for name in works:
            if name != JPEG:
                ratios = [a / b / (1 if name == THREADS else by) for a, b in zip(found[JPEG], found[name], strict=True)]
                print(f"  {JPEG} / ({name}{'' if name == THREADS else ' x cores'}): {spread(ratios, '.2f')}")
    if given.steps:
        torch.set_num_threads(n_threads)
        train(Store(given.store), recipe, where, given.steps, given.workers, given.repeats, clock)


def loader_of(store: Store, recipe: Recipe, where: device.Device, n: int, workers: int) -> Loader:
    split, means = store.split("train"), (store.mean_picture, store.statistics.mean_rgb)
    how = preprocess.of_recipe(recipe, *means, store.shorter_side)
    return Loader(split, store.statistics, np.arange(n), recipe, how, where.device, workers, where.dtype)


def raw(store: Store, recipe: Recipe, where: device.Device) -> Works:
    load = loader_of(store, recipe, where, store.split("train").n, 0)

    def plain() -> None:
        with mock.patch.object(augment_cpu, "available", return_value=False):
            go_through(load)

    def crops() -> None:
        for ids in load.steps(1):
            how = augment.sample(recipe, store.statistics, 1, ids)
            load.split.crops(ids, how.tops, how.lefts, recipe.crop)

    return {RAW: lambda: go_through(load), PLAIN: plain, CROPS: crops}


def go_through(load: Loader) -> None:
    for _ in load.epoch(1):
        pass


def jpeg(store: Store, recipe: Recipe, where: device.Device, n: int, cores: int) -> Works:
    load, split = loader_of(store, recipe, where, n, cores), store.split("train")

    def ours(part: range) -> None:
        for i in part:
            split.picture(i)

    def threads() -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(ours, (range(first, n, cores) for first in range(cores))))

    works = {JPEG: lambda: go_through(load), DECODE: lambda: pillow(split, n), OURS: lambda: ours(range(n))}
    return works | {THREADS: threads}


def pillow(split: Split, n: int) -> None:
    for i in range(n):
        with Image.open(io.BytesIO(split.payload(i).tobytes())) as picture:
            np.asarray(picture.convert("RGB"))


def train(store: Store, recipe: Recipe, where: device.Device, steps: int, workers: int, repeats: int, clock) -> None:
    """The part "training"."""
    net = create_model(recipe.net, num_classes=len(store.classes), init=recipe.init, seed=0, **recipe.net_options)
    step, split, numbers = EagerSteps(where.take(net).train(), recipe, where), store.split("train"), count()
    ids = np.resize(np.arange(split.n), steps * recipe.batch)
    load = replace(loader_of(store, recipe, where, split.n, workers), ids=ids, dtype=step.input_dtype)
    kept = next(load.epoch(1))

    def update(batch: Batch) -> None:
        step.gradients(batch.images, batch.labels, next(numbers)).loss.item()
        step.rule.step(recipe.lr / 100)  # the weights stay finite

    def whole() -> None:
        for batch in load.epoch(1):
            update(batch)

    def alone() -> None:
        for _ in range(steps):
            update(kept)

    found = turns({TRAINING: whole, STEPS: alone}, dict.fromkeys((TRAINING, STEPS), len(ids)), repeats, clock)
    say(found, STEPS)
    ratios = [a / b for a, b in zip(found[TRAINING], found[STEPS], strict=True)]
    print(f"  {TRAINING} / {STEPS}: {spread(ratios, '.3f')}, {workers} workers")


def turns(works: Works, pictures: dict[str, int], repeats: int, clock) -> dict[str, list[float]]:
    """Pictures per second of each turn."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(-1, repeats):
        for name, work in works.items():
            began = clock()
            work()
            if repeat >= 0:
                rates[name].append(pictures[name] / (clock() - began))
    return rates


def say(rates: dict[str, list[float]], base: str) -> None:
    for name, values in rates.items():
        times = statistics.median(values) / statistics.median(rates[base])
        print(f"{name:28}{spread(values, ',.0f'):>28} pictures/s{times:8.2f} x {base}")


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
