"""How near are the kernels in Triton to a copy, and how far ahead of the plain forms? On a CUDA device. Goals:

    norm_pool, forward and backward    >= 0.7 of the copy's bytes a second
    augmentation                       >= 0.7
    update                             >= 0.7, and at least as fast as torch's fused and foreach SGD

    python benchmarks/kernels.py [--batch 1024] [--repeats 20] [--only norm_pool]

Random bf16 data at AlexNet's sizes, in one process: the copy first, then each operation's fast and plain form in turns;
the median and the extremes are printed. Bytes are what must be read and written at least (the files' docstrings).
"""

import argparse
import itertools
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.kernels import ops
from convnet.kernels.conv1 import conv1, plain_conv1
from convnet.kernels.cuda import triton as cuda
from convnet.kernels.cuda.augment import augment, plain_augment
from convnet.kernels.cuda.update import plain_step, step
from convnet.kernels.dropout import plain_dropout
from convnet.kernels.plain import Block, plain_response_norm

PAPER = Block(5, 2.0, 1e-4, 0.75, size=3, stride=2, relu_before=True)
LAYERS = {"1": (96, 55), "2": (256, 27)}  # maps, side
PARAMETERS = 60_965_224
SIDE, CROP = 256, 224  # pixels, of stored pictures and of crops
GPU = torch.device("cuda")


class Case(NamedTuple):
    """An operation, the bytes that it must move, and its two forms."""

    name: str
    n_bytes: float
    fast: Callable[[], object]
    plain: Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", default="", help="operations whose names begin so")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return
    if cuda.triton is None:
        print("Triton is not installed")
        return
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, Triton {cuda.triton.__version__}, Python {platform.python_version()}")
    copy = copy_rate(options.repeats)
    print(f"copy: {copy / 1e12:.2f} TB/s; batch {options.batch}, medians of {options.repeats}\n")
    print(f"{'':24}{'fast, ms':>22}{'of a copy':>12}{'plain, ms':>22}{'times':>8}")
    for case in cases(options.batch):
        if not case.name.startswith(options.only):
            continue
        fast, plain = times(case.fast, options.repeats), times(case.plain, options.repeats)
        share = case.n_bytes / statistics.median(fast) / copy
        ratio = statistics.median(plain) / statistics.median(fast)
        print(f"{case.name:24}{spread(fast):>22}{share:12.2f}{spread(plain):>22}{ratio:8.2f}")


def copy_rate(repeats: int) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB."""
    data = torch.randn(2**29, device=GPU, dtype=torch.bfloat16)
    target = torch.empty_like(data)
    return 2 * data.nbytes / statistics.median(times(lambda: target.copy_(data), repeats))


def times(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds on the device of each call, after three for warming up."""
    for _ in range(3):
        function()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for mark in marks[:-1]:
        mark.record()
        function()
    marks[-1].record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) / 1e3 for first, second in itertools.pairwise(marks)]


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.3f} ({min(seconds) * 1e3:.3f}, {max(seconds) * 1e3:.3f})"


def cases(batch: int) -> Iterator[Case]:
    """Each is made when it is asked for, and gone before the next."""
    for layer, (maps, side) in LAYERS.items():
        yield from norms(layer, batch, maps, side)
    yield from augmentations(batch)
    yield from first_layers(batch)
    yield from dropouts(batch)
    yield from updates()


