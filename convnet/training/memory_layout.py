"""In which memory layout does a training compute: channels-last, or NCHW, PyTorch's own?

The kernels in C want channels-last, and with them no net was clearly faster in NCHW (docs/speed.md). Without a
compiler oneDNN computes every convolution in float32, and its gradients of kernels can take longer channels-last than
all else gains: on AVX2 VGG-A then trains at 0.8 of NCHW's rate, GoogLeNet at 1.1. So there it is measured: once for
net, batch and machine, in seconds, and kept in the user's cache. CONVNET_LAYOUT says it otherwise.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import process_time

import torch

from convnet import __version__, hardware
from convnet.device import Device
from convnet.errors import DiskError, UsageError, unknown
from convnet.io import atomic, strict_json
from convnet.io.cache import own_folder
from convnet.io.strict_json import Json
from convnet.kernels.cpu import compiled
from convnet.nets.describe import summary
from convnet.nets.layers import Net
from convnet.recipe import Recipe
from convnet.training.micro_batch import training
from convnet.training.step import EagerSteps

VARIABLE, AUTO = "CONVNET_LAYOUT", "auto"
CHANNELS_LAST, CONTIGUOUS = "channels_last", "contiguous"  # torch's words
FORMATS = {CHANNELS_LAST: torch.channels_last, CONTIGUOUS: torch.contiguous_format}
TITLES = {CHANNELS_LAST: "channels-last", CONTIGUOUS: "NCHW"}
CLEARLY = 1.05  # times channels-last's rate, from which on NCHW is taken: a busy machine's noise is as large
WORTH = 10**9  # multiply-adds of a batch's forward pass: below, measuring takes longer than many steps
AT_ONCE = 2 * 10**9  # multiply-adds of the forward pass of the pictures that are measured with
TURNS, SECONDS = 7, 3.0  # at most, of each layout; of processor time, after which no further turn begins
PIXEL_STD = 60.0  # grey levels: about that of photos
MATTERS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")  # variables that change the arithmetic


@dataclass(frozen=True)
class Layout:
    """name: one of `FORMATS`; reason: why, in words."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{TITLES[self.name]} ({self.reason})"

    def of(self, device: Device) -> Device:
        """The device, computing in this layout."""
        return replace(device, memory_format=FORMATS[self.name])


def choose(net: Net, recipe: Recipe, device: Device, recorded: object = None, n_processes: int = 1) -> Layout:
    """The layout of a training; `net`, on the CPU, is measured where need be, and stays as it is.

    recorded: that of the run that goes on, whose numbers depend on it.

    Raises: UsageError when CONVNET_LAYOUT is no layout, or not one of the device.
    """
    if (layout := known(device, recorded)) is not None:
        return layout
    if n_processes > 1:
        return Layout(CHANNELS_LAST, "of several processes")
    one = summary(recipe.net)["multiply_adds"]
    if one * recipe.batch < WORTH:
        return Layout(CHANNELS_LAST, "it isn't measured for so small a net")
    n = max(1, min(recipe.batch, AT_ONCE // one))
    path = _kept_at(net, recipe, n)
    seconds = _kept(path)
    if seconds is None:
        seconds = measured(net, recipe, device, n)
        _keep(path, seconds)
    ratio = seconds[CHANNELS_LAST] / seconds[CONTIGUOUS]
    text = f"NCHW has {ratio:.2f} times the rate of channels-last, measured on {n} picture{'s' * (n > 1)}"
    return Layout(CONTIGUOUS if ratio > CLEARLY else CHANNELS_LAST, text)


def known(device: Device, recorded: object = None) -> Layout | None:
    """The layout, where none needs to be measured; else None. Raises: UsageError, as `choose` does."""
    on_cpu, name = device.device.type == "cpu", os.environ.get(VARIABLE) or AUTO
    if name not in (AUTO, *FORMATS):
        raise UsageError(unknown(VARIABLE, name, [AUTO, *FORMATS]))
    if name == CONTIGUOUS and not on_cpu:
        raise UsageError(f"{VARIABLE}={name} is for the CPU; {device.device} computes channels-last")
    if name != AUTO:
        return Layout(name, f"by {VARIABLE}")
    if not on_cpu or device.dtype != torch.float32:
        return Layout(CHANNELS_LAST, "always, but for the CPU in fp32")
    if isinstance(recorded, str) and recorded in FORMATS:
        return Layout(recorded, "as the run began")
    if compiled.available():
        return Layout(CHANNELS_LAST, "as the kernels in C want it")
    return None


def measured(net: Net, recipe: Recipe, device: Device, n: int, clock: Callable[[], float] = process_time) -> Json:
    """{layout: seconds of processor time} of the gradients of n random pictures: the least of some turns. Every
    other turn begins with the other layout; the first of each doesn't count."""
    step = EagerSteps(net, replace(recipe, average=0.0), device)
    step.micro_batch = n
    shape = (n, 1 if recipe.channels == "grey" else 3, recipe.crop, recipe.crop)
    pictures = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * PIXEL_STD * recipe.scale
    labels = torch.zeros(n, dtype=torch.int64)
    turns: dict[str, list[float]] = {name: [] for name in FORMATS}
    began = clock()
    with training(net):
        for turn in range(1 + TURNS):
            for name in list(FORMATS)[:: 1 if turn % 2 else -1]:
                step.device = Layout(name, "").of(device)
                step.device.take(net)
                images = pictures.contiguous(memory_format=FORMATS[name])
                start = clock()
                step.gradients(images, labels, 0)
                turns[name].append(clock() - start)
            if turn and clock() - began > SECONDS:
                break
    step.rule.zero_grad()
    return {name: min(seconds[1:]) for name, seconds in turns.items()}


def _kept_at(net: Net, recipe: Recipe, n: int) -> Path | None:
    """The file of the user's cache for what the measure depends on; None where there is no cache."""
    folder = own_folder()[0]
    depends: Json = {
        "versions": [__version__, str(torch.__version__)],
        "net": [recipe.net, dict(recipe.net_options), net.num_classes, recipe.channels, recipe.crop, recipe.batch, n],
        "processor": asdict(hardware.processor()),
        "threads": torch.get_num_threads(),
        "variables": {name: os.environ.get(name, "") for name in MATTERS},
    }
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]
    return None if folder is None else folder / f"layout-{digest}.json"


def _kept(path: Path | None) -> Json | None:
    """The seconds of a file; None where there is none, or none that is whole."""
    if path is None:
        return None
    with suppress(OSError, ValueError):
        seconds = strict_json.unseal(path.read_bytes())
        if all(isinstance(seconds.get(name), float) and seconds[name] > 0 for name in FORMATS):
            return seconds
    return None


def _keep(path: Path | None, seconds: Json) -> None:
    if path is not None:
        with suppress(DiskError):  # then the next run measures again
            atomic.write_atomic(path, strict_json.seal(seconds))
