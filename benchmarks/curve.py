"""Do the fast forms train as the plain ones do? 200 steps of AlexNet with all of them and with none, two seeds each.

    python benchmarks/curve.py STORE [--net alexnet] [--steps 200] [--batch 32] [--out FOLDER]

fast: what `convnet train` does (bf16 with copies of the weights where the processor has it, kernels in C, conv1 by
blocks, counted dropout in C). none: CONVNET_KERNELS=plain and precision fp32. Each run is a process of its own; with
the same seed both have the same initial weights, pictures, crops and dropped units. Printed: the mean distance of the
loss curves, smoothed over 20 steps, between the forms at the same seed and between the seeds with the same form.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from convnet import device
from convnet.cli.resolve import plan_run
from convnet.data import preprocess
from convnet.data.loader import Loader
from convnet.progress import SILENT
from convnet.training.data import choose_data
from convnet.training.run import fresh_net
from convnet.training.schedule import rate
from convnet.training.step import EagerSteps

SMOOTH = 20  # steps
FORMS = {"fast": {}, "none": {"CONVNET_KERNELS": "plain"}}


def losses(store_path: str, net: str, form: str, seed: int, steps: int, batch: int) -> list[float]:
    """The loss of each step, in this process."""
    changes = [f"batch={batch}", f"seed={seed}", "precision=" + ("auto" if form == "fast" else "fp32")]
    store, recipe = plan_run(store_path, net, None, changes, SILENT)
    data, where = choose_data(recipe, store), device.choose(recipe.precision)
    device.keep_memory()
    made = preprocess.of_recipe(recipe, store.mean_picture, store.statistics.mean_rgb, store.shorter_side)
    loader = Loader(data.train, store.statistics, data.train_ids, recipe, made, where.device, 1, where.dtype)
    step = EagerSteps(where.take(fresh_net(recipe, len(store.classes))), recipe, where)
    step.net.train()
    found: list[float] = []
    epoch = 1
    while len(found) < steps:
        for each in islice(loader.epoch(epoch), steps - len(found)):
            loss, _ = step.gradients(each.images, each.labels, len(found))
            step.rule.step(rate(recipe, epoch, []))
            found.append(float(loss))
            print(f"\r{form} {seed}: step {len(found)}/{steps}, loss {found[-1]:.3f} ", end="", file=sys.stderr)
        epoch += 1
    print(file=sys.stderr)
    return found


def distance(a: list[float], b: list[float]) -> float:
    """The mean absolute difference of two curves, each smoothed by a running mean."""
    window = np.ones(SMOOTH) / SMOOTH
    return float(np.abs(np.convolve(a, window, "valid") - np.convolve(b, window, "valid")).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--net", default="alexnet")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        form, seed = given.one
        print(json.dumps(losses(given.store, given.net, form, int(seed), given.steps, given.batch)))
        return
    curves: dict[str, list[float]] = {}
    for seed in (0, 1):
        for form, environment in FORMS.items():
            command = [sys.executable, *sys.argv, "--one", form, str(seed)]
            done = subprocess.run(
                command, env=os.environ | environment, stdout=subprocess.PIPE, encoding="utf-8", check=True
            )
            curves[f"{form} {seed}"] = json.loads(done.stdout)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "curves.json").write_text(json.dumps(curves), encoding="utf-8")
    about = f"{device.choose('auto', 'cpu').reason}, torch {torch.__version__}"
    print(f"{about}; {given.net}, batch {given.batch}, {given.store}")
    print("mean loss of the last 20 steps: " + ", ".join(f"{k} {np.mean(v[-20:]):.3f}" for k, v in curves.items()))
    pairs = [("fast 0", "none 0"), ("fast 1", "none 1"), ("fast 0", "fast 1"), ("none 0", "none 1")]
    for a, b in pairs:
        print(f"{a} against {b}: {distance(curves[a], curves[b]):.4f}")


if __name__ == "__main__":
    main()
