"""Trains LeNet-5 with dropout and random crops, alone or as one of several processes.

    python process_driver.py STORE OUT RECIPE_FIELD ...
    python -m torch.distributed.run --standalone --nproc-per-node N process_driver.py STORE OUT RECIPE_FIELD ...

Each process writes the pictures of its steps to OUT.RANK.json. With a field `lose=STEP` the last process is killed
there; of several fields the second counts after the first loss, and so on. With `hang=STEP` it stops answering.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from convnet.data.loader import Batch
from convnet.io.processes import joined
from convnet.nets import MODELS
from convnet.nets.dropout import dropout
from convnet.nets.lenet5 import LeNet5
from convnet.recipe import load_recipe, with_settings
from convnet.training.step import EagerSteps
from convnet.training.train import train


class Dropped(LeNet5):
    """LeNet-5 with dropout of its input: a step then depends on which picture lies where in a batch."""

    name = "lenet5_dropped"

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        return super().forward(dropout(images, 0.2, self.training), stages)


def main(store: str, out: str, *fields: str) -> None:
    torch.set_num_threads(1)
    MODELS[Dropped.name] = Dropped
    lost = [int(field.removeprefix("lose=")) for field in fields if field.startswith("lose=")]
    hangs = [int(field.removeprefix("hang=")) for field in fields if field.startswith("hang=")]
    settings = [f"net={Dropped.name}", *(field for field in fields if not field.startswith(("lose=", "hang=")))]
    steps: list[tuple[int, list[int], list[int]]] = []
    forward_backward = EagerSteps.forward_backward
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

    def watched(self: EagerSteps, batch: Batch, number: int, *more: object) -> None:
        own = slice(batch.first, batch.first + len(batch.images))
        steps.append((number, batch.ids.tolist(), batch.ids[own].tolist()))
        if lost[restarted : restarted + 1] == [number] and self.processes.rank == self.processes.n - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number in hangs and self.processes.rank == self.processes.n - 1:
            time.sleep(3600)
        forward_backward(self, batch, number, *more)  # type: ignore[arg-type]

    EagerSteps.forward_backward = watched  # type: ignore[assignment,method-assign]
    with joined() as processes:
        resume = bool(restarted) and (Path(out) / "last.ckpt").exists()
        train(with_settings(load_recipe("lenet5_small"), settings), store, out, resume=resume, processes=processes)
        Path(f"{out}.{processes.rank}.json").write_text(json.dumps(steps), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
