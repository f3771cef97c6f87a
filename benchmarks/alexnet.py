"""How fast does AlexNet train and answer, against plain PyTorch and against this machine's own matrix products?

    python benchmarks/alexnet.py [--batch 64] [--repeats 5]

One run, on the CPU, by turns, random pictures that are in memory: a whole training step (forward, loss, backward,
update), and a forward pass in eval mode. plain: fp32, NCHW, nn.LocalResponseNorm, groups=2, eager, torch.optim.SGD.
without norms: ours with the response norms left out. The ceiling is a bf16 product of 4096 x 4096 matrices.
"""

import argparse
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet import device
from convnet.benchmark.plain import plain_alexnet
from convnet.kernels.cpu import compiled
from convnet.nets import create_model
from convnet.recipe import load_recipe
from convnet.training.step import EagerSteps

GMAC = 0.724  # of a forward pass; a training step has three times as many
SIDE = 4096  # of the matrices


Job = Callable[[], object]


def plain(images: Tensor, labels: Tensor) -> tuple[Job, Job]:
    """A training step and a forward pass."""
    net = plain_alexnet()
    rule = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=0.0005)

    def step() -> None:
        net.train()
        rule.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        loss.item()
        rule.step()

    def forward() -> None:
        with torch.inference_mode():
            net.eval()(images)

    return step, forward


def ours(name: str, images: Tensor, labels: Tensor) -> tuple[Job, Job]:
    """As `convnet train` and `convnet evaluate --precision bf16` do it, on ready batches in the loader's layout."""
    where = device.choose("auto", "cpu")
    net = where.take(create_model(name, init="fan-in", seed=0))
    step = EagerSteps(net, load_recipe("alexnet"), where)
    images = images.to(step.input_dtype, memory_format=where.memory_format)
    number = itertools.count()

    def update() -> None:
        step.net.train()
        loss, _ = step.gradients(images, labels, next(number))
        loss.item()
        step.rule.step(0.01)

    def forward() -> None:
        with torch.inference_mode(), where.autocast():
            step.net.eval()(images)

    return update, forward


def seconds_of(jobs: dict[str, Job], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repetition, by turns, after one turn that doesn't count."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            job()  # the caches are its own
            began = time.perf_counter()
            job()
            if turn:
                found[name].append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"Python {platform.python_version()}; {device.choose('auto', 'cpu').reason}; {compiled.state()}")
    print(f"batch {given.batch}, medians of {given.repeats} turns (least and most); python {' '.join(sys.argv)}")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(given.batch, 3, 224, 224, generator=generator) * 60
    labels = torch.randint(0, 1000, (given.batch,), generator=generator)
    device.keep_memory()
    a, b = (torch.randn(SIDE, SIDE, generator=generator).bfloat16() for _ in range(2))
    jobs: dict[str, Job] = {"ceiling": lambda: a @ b}
    jobs["plain PyTorch, training"], jobs["plain PyTorch, forward"] = plain(images, labels)
    for name, net in (("convnet", "alexnet"), ("convnet without norms", "alexnet_no_lrn")):
        jobs[f"{name}, training"], jobs[f"{name}, forward"] = ours(net, images, labels)
    found = seconds_of(jobs, given.repeats)
    ceiling = 2 * SIDE**3 / statistics.median(found.pop("ceiling"))
    print(f"ceiling: {ceiling / 1e9:,.0f} GFLOP/s in bf16 products of {SIDE} x {SIDE}")
    print(f"{'':34}{'pictures/s':>20}{'times plain':>13}{'share of ceiling':>18}")
    for name, seconds in found.items():
        passes, kind = (3, "training") if name.endswith("training") else (1, "forward")
        base = statistics.median(found[f"plain PyTorch, {kind}"])
        rates = [given.batch / s for s in (statistics.median(seconds), max(seconds), min(seconds))]
        share = rates[0] * passes * GMAC * 2e9 / ceiling
        text = f"{rates[0]:,.0f} ({rates[1]:,.0f}, {rates[2]:,.0f})"
        print(f"{name:34}{text:>20}{base / statistics.median(seconds):>13.2f}{share:>18.2f}")


if __name__ == "__main__":
    main()
