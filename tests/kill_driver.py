"""Trains in forked children and kills them: run through forked.py (forks need a young process).

`main` prints JSON: the kills that hit a living run, and the folders whose result differs from the undisturbed run's.
"""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from convnet import results
from convnet.cli import app  # noqa: F401 - what the command loads: once, and not in each child
from convnet.data.store import Store
from convnet.recipe import load_recipe, with_settings
from convnet.results import shown, table  # noqa: F401
from convnet.training.train import train
from forked import command

SAME = ("last.ckpt", "best.ckpt", "metrics.jsonl", "metrics.csv")  # everything but times


def main(*arguments: str) -> None:
    """Of a store, in a folder or behind a URL: what is killed how often, by which seed, in which folder."""
    store, folder, (kills, seed) = arguments[0], Path(arguments[1]), map(int, arguments[2:])
    generator = np.random.default_rng(seed)
    began = time.monotonic()
    assert wait(start(store, folder / "undisturbed"))
    seconds = time.monotonic() - began
    hits, places, different, number = 0, [], [], 0
    while hits < kills:
        number += 1
        out = folder / f"run{number}"
        finished = False
        while not finished:
            child = start(store, out)
            if hits < kills:
                time.sleep(generator.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            finished = wait(child)
            if not finished:
                hits += 1
                places.append((out / "last.ckpt").exists())
        names = [n for n in SAME if (out / n).read_bytes() != (folder / "undisturbed" / n).read_bytes()]
        different += [f"{out.name}/{name}" for name in names]
    print(json.dumps({"kills": hits, "after_the_first_save": sum(places), "runs": number, "different": different}))


def reproduces(store: str, out: str, moment: str) -> None:
    """`convnet reproduce` of a small experiment on digits, in `out`; killed before the file `moment` gets its name."""
    settings = ("epochs=1", "batch=64", "lr_steps=[]")
    arms = (results.Arm("a", "lenet5_small", settings=settings),
            results.Arm("b", "lenet5_small", settings=settings, begins="a"))  # fmt: skip
    experiment = results.Experiment("scikit-learn", "That it goes on.", results.ERROR, "difference", (0, 1), arms,
                                    fused={"all": ("a", "b")})  # fmt: skip
    small = results.Result("small", "nobody 2026", "nowhere", "Nothing.", (("it", "1 %"),), (), (experiment,))
    results.published = lambda: {"small": small}  # type: ignore[assignment]
    replace = os.replace

    def killing(old: str, new: str) -> None:
        if str(new) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    os.replace = killing  # type: ignore[assignment]
    command("reproduce", "small", "--data", store, "--out", out, "--quiet")


def start(store: str, out: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        recipe = with_settings(load_recipe("lenet5_small"), ["epochs=2", "batch=16", "save_minutes=0.001"])
        train(recipe, Store(store), out, resume=(out / "last.ckpt").exists())
        os._exit(0)
    finally:
        os._exit(1)


def wait(child: int) -> bool:
    """True when the child ended well, False when it was killed."""
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a run failed"
    return not os.WIFSIGNALED(status)