def norms(layer: str, batch: int, maps: int, side: int) -> Iterator[Case]:
    x = randn(batch, maps, side, side).to(memory_format=torch.channels_last).requires_grad_()
    n_pooled = batch * maps * (side // 2) ** 2

    def plain_block(x: Tensor) -> Tensor:
        return F.max_pool2d(plain_response_norm(F.relu(x)), 3, 2)

    fast, plain = ops.norm_pool(x, PAPER), plain_block(x)
    g = torch.randn_like(fast)
    n_forward, n_backward = 2 * x.numel() + 3 * n_pooled, 4 * x.numel() + 3 * n_pooled
    forward = (lambda: ops.norm_pool(x, PAPER)), (lambda: plain_block(x))
    yield Case(f"norm_pool {layer}, forward", n_forward, *forward)
    yield Case(f"norm_pool {layer}, backward", n_backward, backward(fast, x, g), backward(plain, x, g))
    released = replace(PAPER, groups=2, relu_before=False, relu_after=True)
    columns = (lambda: ops.norm_pool(x, released)), (lambda: plain_block(x))
    yield Case(f"norm_pool {layer}, released", n_forward, *columns)

    fast, plain = ops.response_norm(x), plain_response_norm(x)
    g = torch.randn_like(fast)
    yield Case(f"norm {layer}, forward", 4 * x.numel(), lambda: ops.response_norm(x), lambda: plain_response_norm(x))
    yield Case(f"norm {layer}, backward", 6 * x.numel(), backward(fast, x, g), backward(plain, x, g))


def augmentations(batch: int) -> Iterator[Case]:
    pictures = torch.randint(0, 256, (4 * batch, SIDE, SIDE, 3), dtype=torch.uint8, device=GPU)
    packed = torch.randint(0, 256, (4 * batch, SIDE * SIDE * 3 // 2), dtype=torch.uint8, device=GPU)
    rows = torch.randint(0, 4 * batch, (batch,), device=GPU)
    corners = torch.randint(0, SIDE - CROP + 1, (batch, 2), device=GPU)
    mirrored, colour = torch.rand(batch, device=GPU) < 0.5, torch.randn(batch, 3, device=GPU)
    how = (rows, corners, mirrored, colour, torch.rand(SIDE, SIDE, 3, device=GPU) * 255)
    for name, source in (("", pictures), (", 4:2:0", packed)):

        def run(form: Callable[..., Tensor], source: Tensor = source) -> Callable[[], Tensor]:
            return lambda: form(source, *how, crop=CROP, dtype=torch.bfloat16)

        n_read = CROP**2 * 3 // (2 if source is packed else 1)
        n_bytes = batch * (n_read + 3 * 2 * CROP**2)
        yield Case(f"augmentation{name}", n_bytes, run(augment), run(plain_augment))


def first_layers(batch: int) -> Iterator[Case]:
    """Bytes: pictures and maps; it's arithmetic that takes the time."""
    images = randn(batch, 3, CROP, CROP).to(memory_format=torch.channels_last)
    weight, bias = randn(96, 3, 11, 11).requires_grad_(), randn(96).requires_grad_()

    def form(function: Callable[..., Tensor]) -> Callable[[], object]:
        def both_ways() -> object:
            y = function(images, weight, bias)
            return torch.autograd.grad(y, (weight, bias), y.detach())

        return both_ways

    n_bytes = 2 * images.nbytes + 2 * 2 * batch * 96 * (CROP // 4 - 1) ** 2
    yield Case("conv1 by blocks", n_bytes, form(conv1), form(plain_conv1))


def dropouts(batch: int) -> Iterator[Case]:
    x, state = randn(batch, 9216), torch.ones((), dtype=torch.int64, device=GPU)
    yield Case("dropout", 2 * x.nbytes, lambda: ops.dropout(x, 0.5, state), lambda: plain_dropout(x, 0.5, state))
    yield Case("dropout, torch's", 2 * x.nbytes, lambda: ops.dropout(x, 0.5, state), lambda: F.dropout(x, 0.5, True))


def updates() -> Iterator[Case]:
    """Against the plain form, and against torch's fused and foreach SGD in float32, which write no copy. AlexNet's
    parameters as one."""
    weights, velocity = (torch.randn(PARAMETERS, device=GPU) for _ in range(2))
    gradient, copy, lr = randn(PARAMETERS), randn(PARAMETERS), torch.tensor(1e-6, device=GPU)
    other = torch.randn(PARAMETERS, device=GPU, requires_grad=True)
    other.grad = torch.randn_like(other)
    buffers = (weights, velocity, gradient, copy, lr)

    def run(form: Callable[..., None]) -> Callable[[], None]:
        return lambda: form(*buffers)

    yield Case("update", 20 * PARAMETERS, run(step), run(plain_step))
    for kind in ("fused", "foreach"):
        torchs = torch.optim.SGD([other], 1e-6, momentum=0.9, weight_decay=0.0005, **{kind: True})
        yield Case(f"update, torch's {kind} SGD", 20 * PARAMETERS, run(step), torchs.step)


def backward(y: Tensor, x: Tensor, g: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(y, x, g, retain_graph=True)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, device=GPU, dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
