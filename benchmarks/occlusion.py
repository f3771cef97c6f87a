"""What does occlusion cost beside the forward passes that it needs, on the CPU? Goal, as a ratio of medians in one run:

    AlexNet, box 32, stride 8   its forward passes a second, everything included >= 0.7 x those of the net alone

    python benchmarks/occlusion.py [--net alexnet] [--box 32] [--stride 8] [--batch 32] [--repeats 5] [--precision fp32]
                                   [--cpu-time]

Everything: from a picture's pixels to the three maps: preprocessing, the first look, 625 places painted, passed and
evaluated. forward: as many pictures of the same batch size, ready and in the net's memory layout, through the net, no
more. Weights are random. The two take turns in one process; the first turn doesn't count.
--cpu-time counts seconds of all threads in place of the wall's: other processes disturb them less.
"""

import argparse
import os
import platform
import statistics
from time import perf_counter, process_time

import numpy as np
import torch

from convnet import device
from convnet.data.preprocess import Preprocessing
from convnet.evaluation.inference import BATCH
from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets import create_model
from convnet.visualize.occlusion import occlusion, places

GOAL = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="alexnet")
    for name, default in (("--box", 32), ("--stride", 8), ("--batch", BATCH), ("--repeats", 5)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32")
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    how, clock = device.choose(options.precision, "cpu"), process_time if options.cpu_time else perf_counter

    net = how.take(create_model(options.net, seed=0)).eval()
    crop = net.input_size
    pre = Preprocessing(256, 0, crop, "rgb", np.full((256, 256, 3), 117, np.float32), 1.0, 0.0)
    seen = Seen("noise", np.random.default_rng(0).integers(0, 256, (crop, crop, 3), np.uint8))
    n = len(places(crop, options.box, options.stride)) ** 2
    images = (50 * torch.randn(options.batch, 3, crop, crop)).contiguous(memory_format=how.memory_format)

    @torch.no_grad()
    def forward() -> None:
        with how.autocast():
            for first in range(0, n, options.batch):
                net(images[: min(options.batch, n - first)])

    def everything() -> None:
        trained = TrainedNet(net, pre, (), how)
        occlusion(trained, seen, box=options.box, stride=options.stride, batch=options.batch)

    ways = {"forward": forward, "everything": everything}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(-1, options.repeats):
        for name, way in ways.items():
            began = clock()
            way()
            if repeat >= 0:
                seconds[name].append(clock() - began)
    load = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{how.reason}; {load}; {'CPU time' if options.cpu_time else 'wall time'}, {options.repeats} repeats")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")
    print(f"\n{options.net}, box {options.box}, stride {options.stride}: {n} passes, batch {options.batch}")
    print(f"{'':12}{'passes/s':>10}{'lowest':>9}{'highest':>9}")
    for name, values in seconds.items():
        rates = [n / value for value in values]
        print(f"{name:12}{statistics.median(rates):10,.1f}{min(rates):9,.1f}{max(rates):9,.1f}")
    turns = [a / b for a, b in zip(seconds["forward"], seconds["everything"], strict=True)]
    ratio = statistics.median(seconds["forward"]) / statistics.median(seconds["everything"])
    print(f"everything / forward: {ratio:.3f}, goal {GOAL}; in single turns {min(turns):.3f} to {max(turns):.3f}")


if __name__ == "__main__":
    main()
