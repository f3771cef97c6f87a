"""Runs the experiment behind a published result on the data at hand: every net an ordinary run, all of it resumable.

The folder has a run for each net (runs/ARM/seed-N, of rates that are tried runs/ARM/lr-RATE), plan.json, which makes
the same command go on where it was, and at the end results.json, results.csv, figure.png and page.html.
"""

import csv
import io
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from convnet.data.loader import Batch
from convnet.data.prepare import holds, prepare, settings_for
from convnet.data.sources import Source
from convnet.data.store import Store, is_store
from convnet.device import choose
from convnet.errors import DataError, Diverged, UsageError
from convnet.evaluation.metrics import Z, interval
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic, strict_json
from convnet.io.signals import Stop
from convnet.io.strict_json import Json
from convnet.progress import SILENT, Progress
from convnet.recipe import Recipe, from_dict, to_dict
from convnet.results import EPOCHS, Arm, Experiment, Result
from convnet.training import metrics_log
from convnet.training.run import METRICS, fresh_net, picture_shape
from convnet.training.series import has_begun, has_ended
from convnet.training.step import EagerSteps
from convnet.training.train import train
from convnet.visualize import plot
from convnet.visualize.curves import curves, draw_curves

PLAN, TARGET = "plan.json", 0.25  # the training error of figure 1
TIMED = 3  # steps by which the time of a net is estimated


@dataclass(frozen=True)
class Plan:
    """recipes: {arm: its recipe, with the epochs that there is time for}."""

    result: Result
    experiment: Experiment
    seeds: tuple[int, ...]
    recipes: dict[str, Recipe]
    shortened: float = 1.0  # share of the recipes' epochs

    def n_runs(self) -> int:
        return sum(len(self.seeds) + max(0, len(arm.lr) - 1) for arm in self.experiment.arms)


@dataclass(frozen=True)
class Measured:
    """What an arm's nets gave: a value for each seed (None: the target was not reached), and which pictures were wrong.

    wrong: bool (seeds, n), of the test pictures; None where epochs were counted. lr: the rate that was chosen.
    """

    arm: str
    lr: float
    values: tuple[float | None, ...]
    wrong: NDArray[np.bool_] | None = None

    @property
    def mean(self) -> float | None:
        known = [value for value in self.values if value is not None]
        return statistics.fmean(known) if len(known) == len(self.values) else None


def plan(result: Result, source: Source, seeds: Sequence[int] | None, budget: float | None) -> tuple[Plan, float]:
    """What would be run on a source, and the hours that this machine takes for it, by a few steps of each net.

    budget: hours; the epochs of all recipes are shortened alike so that they suffice. Raises: UsageError.
    """
    experiment = result.experiment(source.kind, source.classes)
    chosen = tuple(experiment.seeds if seeds is None else seeds)
    recipes = {arm.name: arm.recipe_of(chosen[0]) for arm in experiment.arms}
    made = Plan(result, experiment, chosen, recipes)
    n = sum(entry.split == "train" for entry in source.entries)
    hours = (
        sum(
            (len(chosen) + max(0, len(arm.lr) - 1)) * recipes[arm.name].epochs * n * _seconds(recipes[arm.name], source)
            for arm in experiment.arms
        )
        / 3600
    )
    if budget is None or hours <= budget:
        return made, hours
    share = budget / hours
    if min(int(recipe.epochs * share) for recipe in recipes.values()) < 1:
        raise UsageError(
            f"{result.id} takes about {hours:.1f} hours here; in {budget:g} not one epoch of each net ends"
        )
    return replace(made, recipes={name: _shorter(r, share) for name, r in recipes.items()}, shortened=share), budget


def _seconds(recipe: Recipe, source: Source) -> float:
    """Of training with a picture, by a few steps on noise."""
    small = replace(recipe, batch=min(recipe.batch, 32))
    step = EagerSteps(
        choose(recipe.precision).take(fresh_net(small, len(source.classes))), small, choose(recipe.precision)
    )
    images = torch.randn(small.batch, *picture_shape(small)).to(step.device.device, step.input_dtype)
    labels = torch.zeros(small.batch, dtype=torch.int64, device=step.device.device)
    step.begin(1)
    seconds = []
    for number in range(TIMED):
        began = perf_counter()
        step.forward_backward(Batch(images, labels, np.arange(small.batch)), number)
        step.update(0.0)
        seconds.append(perf_counter() - began)
    return min(seconds) / small.batch


