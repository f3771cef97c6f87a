"""Trains LeNet-5 with dropout and random crops, or a small net in columns, alone or as one of several processes.

    python process_driver.py STORE OUT RECIPE_FIELD ...
    python -m torch.distributed.run --standalone --nproc-per-node N process_driver.py STORE OUT RECIPE_FIELD ...

Each process writes the pictures of its steps to OUT.RANK.json. With a field `lose=STEP` the last process is killed
there; of several fields the second counts after the first loss, and so on. With `hang=STEP` it stops answering, with
`stop=STEP` all are asked to end after it. `resume` goes on with a run; `columns` gives each process one column,
`fully-connected` its units of the layers at the end.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from convnet.data.loader import Batch
from convnet.errors import Interrupted
from convnet.io.processes import joined
from convnet.io.signals import Stop
from convnet.nets import MODELS
from convnet.nets.alexnet import AlexNet
from convnet.nets.convolutions import StridedConv2d, convolution
from convnet.nets.dropout import dropout
from convnet.nets.initial import gaussian, he_std
from convnet.nets.layers import Net
from convnet.nets.lenet5 import LeNet5
from convnet.recipe import load_recipe, with_settings
from convnet.training.step import EagerSteps
from convnet.training.train import train

LAYOUTS = ("columns", "fully-connected")


class Dropped(LeNet5):
    """LeNet-5 with dropout of its input: a step then depends on which picture lies where in a batch."""

    name = "lenet5_dropped"

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        return super().forward(dropout(images, 0.2, self.training), stages)


class Small(AlexNet):
    """AlexNet's layers with few maps, for grey pictures of 32 x 32."""

    name = "small_columns"
    in_channels, input_size, sides, num_classes = 1, 32, range(32, 33), 10

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        Net.__init__(self, num_classes, in_channels, 0.5)
        self.conv1 = StridedConv2d(in_channels, 8, 3, stride=1)
        self.conv2 = convolution(self.columns, 8, 16, 5, padding=2)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv4 = convolution(self.columns, 16, 16, 3, padding=1)
        self.conv5 = convolution(self.columns, 16, 8, 3, padding=1)
        self.fc6, self.fc7, self.fc8 = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, num_classes)
        self.add_functions()

    def sample_weights(self, init: str, generator: torch.Generator) -> None:
        gaussian(self, generator, he_std(self))  # with which so small a net learns at once


def split(fields: Sequence[str]) -> tuple[dict[str, list[int]], list[str]]:
    """What is said of steps, by its name, and the fields of the recipe."""
    steps: dict[str, list[int]] = {"lose": [], "hang": [], "stop": []}
    others = []
    for field in fields:
        name, _, number = field.partition("=")
        if name in steps:
            steps[name].append(int(number))
        else:
            others.append(field)
    return steps, others


def agent(n: str, restarts: str, *arguments: str) -> None:
    """`main` in n processes that torch's agent starts, and starts anew when one is lost."""
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=int(n), run_id="tests", rdzv_backend="c10d",
                          rdzv_endpoint="localhost:0", max_restarts=int(restarts), monitor_interval=0.1,
                          start_method="fork")  # fmt: skip
    elastic_launch(config, main)(*arguments)


def main(store: str, out: str, *fields: str) -> None:
    torch.set_num_threads(1)
    MODELS.update({net.name: net for net in (Dropped, Small)})
    at, others = split(fields)
    settings = [f"net={Dropped.name}", *(field for field in others if field not in ("resume", *LAYOUTS))]
    stop = Stop()
    steps: list[tuple[int, list[int], list[int]]] = []
    forward_backward = EagerSteps.forward_backward
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

    def watched(self: EagerSteps, batch: Batch, number: int, *more: object) -> None:
        own = slice(batch.first, batch.first + len(batch.images))
        steps.append((number, batch.ids.tolist(), batch.ids[own].tolist()))
        if number in at["stop"]:
            stop.ask(signal.SIGTERM)
        if at["lose"][restarted : restarted + 1] == [number] and self.processes.rank == self.processes.n - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number in at["hang"] and self.processes.rank == self.processes.n - 1:
            time.sleep(3600)
        forward_backward(self, batch, number, *more)  # type: ignore[arg-type]

    EagerSteps.forward_backward = watched  # type: ignore[assignment,method-assign]
    with joined() as processes:
        resume = "resume" in fields or (bool(restarted) and (Path(out) / "last.ckpt").exists())
        with suppress(Interrupted):
            train(with_settings(load_recipe("lenet5_small"), settings), store, out, resume=resume, processes=processes,
                  stop=stop if at["stop"] else None,
                  parallel=next((each for each in LAYOUTS if each in fields), "data"))  # fmt: skip
        Path(f"{out}.{processes.rank}.json").write_text(json.dumps(steps), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
