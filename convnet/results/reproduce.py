"""Runs the experiment behind a published result on the data at hand: every net an ordinary run, all of it resumable.

The folder has plan.json, which makes the same command go on where it was; a run for each net (runs/ARM/seed-N, of rates
that are tried runs/ARM/lr-RATE) with what it says of the test pictures, test.posteriors; environment.json; and at the
end results.json, results.csv, figure.png and page.html (table.py, shown.py).
"""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.device import choose
from convnet.errors import DataError, Diverged, UsageError
from convnet.evaluation.ensemble import join, rows
from convnet.evaluation.pictures import seen
from convnet.evaluation.predictions import Member, Predictions, ask
from convnet.evaluation.trained_net import TrainedNet, checkpoint_at
from convnet.evaluation.views import IN_SQUARE, Protocol, protocol
from convnet.io import atomic, strict_json
from convnet.io.signals import Stop
from convnet.progress import SILENT, Progress
from convnet.recipe import Recipe
from convnet.results import EPOCHS, Arm
from convnet.results.data import Data
from convnet.results.plan import Plan, multiply_adds
from convnet.training import metrics_log
from convnet.training.run import METRICS, environment
from convnet.training.series import has_begun, has_ended
from convnet.training.train import train

TARGET = 0.25  # the training error of figure 1


@dataclass(frozen=True)
class Measured:
    """A row of the table: what an arm's nets gave by a protocol, or the average of several arms' nets.

    values: one for each seed, or of the average; None: the target was not reached. ranks: int64 (nets, n), how many
    classes came before the true one of each test picture; None where epochs were counted. lr: the rate that was
    chosen; None of an average. split: of the test pictures. runs: the folders of the nets.
    """

    arm: str
    lr: float | None
    values: tuple[float | None, ...]
    ranks: NDArray[np.int64] | None = None
    views: str = ""
    split: str = ""
    runs: tuple[Path, ...] = ()

    @property
    def mean(self) -> float | None:
        known = [value for value in self.values if value is not None]
        return statistics.fmean(known) if len(known) == len(self.values) else None


def run(made: Plan, data: Data, out: Path, device: str = "auto", progress: Progress = SILENT, stop: Stop | None = None,
        command: str = "convnet reproduce") -> list[Measured]:  # fmt: skip
    """Trains and tests every net that isn't trained yet. Raises: Interrupted, after which the same call goes on."""
    trains = _Runs(made, data, out, device, progress, stop, command)
    trains.begin()
    arms = [trains.arm(arm) for arm in made.experiment.arms]
    return arms if made.experiment.measure == EPOCHS else trains.tested(arms)