def _shorter(recipe: Recipe, share: float) -> Recipe:
    """The recipe with a share of its epochs, and its changes of rate in proportion."""
    epochs = int(recipe.epochs * share)
    steps = tuple(sorted({max(2, 1 + round((step - 1) * share)) for step in recipe.lr_steps}))
    fold = max(1, 1 + round((recipe.fold_epoch - 1) * share)) if recipe.fold_epoch else 0
    return replace(recipe, epochs=epochs, lr_steps=steps, fold_epoch=fold)


def keep(out: Path, made: Plan) -> Plan:
    """Writes plan.json, or reads the one that is there, which goes on. Raises: UsageError when it is another's."""
    path = out / PLAN
    content = {
        "result": made.result.id,
        "data": made.experiment.data,
        "seeds": list(made.seeds),
        "shortened": made.shortened,
        "recipes": {name: to_dict(recipe) for name, recipe in made.recipes.items()},
    }
    if not path.exists():
        atomic.write_atomic(path, strict_json.seal(content))
        return made
    try:
        kept = strict_json.unseal(atomic.read(path, atomic.TEXT))
        if (kept["result"], kept["data"], kept["seeds"]) != (made.result.id, made.experiment.data, list(made.seeds)):
            raise UsageError(f"{out} holds another experiment ({kept['result']}); choose another folder with --out")
        recipes = {name: from_dict(recipe) for name, recipe in kept["recipes"].items()}
        return replace(made, recipes=recipes, shortened=float(kept["shortened"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and the same command plans anew") from error


def store_for(source: Source, out: Path, size: int, progress: Progress) -> Store:
    """The source's store in the experiment's folder, made if it isn't there."""
    path, settings = out / f"store-{size}", settings_for(source, size, "raw", None)
    if is_store(path) and holds(path, source, settings):
        return Store(path, progress)
    return prepare(source, path, size=size, progress=progress)


def run(made: Plan, source: Source, out: Path, device: str = "auto", progress: Progress = SILENT,
        stop: Stop | None = None) -> list[Measured]:  # fmt: skip
    """Trains and tests every net that isn't trained yet. Raises: Interrupted, after which the same call goes on."""
    measured, number = list[Measured](), 0

    def told(what: str) -> None:
        nonlocal number
        number += 1
        progress.note(f"{made.result.id}: net {number} of {made.n_runs()}: {what}")

    for arm in made.experiment.arms:
        recipe = made.recipes[arm.name]
        store = store_for(source, out, recipe.size, progress)
        trains = _Trainer(store, out / "runs" / slug(arm.name), made.experiment, device, progress, stop, told)
        measured.append(trains.arm(arm, recipe, made.seeds))
    return measured


@dataclass
class _Trainer:
    """Trains an arm's nets in `out`."""

    store: Store
    out: Path
    experiment: Experiment
    device: str
    progress: Progress
    stop: Stop | None
    told: Callable[[str], None]
    tested: dict[Path, NDArray[np.bool_]] = field(default_factory=dict)

    def arm(self, arm: Arm, recipe: Recipe, seeds: Sequence[int]) -> Measured:
        best: float | None = None
        lr, first, n_lost = recipe.lr, self.out / f"seed-{seeds[0]}", 0
        for rate in arm.lr:
            self.told(f"{arm.name}, rate {rate:g}")
            try:
                value = self.value(replace(recipe, lr=rate), self.out / f"lr-{rate:g}", best)
            except Diverged as error:
                self.progress.note(f"{arm.name}, rate {rate:g} is too high: {error}")
                n_lost += 1
                continue
            if value is not None and (best is None or value < best):
                best, lr, first = value, rate, self.out / f"lr-{rate:g}"
        if arm.lr and n_lost == len(arm.lr):
            raise Diverged(f"{arm.name}: every rate of {', '.join(f'{rate:g}' for rate in arm.lr)} is too high")
        values = list[float | None]([best] if arm.lr else [])
        for seed in seeds[len(values) :]:
            self.told(f"{arm.name}, seed {seed}")
            values.append(self.value(replace(recipe, lr=lr, seed=seed), self.out / f"seed-{seed}", None))
        if self.experiment.measure == EPOCHS:
            return Measured(arm.name, lr, tuple(values))
        folders = [first if i == 0 else self.out / f"seed-{seed}" for i, seed in enumerate(seeds)]
        return Measured(arm.name, lr, tuple(values), np.stack([self.wrong(folder) for folder in folders]))

    def value(self, recipe: Recipe, folder: Path, bound: float | None) -> float | None:
        """What is measured of a net. bound: epochs above which it doesn't matter any more."""
        if self.experiment.measure == EPOCHS:
            return self.epochs(recipe, folder, bound)
        if not has_ended(folder):
            self.train(recipe, folder)
        return float(self.wrong(folder).mean())

    def epochs(self, recipe: Recipe, folder: Path, bound: float | None) -> float | None:
        """Until the training error is TARGET, between two epochs by a straight line; None where it isn't reached."""
        for epoch in range(1, recipe.epochs + 1):
            errors = self.errors(folder)
            if len(errors) < epoch:
                self.train(replace(recipe, epochs=epoch), folder)
                errors = self.errors(folder)
            if errors[epoch - 1] <= TARGET:
                before = errors[epoch - 2] if epoch > 1 else 1.0
                return epoch - 1 + (before - TARGET) / (before - errors[epoch - 1])
            if bound is not None and epoch >= bound:
                return None
        return None

    def errors(self, folder: Path) -> list[float]:
        rows = metrics_log.read(folder / METRICS)
        return [float(row["train_error"] or 0) for row in rows if row["kind"] == "epoch"]

    def train(self, recipe: Recipe, folder: Path) -> None:
        train(recipe, self.store, folder, resume=has_begun(folder), device=self.device, progress=self.progress,
              stop=self.stop, command="convnet reproduce")  # fmt: skip

    def wrong(self, folder: Path) -> NDArray[np.bool_]:
        """bool (n,): the test pictures that the net of a run gets wrong."""
        if folder not in self.tested:
            net = TrainedNet.load(folder, self.device)
            scores = net.evaluate(self.store, views=self.experiment.views, progress=self.progress, stop=self.stop)
            self.tested[folder] = scores.ranks >= 1
        return self.tested[folder]


def slug(name: str) -> str:
    """A name as a folder's.

    >>> slug("26 % net"), slug("3/2")
    ('26-net', '3-2')
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def table(made: Plan, measured: Sequence[Measured]) -> list[Json]:
    """A row for each arm: its values, and how it compares with the first arm, with a 95 % interval."""
    return [_row(made, measured[0], each) for each in measured]


def _row(made: Plan, first: Measured, own: Measured) -> Json:
    row: Json = {"arm": own.arm, "recipe": made.recipes[own.arm].name, "net": made.recipes[own.arm].net, "lr": own.lr}
    row |= {"epochs": made.recipes[own.arm].epochs, "seeds": list(made.seeds), "values": list(own.values)}
    row |= {"measure": made.experiment.measure, "mean": own.mean}
    if own.wrong is not None:
        row |= {"n": own.wrong.shape[1], "interval": list(interval(float(own.wrong.mean()), own.wrong.shape[1]))}
    if own is first:
        return row
    if made.experiment.compare == "ratio":
        known = own.mean is not None and first.mean is not None
        row["ratio"] = own.mean / first.mean if known and own.mean and first.mean else None
        pairs = zip(own.values, first.values, strict=True)
        row["ratios"] = [a / b if a is not None and b else None for a, b in pairs]
    elif own.wrong is not None and first.wrong is not None:
        gaps = (own.wrong.astype(float) - first.wrong).mean(0)  # of each picture, over the seeds
        row["difference"] = float(gaps.mean())
        spread = Z * float(gaps.std(ddof=1)) / np.sqrt(len(gaps))
        row["difference_interval"] = [row["difference"] - spread, row["difference"] + spread]
    return row


def write(out: Path, made: Plan, measured: Sequence[Measured]) -> Json:
    """results.json, results.csv and figure.png, of all runs' curves; what results.json has."""
    rows = table(made, measured)
    result, experiment = made.result, made.experiment
    content: Json = {
        "result": result.id,
        "paper": result.paper,
        "where": result.where,
        "claim": result.claim,
        "published": [list(row) for row in result.published],
        "reproduced_by_others": [list(row) for row in result.reproduced],
        "data": experiment.data,
        "shows": experiment.shows,
        "views": experiment.views,
        "share_of_epochs": made.shortened,
        "rows": rows,
    }
    atomic.write_atomic(out / "results.json", strict_json.seal(content))
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([names, *([row.get(name) for name in names] for row in rows)])
    atomic.write_atomic(out / "results.csv", text.getvalue().encode())
    folders = sorted(path.parent for path in (out / "runs").glob("*/*/metrics.jsonl"))
    runs = [replace(curves(folder), name=f"{folder.parent.name} {folder.name}") for folder in folders]
    if runs:
        plot.save(draw_curves(runs), out / "figure.png")
    return content
