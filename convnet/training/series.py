"""Runs one after the other in one folder: an ensemble's members by their seeds, or nets that begin with the one before.

series.json in the folder has the stages; each is a run of its own in a folder of its name, and is begun, gone on with
or left alone by what is there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from convnet.checkpoint import LAST, PREVIOUS
from convnet.errors import DataError, UsageError
from convnet.io import atomic, strict_json
from convnet.nets import MODELS, recipe_of
from convnet.recipe import Recipe, from_dict, list_recipes, load_recipe, to_dict

SERIES = "series.json"
CHAINS = MappingProxyType({"vgg-chain": ("vgg_a", "vgg_d", "vgg_e")})  # the notes on VGG: 11, then 16, then 19 layers
MOST = 1000  # stages


@dataclass(frozen=True)
class Stage:
    """A run of a series. name: of its folder; start: what it begins with, an earlier stage's name or a checkpoint.

    A run that is no part of a series is one whose folder is the series' own, ".".
    """

    name: str
    recipe: Recipe
    start: str | None = None

    def begins_with(self, out: Path) -> Path | None:
        """The run or checkpoint that it begins with; `out` is the series' folder."""
        if self.start is None:
            return None
        return out / self.start if (out / self.start).is_dir() else Path(self.start)


def numbers(text: str) -> list[int]:
    """The seeds of a text like 0..4 or 0,3,7. Raises: UsageError."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,18})(?:\.\.(\d{1,18}))?", part.strip())
        if match is None or int(match[2] or match[1]) - int(match[1]) not in range(MOST):
            raise UsageError(f"--seeds {text}: write 0..4, or 0,3,7; at most {MOST}, rising")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(found)) < len(found):
        raise UsageError(f"--seeds {text}: a seed stands there twice, which would train one net twice")
    return found


def of_seeds(recipe: Recipe, text: str, start: Path | None) -> list[Stage]:
    """A stage for each seed of a text. Raises: UsageError."""
    return [
        Stage(f"seed-{n}", replace(recipe, seed=n), None if start is None else str(start.resolve()))
        for n in numbers(text)
    ]


def chain(text: str) -> list[str]:
    """The names that a chain of recipes stands for: vgg-chain, or names with commas between; of one recipe that."""
    return list(CHAINS.get(text, [name.strip() for name in text.split(",")]))


def of_chain(recipes: Sequence[Recipe], start: Path | None) -> list[Stage]:
    """A stage for each recipe, which begins with the net of the stage before."""
    stages: list[Stage] = []
    for recipe in recipes:
        if any(stage.name == recipe.name for stage in stages):
            raise UsageError(f"--recipe: {recipe.name} stands there twice")
        before = stages[-1].name if stages else None if start is None else str(start.resolve())
        stages.append(Stage(recipe.name, recipe, before))
    return stages


def recipe_called(name: str) -> Recipe:
    """A recipe by its name or file, or by the net that it trains. Raises: UsageError."""
    if name in MODELS and name not in list_recipes():
        return replace(load_recipe(recipe_of(name)), net=name, name=name)
    return load_recipe(name)


def write(out: Path, stages: Sequence[Stage], store: str) -> None:
    """Writes series.json into the new folder `out`. Raises: UsageError when something is there; DiskError."""
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; choose a new folder with --out, or go on with --resume")
    rows = [{"name": stage.name, "recipe": to_dict(stage.recipe), "start": stage.start} for stage in stages]
    atomic.write_atomic(out / SERIES, strict_json.seal({"store": store, "stages": rows}))


def read(out: Path) -> tuple[list[Stage], str] | None:
    """The stages of the series in `out` and its store; None when there is no series. Raises: DataError."""
    path = out / SERIES
    if not path.exists():
        return None
    try:
        content = strict_json.unseal(atomic.read(path, atomic.TEXT))
        stages = [_stage(row) for row in content["stages"]]
        return stages, str(content["store"])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, UsageError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())}); train its stages one by one") from error


def _stage(row: strict_json.Json) -> Stage:
    name, start = row["name"], row["start"]
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"{name!r} is no name of a stage")
    if not isinstance(start, str | None):
        raise ValueError(f"{name} begins with no name")
    return Stage(name, from_dict(row["recipe"]), start)


def has_begun(run: Path) -> bool:
    """Whether a run's folder has a checkpoint to go on from."""
    return any((run / name).exists() for name in (LAST, PREVIOUS))


def has_ended(run: Path) -> bool:
    """Whether a run has written its result."""
    try:
        return bool(strict_json.unseal(atomic.read(run / "summary.json", atomic.TEXT)))
    except (OSError, ValueError):
        return False