@dataclass
class _Runs:
    """Does what of a plan isn't done yet, in `out`."""

    made: Plan
    data: Data
    out: Path
    device: str
    progress: Progress
    stop: Stop | None
    command: str
    number: int = 0  # of the net that it's about
    said: dict[Path, Predictions] = field(default_factory=dict)

    def begin(self) -> None:
        """Writes environment.json, or reads the one that is there. Raises: UsageError when it is of other pictures."""
        recipe, path = next(iter(self.made.recipes.values())), self.out / "environment.json"
        store = self.data.store_for(self.out, recipe.size, self.progress)
        if not path.exists():
            told = environment(choose(recipe.precision, self.device), store, self.command)
            atomic.write_atomic(path, strict_json.seal(told))
            return
        try:
            kept = strict_json.unseal(atomic.read(path, atomic.TEXT))
            identity, place = kept["store_sha256"], kept["store"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} is damaged ({error}); remove it, and the same command goes on") from error
        if identity != store.identity:
            raise UsageError(f"{self.out} was begun with other pictures, {place}; choose another --out")

    def arm(self, arm: Arm) -> Measured:
        """Trains an arm's nets; the values only where epochs are measured."""
        recipe, folder, seeds = self.made.recipes[arm.name], self.out / "runs" / slug(arm.name), self.made.seeds
        lr, values = recipe.lr, list[float | None]()
        runs = [folder / f"seed-{seed}" for seed in seeds]
        if arm.lr:
            lr, best = self.fastest(arm, recipe, folder)
            values, runs[0] = [best], folder / f"lr-{lr:g}"
        for seed, place in list(zip(seeds, runs, strict=True))[len(values) :]:
            self.tell(f"{arm.name}, seed {seed}")
            own = replace(recipe, lr=lr, seed=seed)
            if self.made.experiment.measure == EPOCHS:
                values.append(self.epochs(own, place))
                continue
            self.train(own, place, self.out / "runs" / slug(arm.begins) / place.name if arm.begins else None)
            self.test(arm, place)
        return Measured(arm.name, lr, tuple(values), runs=tuple(runs))

    def tell(self, what: str) -> None:
        self.number += 1
        self.progress.note(f"{self.made.result.id}: net {self.number} of {self.made.n_runs()}: {what}")

    def fastest(self, arm: Arm, recipe: Recipe, folder: Path) -> tuple[float, float | None]:
        """The arm's rate with the fewest epochs (None: none is there), or else the least error, and these epochs.

        Raises: Diverged when all rates are too high."""
        tried, best = list[tuple[float, list[float], float]](), None
        for rate in arm.lr:
            self.tell(f"{arm.name}, rate {rate:g}")
            place = folder / f"lr-{rate:g}"
            try:
                value = self.epochs(replace(recipe, lr=rate), place, best)
            except Diverged as error:
                self.progress.note(f"{arm.name}, rate {rate:g} is too high: {error}")
                continue
            tried.append((np.inf if value is None else value, _errors(place)[-1:], rate))
            best = min(tried)[0] if value is not None else best
        if not tried:
            raise Diverged(f"{arm.name}: every rate of {', '.join(f'{rate:g}' for rate in arm.lr)} is too high")
        return min(tried)[2], best

    def epochs(self, recipe: Recipe, folder: Path, bound: float | None = None) -> float | None:
        """Until the training error is TARGET, between two epochs by a straight line; None where it isn't reached.

        bound: epochs above which it doesn't matter any more.
        """
        for epoch in range(1, recipe.epochs + 1):
            errors = _errors(folder)
            if len(errors) < epoch:
                self.train(replace(recipe, epochs=epoch), folder, again=True)
                errors = _errors(folder)
            if errors[epoch - 1] <= TARGET:
                before = errors[epoch - 2] if epoch > 1 else 1.0
                return epoch - 1 + (before - TARGET) / (before - errors[epoch - 1])
            if bound is not None and epoch >= bound:
                return None
        return None

    def train(self, recipe: Recipe, folder: Path, start: Path | None = None, again: bool = False) -> None:
        """Trains a net that isn't at its end; start: the run with whose net it begins; again: a few epochs more."""
        if has_ended(folder) and not again:
            return
        store, resume = self.data.store_for(self.out, recipe.size, self.progress), has_begun(folder)
        progress = _Whole(self.progress, f"net {self.number} of {self.made.n_runs()}", self.later(recipe))
        train(recipe, store, folder, resume=resume, init_from=None if resume else start, device=self.device,
              progress=progress, stop=self.stop, command=self.command)  # fmt: skip

    def later(self, recipe: Recipe) -> int:
        """How many of the recipe's pictures take as long as all nets that follow; 0 where they may end early."""
        if self.made.experiment.measure == EPOCHS:
            return 0
        recipes = [self.made.recipes[arm.name] for arm in self.made.experiment.arms for _ in self.made.seeds]
        multiply = sum(each.epochs * multiply_adds(each) for each in recipes[self.number :])
        return self.data.n["train"] * multiply // multiply_adds(recipe)

    def test(self, arm: Arm, folder: Path) -> Predictions:
        """What a run's net says of the test pictures by the arm's views; asked once, and kept in the run's folder."""
        if folder not in self.said:
            net = TrainedNet.load(folder, self.device)
            protocols = tuple(_protocol(views, net.preprocessing) for views in self.made.experiment.views_of(arm))
            identity = f"{atomic.sha256_file(checkpoint_at(folder))} {net.device.dtype}"
            member = Member(f"{arm.name} {folder.name}", identity, net, protocols)
            split = net.split_of(self.test_store(net.preprocessing.size))
            if text := seen(split, member.looks):
                self.progress.note(text)
            self.said[folder] = ask(
                [member], split, file=folder / "test.posteriors", progress=self.progress, stop=self.stop
            )
        return self.said[folder]

    def test_store(self, size: int) -> Store:
        side = side_to_test(self.made)
        if side is None:
            return self.data.store_for(self.out, size, self.progress)
        return self.data.whole_pictures(self.out, side, self.progress)

    def tested(self, arms: Sequence[Measured]) -> list[Measured]:
        """The rows of the arms, one for each of their views, and those of nets that are averaged."""
        experiment, said, result = self.made.experiment, dict[str, list[Predictions]](), list[Measured]()
        for arm, own in zip(experiment.arms, arms, strict=True):
            said[arm.name] = [self.test(arm, folder) for folder in own.runs]
            for i, views in enumerate(experiment.views_of(arm)):
                ranks = np.stack([_ranks([each], i) for each in said[arm.name]])
                values = tuple((ranks >= 1).mean(1).tolist())
                split = said[arm.name][0].split
                result.append(replace(own, values=values, ranks=ranks, views=views, split=split))
        for name, of in experiment.fused.items():
            asked = [each for arm in of for each in said[arm]]
            for i, views in enumerate(next(experiment.views_of(arm) for arm in experiment.arms if arm.name == of[0])):
                ranks = _ranks(asked, i)[None]
                result.append(Measured(name, None, (float((ranks >= 1).mean()),), ranks, views, asked[0].split))
        return result


