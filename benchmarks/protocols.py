"""What do the papers' test protocols cost, on the CPU? Goals, as ratios of medians in one run:

    AlexNet  ten-crop's compute <= 10.5 x a single view's; its whole time with decoding <= 1.3 x ten forward passes
    VGG-A    dense at 384 <= 0.2 x multi-crop (50 crops) at 384
    VGG-D    peak memory of a fresh process that tests a checkpoint densely at 512 < 4 GB

    python benchmarks/protocols.py [--only alexnet|vgg_a|memory] [--repeats 5] [--precision auto|fp32|bf16] [--cpu-time]

Pictures: synthetic photos of 500 x 375 in jpeg stores, so 4:3; for VGG-A also their central squares. Weights: random.
forward: ready batches through the net, no more; compute: pictures in memory to probabilities; whole: `evaluate` from
the store. All at the default batch. What is compared takes turns in one process; median and extremes are printed.
--cpu-time counts seconds of all threads in place of the wall's: other processes disturb them less.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import PIL
import torch
from prepare import make_photos

from convnet import checkpoint, device
from convnet.checkpoint import Checkpoint
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources import open_source
from convnet.data.store import Split, centre_square
from convnet.evaluation.inference import BATCH, infer, probabilities
from convnet.evaluation.pictures import at_scales
from convnet.evaluation.trained_net import TrainedNet
from convnet.evaluation.views import Look
from convnet.nets import create_model
from convnet.recipe import Recipe

CROP, TRAINED = 224, 256
PICTURES = {"alexnet": 64, "vgg_a": 8, "memory": 8}
Clock = Callable[[], float]
CLASSES = tuple(f"class{k}" for k in range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PICTURES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--dense-of", type=Path, help=argparse.SUPPRESS)  # a folder: the fresh process of `memory`
    options = parser.parse_args()
    how = device.choose(options.precision, "cpu")
    if options.dense_of is not None:
        print(peak_of_dense(options.dense_of, how))
        return
    clock = process_time if options.cpu_time else perf_counter
    report_machine(how, options.repeats, "CPU time" if options.cpu_time else "wall time")
    with tempfile.TemporaryDirectory() as scratch:
        for part in [options.only] if options.only else PICTURES:
            {"alexnet": alexnet, "vgg_a": vgg_a, "memory": memory}[part](
                Path(scratch) / part, how, options.repeats, clock
            )


def alexnet(folder: Path, how: device.Device, repeats: int, clock: Clock) -> None:
    n = PICTURES["alexnet"]
    split, pre = photos(folder, n, TRAINED), preprocessing(np.full((TRAINED, TRAINED, 3), 117, np.float32))
    net = how.take(create_model("alexnet", init="fan-in", num_classes=1000, seed=0)).eval()
    single, ten = Look("single", TRAINED), Look("ten-crop", TRAINED)
    pictures = [at_scales(split.picture(i), TRAINED, [single]) for i in range(n)]
    images = (50 * torch.randn(n, 3, CROP, CROP)).contiguous(memory_format=how.memory_format)

    @torch.no_grad()
    def forward() -> None:
        with how.autocast():
            for first in range(0, n, BATCH):
                probabilities(net, images[first : first + BATCH], how)

    seconds = measure(
        {
            "forward, one view": forward,
            "compute, single": lambda: infer(net, pictures, [single], pre, how),
            "compute, ten-crop": lambda: infer(net, pictures, [ten], pre, how),
            "whole, single": lambda: TrainedNet(net, pre, CLASSES, how).evaluate(split),
            "whole, ten-crop": lambda: TrainedNet(net, pre, CLASSES, how).evaluate(split, views="ten-crop"),
        },
        repeats,
        clock,
    )
    report(f"AlexNet, {n} pictures", seconds, n)
    compute = seconds["compute, ten-crop"], seconds["compute, single"]
    ratio("ten-crop's compute / a single view's", *compute, 10.5)
    ratio(
        "ten-crop, whole / 10 forward passes",
        seconds["whole, ten-crop"],
        [10 * t for t in seconds["forward, one view"]],
        1.3,
    )


def vgg_a(folder: Path, how: device.Device, repeats: int, clock: Clock) -> None:
    n, scale = PICTURES["vgg_a"], 384
    split, pre = photos(folder, n, scale), preprocessing(np.full(3, 117, np.float32))
    net = how.take(create_model("vgg_a", init="glorot", seed=0)).eval()
    dense, crops = Look("dense", scale), Look("multi-crop", scale)
    frames = [split.picture(i) for i in range(n)]
    shapes = {"4:3": frames, "square": [np.ascontiguousarray(centre_square(frame, scale)) for frame in frames]}
    for shape, pixels in shapes.items():
        pictures = [{scale: each} for each in pixels]
        seconds = measure(
            {
                "compute, dense": lambda pictures=pictures: infer(net, pictures, [dense], pre, how),
                "compute, 50 crops": lambda pictures=pictures: infer(net, pictures, [crops], pre, how),
            },
            repeats,
            clock,
        )
        height, width = pixels[0].shape[:2]
        report(f"VGG-A at {scale}, {n} pictures {shape}: {width} x {height}", seconds, n)
        ratio("dense / 50 crops", seconds["compute, dense"], seconds["compute, 50 crops"], 0.2)


def memory(folder: Path, how: device.Device, repeats: int, _: Clock) -> None:
    split = photos(folder, PICTURES["memory"], 512)
    net = create_model("vgg_d", num_classes=len(CLASSES), init="glorot", seed=0)
    recipe = Recipe(name="vgg_d", net="vgg_d", size=TRAINED, crop=CROP)
    checkpoint.save(
        folder / "vgg_d.ckpt", Checkpoint(recipe, preprocessing(np.full(3, 117, np.float32)), CLASSES, net.state_dict())
    )
    precision = "bf16" if how.dtype == torch.bfloat16 else "fp32"
    command = [sys.executable, __file__, "--dense-of", str(folder), "--precision", precision]
    peaks = [
        int(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout) for _ in range(repeats)
    ]
    print(f"\nVGG-D dense at 512, {split.n} pictures 4:3: peak memory of a fresh process (VmHWM), goal < 4 GB")
    print(f"{'':28}{'GB':>12}{'lowest':>9}{'highest':>9}")
    gb = [peak * 1024 / 1e9 for peak in peaks]
    print(f"{'load, test':28}{statistics.median(gb):12.2f}{min(gb):9.2f}{max(gb):9.2f}")


def peak_of_dense(folder: Path, how: device.Device) -> int:
    """KiB: tests the checkpoint in `folder` as the command does."""
    TrainedNet.load(folder / "vgg_d.ckpt", how).evaluate(folder / "store", "train", views="dense", scales="512")
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0])


def photos(folder: Path, n: int, shorter_side: int) -> Split:
    """The training split of a jpeg store with n photos."""
    source = open_source(make_photos(folder / "photos", n), split=0)
    return prepare(source, folder / "store", size=TRAINED, shorter_side=shorter_side, encoding="jpeg").split("train")


def preprocessing(mean: np.ndarray) -> Preprocessing:
    return Preprocessing(TRAINED, 0, CROP, "rgb", mean, 1.0, 0.0)


def measure(ways: dict[str, Callable[[], object]], repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each, taking turns; the first turn warms up and doesn't count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(-1, repeats):
        for name, way in ways.items():
            began = clock()
            way()
            if repeat >= 0:
                seconds[name].append(clock() - began)
    return seconds


def report_machine(how: device.Device, repeats: int, what: str) -> None:
    versions = f"torch {torch.__version__}, Pillow {PIL.__version__}, numpy {np.__version__}"
    load = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{how.reason}; {load}; {what}, {repeats} repeats; batch {BATCH}")
    print(f"Python {platform.python_version()}, {versions}, {sys.platform}")


def report(title: str, seconds: dict[str, list[float]], n: int) -> None:
    print(f"\n{title}")
    print(f"{'':28}{'ms/picture':>12}{'lowest':>9}{'highest':>9}")
    for name, values in seconds.items():
        each = [1000 * value / n for value in values]
        print(f"{name:28}{statistics.median(each):12,.1f}{min(each):9,.1f}{max(each):9,.1f}")


def ratio(what: str, above: list[float], below: list[float], goal: float) -> None:
    turns = [a / b for a, b in zip(above, below, strict=True)]
    middle = statistics.median(above) / statistics.median(below)
    print(f"{what}: {middle:.3f}, goal {goal}; in single turns {min(turns):.3f} to {max(turns):.3f}")


if __name__ == "__main__":
    main()
