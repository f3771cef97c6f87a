"""How much slower is a training beside other work? The command itself, by turns on the machine as it is and with loops.

    python benchmarks/busy.py [--loops 2] [--repeats 5] [--epochs 30] [--what digits,alexnet] [--spin]

digits: the README's main command (LeNet-5; 30 epochs are the recipe's). alexnet: an epoch on 96 random pictures of
256 x 256, batch 32; cifar: two epochs of the 26 % net on 5,120 of 32 x 32. Each turn runs the command with nothing
beside it that this program started, then beside as many busy loops as --loops says (0: none). --spin: also with torch's
own way of waiting and a thread for each processor, as it would be without a choice; beside loops that takes very long.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from convnet import hardware
from convnet.benchmark.loader import random_pictures
from convnet.data.prepare import prepare
from convnet.threads import VARIABLE, WAITING

DATA = {"alexnet": (256, 96), "cifar": (32, 5120)}  # side and number of the random pictures
RECIPES = {
    "alexnet": ["--recipe", "alexnet_small", "--epochs", "1"],
    "cifar": ["--recipe", "cifar_26", "--epochs", "2"],
}
SPIN = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}  # what GNU's and Intel's libraries do when nothing is set


@contextmanager
def loops(n: int) -> Iterator[None]:
    """n processes that want a processor each, all the time."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def train(arguments: list[str], spin: bool) -> dict[str, float]:
    """Seconds of the whole command and of its steps, in a folder of its own."""
    chosen = {name: text for name, text in os.environ.items() if name not in (*WAITING, VARIABLE, "OMP_NUM_THREADS")}
    if spin:
        chosen |= SPIN | {VARIABLE: str(hardware.cores().n)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "convnet", "train", *arguments, "--out", str(out), "--quiet"]
        began = time.perf_counter()
        subprocess.run(command, check=True, env=chosen, stdout=subprocess.DEVNULL, cwd=folder)
        whole = time.perf_counter() - began
        rows = (out / "timing.jsonl").read_text(encoding="utf-8").splitlines()
        return {"whole command": whole, "steps": sum(json.loads(row)["seconds"] for row in rows)}


def told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--what", default="digits,alexnet")
    parser.add_argument("--spin", action="store_true")
    given = parser.parse_args()
    print(f"{hardware.processor().name}, {hardware.cores().n} processors, load {hardware.load() or 0:.1f} before; "
          f"Python {platform.python_version()}, torch {torch.__version__}; python {' '.join(sys.argv)}")  # fmt: skip
    for name in given.what.split(","):
        with tempfile.TemporaryDirectory() as place:
            arguments = ["--epochs", str(given.epochs)]
            if name != "digits":
                side, n = DATA[name]
                store = prepare(random_pictures(side, n), Path(place) / "store", size=side)
                arguments = [str(store.path), *RECIPES[name]]
            measure(name, arguments, given.loops, given.repeats, [False, True] if given.spin else [False])


def measure(name: str, arguments: list[str], n_loops: int, repeats: int, forms: list[bool]) -> None:
    """Prints medians (least and most) of the turns, and busy / quiet of the medians and of single turns."""
    turns: dict[tuple[bool, int], list[dict[str, float]]] = {(form, n): [] for form in forms for n in (0, n_loops)}
    for _ in range(repeats):
        for (form, n), found in turns.items():
            with loops(n):
                found.append(train(arguments, form))
    for form in forms:
        for part in ("whole command", "steps"):
            quiet, busy = ([turn[part] for turn in turns[form, n]] for n in (0, n_loops))
            text = f"{name}, {'spinning, ' if form else ''}{part}: quiet {told(quiet)}"
            if n_loops:
                ratios = [b / q for q, b in zip(quiet, busy, strict=True)]
                middle = statistics.median(busy) / statistics.median(quiet)
                text += f", beside {n_loops} loops {told(busy)}: {middle:.2f} times"
                text += f" ({min(ratios):.2f} to {max(ratios):.2f})"
            print(text, flush=True)


if __name__ == "__main__":
    main()
