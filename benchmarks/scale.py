"""What do several processes and machines cost and need? Measured between two processes here, computed for GPUs.

    python benchmarks/scale.py [--net alexnet] [--batch 64] [--repeats 5]    # two processes on this machine, by turns
    python benchmarks/scale.py --table                                        # 1, 8 and 64 GPUs: docs/scale.md's table

The model of a data-parallel step: the forward pass, then the longer of backward pass and all-reduce, which run at the
same time, then what is reduced after the backward pass has ended, the last bucket.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import distributed

from convnet import hardware
from convnet.data.loader import Batch
from convnet.device import choose
from convnet.io.processes import ALONE, Processes, joined
from convnet.nets import create_model, recipe_of
from convnet.nets.describe import summary
from convnet.recipe import load_recipe
from convnet.training.step import EagerSteps

BUCKET = 25 << 20  # bytes that DistributedDataParallel reduces at once
RAW = 3 * 256 * 256  # bytes of a stored picture
ILSVRC, IMAGENET = 1_281_167, 14_197_122  # training pictures
EPOCHS = {"alexnet": 90, "vgg_d": 74}  # of the papers
NODE = 8  # GPUs that are joined by NVLink; machines are joined by Ethernet
NVLINK, ETHERNET = 300e9, 10e9  # bytes a second of an all-reduce: two thirds of 450 GB/s, four fifths of 100 Gb/s
GPU = {"alexnet": 60_000, "vgg_d": 3_500}  # pictures a second of one GPU in training: the goals, not measured


@dataclass(frozen=True)
class Pieces:
    """Seconds of a process's part of a step alone, and of the all-reduce of all gradients alone."""

    forward: float
    backward: float
    reduce: float
    n_bytes: int

    def step(self) -> float:
        """Seconds of a data-parallel step by the model."""
        last = min(BUCKET / self.n_bytes, 1.0) * self.reduce
        return self.forward + max(self.backward, self.reduce - last) + last


def ring(n_bytes: float, n: int, rate: float) -> float:
    """Seconds of an all-reduce by a ring of n: each sends and receives all but its own part twice."""
    return 2 * (n - 1) / n * n_bytes / rate


def reduced(n_bytes: float, n: int) -> float:
    """Seconds of an all-reduce over n GPUs: within each machine, and between machines."""
    machines = -(-n // NODE)
    return ring(n_bytes, min(n, NODE), NVLINK) + (ring(n_bytes, machines, ETHERNET) if machines > 1 else 0.0)


def table() -> None:
    """One row for each net, number of GPUs and batch, in Markdown."""
    print("| net | GPUs | pictures a GPU and step | step, ms | all-reduce, ms | pictures/s | of linear | ILSVRC, hours "
          "| all of ImageNet, hours | read, GB/s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for net, rate in GPU.items():
        n_bytes = 2 * summary(net)["parameters"]  # gradients in bfloat16
        for n in (1, 8, 64):
            for batch in (128, 1024) if net == "alexnet" else (32, 256):
                compute, reduce = batch / rate, reduced(n_bytes, n)
                seconds = Pieces(compute / 3, compute * 2 / 3, reduce, n_bytes).step() if n > 1 else compute
                pictures = n * batch / seconds
                hours = [EPOCHS[net] * many / pictures / 3600 for many in (ILSVRC, IMAGENET)]
                row = [f"{1000 * seconds:.1f}", f"{1000 * reduce:.2f}", f"{pictures:,.0f}"]
                row += [
                    f"{pictures / (n * rate):.0%}",
                    *(f"{each:.2g}" for each in hours),
                    f"{pictures * RAW / 1e9:.1f}",
                ]
                print(f"| {net} | {n} | {batch} | {' | '.join(row)} |")


def inside(net: str, batch: int, repeats: int) -> None:
    """Of two processes: the pieces and the whole, medians by turns; the first one prints."""
    torch.set_num_threads(1)
    with joined() as processes:
        alone, together = steps(net, ALONE), steps(net, processes)
        own = batch // processes.n
        images = torch.randn(own, 3, together.net.input_size, together.net.input_size)
        made = Batch(images.contiguous(memory_format=torch.channels_last), torch.zeros(own, dtype=torch.int64),
                     np.arange(batch), processes.rank * own)  # fmt: skip
        single = Batch(made.images, made.labels, np.arange(own))
        n_bytes = 4 * sum(weight.numel() for weight in together.net.parameters())
        flat = torch.zeros(n_bytes // 4)

        def forward() -> None:
            with torch.enable_grad():
                alone.net(single.images)

        works: dict[str, Callable[[], object]] = {
            "forward": forward,
            "forward and backward": lambda: alone.forward_backward(single, 0),
            "all-reduce": lambda: distributed.all_reduce(flat),
            "step": lambda: together.forward_backward(made, 0),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(repeats + 1):
            for name, work in works.items():
                processes.wait()
                began = perf_counter()
                work()
                processes.wait()
                if turn:
                    seconds[name].append(perf_counter() - began)
        if processes.is_first:
            tell(seconds, n_bytes)


def steps(net: str, processes: Processes) -> EagerSteps:
    recipe = load_recipe(recipe_of(net))
    return EagerSteps(create_model(net).train(), recipe, choose("fp32", "cpu"), processes=processes)


def tell(seconds: dict[str, list[float]], n_bytes: int) -> None:
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    both, reduce = middle["forward and backward"], middle["all-reduce"]
    pieces = Pieces(middle["forward"], both - middle["forward"], reduce, n_bytes)
    for name, values in seconds.items():
        print(f"{name:20} {1000 * middle[name]:8.0f} ms ({1000 * min(values):.0f} to {1000 * max(values):.0f})")
    hidden = (both + reduce - middle["step"]) / reduce
    print(f"{n_bytes / 2**20:.0f} MiB of gradients; all-reduce {n_bytes / reduce / 1e9:.2f} GB/s; of it "
          f"{max(0.0, min(1.0, hidden)):.0%} is hidden behind the backward pass; waiting is "
          f"{max(0.0, 1 - both / middle['step']):.0%} of a step")  # fmt: skip
    print(f"the model says {1000 * pieces.step():.0f} ms, {pieces.step() / middle['step']:.2f} of what was measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="alexnet")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        table()
    elif "RANK" in os.environ:
        inside(given.net, given.batch, given.repeats)
    else:
        machine = (
            f"{hardware.processor().name}, {hardware.cores().n} processors, load {hardware.load() or 0:.1f} before"
        )
        print(f"{machine}; Python {platform.python_version()}, torch {torch.__version__}; python {' '.join(sys.argv)}")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(Path(__file__))]
        subprocess.run([sys.executable, *launcher, *sys.argv[1:]], check=True,
                       env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"})  # fmt: skip


if __name__ == "__main__":
    main()