@dataclass(frozen=True)
class _Whole:
    """Tells how far one of several nets is, in its epochs with the time left of all that follow."""

    of: Progress
    net: str
    later: int  # pictures, of this net, that take as long

    def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None:
        more = self.later if what.startswith("epoch ") else 0
        self.of.start(f"{self.net}, {what}", total, done, after + more, unit)

    def update(self, done: int, **values: str) -> None:
        self.of.update(done, **values)

    def note(self, text: str) -> None:
        self.of.note(text)

    def warn(self, text: str) -> None:
        self.of.warn(text)

    def finish(self) -> None:
        self.of.finish()


def side_to_test(made: Plan) -> int | None:
    """Pixels of the shorter side of which test pictures are needed whole; None where the training's squares suffice."""
    sides, whole = list[int](), False
    for arm in made.experiment.arms:
        recipe = made.recipes[arm.name]
        stored = Preprocessing(recipe.size, recipe.pad, recipe.crop, "rgb", None, recipe.scale, recipe.offset)
        for look in (look for views in made.experiment.views_of(arm) for look in _protocol(views, stored).looks):
            sides.append(look.scale)
            whole = whole or look.name not in IN_SQUARE or look.scale != recipe.size
    return max(sides) if whole else None


def _protocol(views: str, preprocessing: Preprocessing) -> Protocol:
    """Of words like `dense`, or `dense at 256,384,512`."""
    name, _, scales = views.partition(" at ")
    return protocol(name, preprocessing, scales or None)


def _ranks(said: Sequence[Predictions], i: int) -> NDArray[np.int64]:
    """int64 (n,): of each test picture, how many classes come before the true one when the nets are averaged.

    i: the number of the protocol."""
    joined = join(said)
    members = tuple(replace(member, protocols=(member.protocols[i],)) for member in joined.members)
    return rows(replace(joined, members=members))[-1].scores.ranks


def _errors(folder: Path) -> list[float]:
    """A run's training errors, epoch by epoch."""
    return [float(row["train_error"] or 0) for row in metrics_log.read(folder / METRICS) if row["kind"] == "epoch"]


def slug(name: str) -> str:
    """A name as a folder's.

    >>> slug("26 % net"), slug("3/2")
    ('26-net', '3-2')
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
