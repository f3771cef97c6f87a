"""The papers' tables and figures as data, each with the experiments that reproduce it (published.toml)."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from convnet.errors import UsageError, unknown
from convnet.recipe import Recipe, load_recipe, with_settings

Rows = tuple[tuple[str, str], ...]  # (what, value as it was published)
LISTS, ARM_LISTS = ("published", "reproduced"), ("settings", "lr", "views")
ILSVRC, WNID = "ILSVRC", re.compile(r"n[0-9]{8}")
ERROR, EPOCHS = "top-1 error", "epochs to 25 % training error"  # what is measured


@dataclass(frozen=True)
class Wanted:
    """How much of a kind of data was published. free: any numbers serve, and these are an example's."""

    classes: int
    train: int
    tested: int
    free: bool = False


@dataclass(frozen=True)
class Arm:
    """Nets that are trained alike but for their seeds.

    lr: rates of which the first seed chooses the fastest, where epochs are measured. begins: the arm before this one
    with whose nets its own begin, those of the same seeds. views: its own, in place of the experiment's.
    """

    name: str
    recipe: str
    net: str | None = None
    settings: tuple[str, ...] = ()
    lr: tuple[float, ...] = ()
    begins: str | None = None
    views: tuple[str, ...] = ()

    def n_nets(self, n_seeds: int) -> int:
        """How many are trained."""
        return n_seeds + max(0, len(self.lr) - 1)

    def recipe_of(self, seed: int, lr: float | None = None) -> Recipe:
        """The recipe of one of its nets."""
        recipe = load_recipe(self.recipe)
        recipe = with_settings(recipe if self.net is None else replace(recipe, net=self.net), self.settings)
        return replace(recipe, seed=seed, lr=recipe.lr if lr is None else lr)


@dataclass(frozen=True)
class Experiment:
    """What is trained on which data, what is measured, and what that can show.

    views: the protocols by which each net is tested, as `dense`, or `dense at 256,384,512`. fused: {a row's name: the
    arms of which all nets are averaged}.
    """

    data: str
    shows: str
    measure: str
    compare: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    views: tuple[str, ...] = ("single",)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def fits(self, kind: str) -> bool:
        """Whether it is for a kind of source: CIFAR-10 is not CIFAR-100."""
        return re.match(rf"{re.escape(self.data)}\b", kind) is not None

    def views_of(self, arm: Arm) -> tuple[str, ...]:
        return arm.views or self.views


@dataclass(frozen=True)
class Result:
    """A table or figure of a paper: what it claims, the published numbers, and its experiments, the full one first.

    ours: what was measured with this program, with machine, n and command; why_not: why there is no experiment.
    """

    id: str
    paper: str
    where: str
    claim: str
    published: Rows
    reproduced: Rows = ()
    experiments: tuple[Experiment, ...] = field(default=())
    ours: Mapping[str, str] = field(default_factory=dict)
    why_not: str = ""

    @property
    def none(self) -> str:
        return f"{self.id} has no experiment: {self.why_not}"

    def experiment(self, kind: str, classes: Sequence[str] = ()) -> Experiment:
        """The one for a kind of source; a thousand of ImageNet's classes are ILSVRC, however they lie there.

        Raises: UsageError that names those that there are.
        """
        if not self.experiments:
            raise UsageError(self.none)
        if not kind.startswith(ILSVRC) and len(classes) == 1000 and all(map(WNID.fullmatch, classes)):
            full = [each for each in self.experiments if each.data.startswith(ILSVRC)]
            kind = full[0].data if full else kind
        for each in self.experiments:
            if each.fits(kind):
                return each
        known = ", ".join(each.data for each in self.experiments)
        raise UsageError(f"{self.id} can't be shown on {kind}; its experiments are for: {known}")


@cache
def published() -> Mapping[str, Result]:
    """All results by their names, in the order of the file."""
    return {row["id"]: _result(row) for row in _table()["result"]}


@cache
def wanted() -> Mapping[str, Wanted]:
    """For each kind of data that an experiment names."""
    return {kind: Wanted(**row) for kind, row in _table()["data"].items()}


def _table() -> dict[str, Any]:
    return tomllib.loads((files("convnet") / "results" / "published.toml").read_text(encoding="utf-8"))


def result(name: str) -> Result:
    """Raises: UsageError for an unknown name."""
    if name not in published():
        raise UsageError(unknown("result", name, published()))
    return published()[name]


def _result(row: dict[str, Any]) -> Result:
    experiments = [_experiment(each) for each in row.pop("experiment", [])]
    published, reproduced = (tuple((what, value) for what, value in row.pop(name, [])) for name in LISTS)
    return Result(**row, published=published, reproduced=reproduced, experiments=tuple(experiments))


def _experiment(row: dict[str, Any]) -> Experiment:
    arms = [Arm(**arm | {name: tuple(arm.get(name, ())) for name in ARM_LISTS}) for arm in row["arms"]]
    fused = {name: tuple(of) for name, of in row.get("fused", {}).items()}
    seeds, views = tuple(row["seeds"]), tuple(row.get("views", ["single"]))
    return Experiment(**row | {"arms": tuple(arms), "fused": fused, "seeds": seeds, "views": views})
