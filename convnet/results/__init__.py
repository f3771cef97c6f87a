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
LISTS = ("published", "reproduced")
ILSVRC, WNID = "ILSVRC", re.compile(r"n[0-9]{8}")
ERROR, EPOCHS = "top-1 error", "epochs to 25 % training error"  # what is measured


@dataclass(frozen=True)
class Arm:
    """Nets that are trained alike but for their seeds. lr: rates of which the first seed chooses the fastest."""

    name: str
    recipe: str
    net: str | None = None
    settings: tuple[str, ...] = ()
    lr: tuple[float, ...] = ()

    def recipe_of(self, seed: int, lr: float | None = None) -> Recipe:
        """The recipe of one of its nets."""
        recipe = load_recipe(self.recipe)
        recipe = with_settings(recipe if self.net is None else replace(recipe, net=self.net), self.settings)
        return replace(recipe, seed=seed, lr=recipe.lr if lr is None else lr)


@dataclass(frozen=True)
class Experiment:
    """What is trained on which data, what is measured, and what that can show."""

    data: str
    shows: str
    measure: str
    compare: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    views: str = "single"


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
            if kind.startswith(each.data):
                return each
        known = ", ".join(each.data for each in self.experiments)
        raise UsageError(f"{self.id} can't be shown on {kind}; its experiments are for: {known}")


@cache
def published() -> Mapping[str, Result]:
    """All results by their names, in the order of the file."""
    rows = tomllib.loads((files("convnet") / "results" / "published.toml").read_text(encoding="utf-8"))["result"]
    return {row["id"]: _result(row) for row in rows}


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
    arms = [Arm(**arm | {name: tuple(arm.get(name, ())) for name in ("settings", "lr")}) for arm in row.pop("arms")]
    return Experiment(**{**row, "seeds": tuple(row["seeds"])}, arms=tuple(arms))
