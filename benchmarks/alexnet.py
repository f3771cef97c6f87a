"""How fast does AlexNet train and answer, against plain PyTorch and against this machine's own matrix products?

    python benchmarks/alexnet.py [--batch 64] [--repeats 5]

One run, on the CPU, random pictures that are in memory: a whole training step (forward, loss, backward, update), and a
forward pass in eval mode. plain: fp32, NCHW, nn.LocalResponseNorm, groups=2, eager, torch.optim.SGD. without norms:
ours with the response norms left out. The ceiling is a bf16 product of 4096 x 4096 matrices.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet import device
from convnet.benchmark.plain import plain_alexnet
from convnet.kernels import compiled
from convnet.nets import create_model
from convnet.optim import optimizer
from convnet.recipe import load_recipe

GMAC = 0.724  # of a forward pass; a training step has three times as many
SIDE = 4096  # of the matrices


def plain(images: Tensor, labels: Tensor, repeats: int) -> tuple[list[float], list[float]]:
    net = plain_alexnet()
    rule = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=0.0005)

    def step() -> None:
        rule.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        loss.item()
        rule.step()

    return timed(step, repeats), timed_forward(net, images, repeats, torch.float32)


def ours(name: str, images: Tensor, labels: Tensor, repeats: int) -> tuple[list[float], list[float]]:
    where = device.choose("auto", "cpu")
    net = where.take(create_model(name, init="fan-in", seed=0)).train()
    rule = optimizer(net, load_recipe("alexnet"))
    images = images.to(memory_format=where.memory_format)

    def step() -> None:
        with where.autocast():
            loss = F.cross_entropy(net(images).float(), labels)
        rule.zero_grad()
        loss.backward()
        loss.item()
        rule.step(0.01)

    return timed(step, repeats), timed_forward(net, images, repeats, where.dtype)


def timed_forward(net: nn.Module, images: Tensor, repeats: int, dtype: torch.dtype) -> list[float]:
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return timed(lambda: net(images), repeats)


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repetition, after two that don't count."""
    seconds = []
    for i in range(repeats + 2):
        began = time.perf_counter()
        work()
        if i >= 2:
            seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"Python {platform.python_version()}; {device.choose('auto', 'cpu').reason}; {compiled.state()}")
    print(f"batch {given.batch}, medians of {given.repeats} (least and most); python {' '.join(sys.argv)}")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(given.batch, 3, 224, 224, generator=generator) * 60
    labels = torch.randint(0, 1000, (given.batch,), generator=generator)
    device.keep_memory()
    a, b = (torch.randn(SIDE, SIDE, generator=generator).bfloat16() for _ in range(2))
    ceiling = 2 * SIDE**3 / statistics.median(timed(lambda: a @ b, given.repeats))
    forms = {
        "plain PyTorch": plain(images, labels, given.repeats),
        "convnet": ours("alexnet", images, labels, given.repeats),
        "convnet without norms": ours("alexnet_no_lrn", images, labels, given.repeats),
    }
    base = [statistics.median(seconds) for seconds in forms["plain PyTorch"]]
    print(f"ceiling: {ceiling / 1e9:,.0f} GFLOP/s in bf16 products of {SIDE} x {SIDE}")
    print(f"{'':24}{'pictures/s':>22}{'times plain':>13}{'share of ceiling':>18}")
    for name, both in forms.items():
        for what, seconds, passes, first in zip(("training", "forward"), both, (3, 1), base, strict=True):
            rates = [given.batch / s for s in (statistics.median(seconds), max(seconds), min(seconds))]
            share = rates[0] * passes * GMAC * 2e9 / ceiling
            text = f"{rates[0]:,.0f} ({rates[1]:,.0f}, {rates[2]:,.0f})"
            ratio = first / statistics.median(seconds)
            print(f"{f'{name}, {what}':32}{text:>14}{ratio:>13.2f}{share:>18.2f}")


if __name__ == "__main__":
    main()
