"""What would reproducing a result take? Nets, hours, memory, by a few steps of each net on noise; kept as plan.json."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from convnet import hardware
from convnet.data.loader import Batch
from convnet.device import choose
from convnet.errors import DataError, UsageError
from convnet.io import atomic, strict_json
from convnet.nets import describe
from convnet.recipe import Recipe, from_dict, to_dict
from convnet.results import Experiment, Result
from convnet.results.data import Data
from convnet.training.micro_batch import bytes_a_picture, bytes_besides
from convnet.training.run import fresh_net, picture_shape
from convnet.training.step import EagerSteps

PLAN = "plan.json"
TIMED, PICTURES = 3, 32  # steps by which the time of a net is estimated, and the pictures of each on the CPU
FEWER, LEAST = 64 * 10**9, 4  # of nets whose step has more multiply-adds forward, but not fewer than so many
PASSES = 3  # forward, and backward for the weights and for what came in
CORE = (25e9, 3e-4)  # multiply-adds in a second, and seconds of each picture besides: docs/results.md
GPU = (25e12, 1e-5)
RATES = "Hours, at most and estimated: a core by 50 GFLOP/s and 0.3 ms a picture, a GPU by 50 TFLOP/s and 0.01 ms."


@dataclass(frozen=True)
class Plan:
    """recipes: {arm: its recipe, with the epochs that there is time for}.

    hours: that this machine takes; memory: bytes of the largest step, with weights and velocity. None: not known.
    """

    result: Result
    experiment: Experiment
    seeds: tuple[int, ...]
    recipes: dict[str, Recipe]
    shortened: float = 1.0  # share of the recipes' epochs
    hours: float | None = None
    memory: int | None = None

    def n_runs(self) -> int:
        return sum(arm.n_nets(len(self.seeds)) for arm in self.experiment.arms)


@dataclass(frozen=True)
class Need:
    """Of a net's training: seconds for a picture, and bytes for a step."""

    seconds: float
    memory: int


def plan(
    result: Result, data: Data, seeds: Sequence[int] | None, budget: float | None = None, device: str = "auto"
) -> Plan:
    """What would be run on the data, by a few steps of each net on the device.

    budget: hours; the epochs of all recipes are shortened alike so that they suffice. Raises: UsageError.
    """
    experiment = result.experiment(data.kind, data.classes)
    chosen = tuple(experiment.seeds if seeds is None else seeds)
    recipes = {arm.name: arm.recipe_of(chosen[0]) for arm in experiment.arms}
    data.check(recipes)
    needs: dict[tuple[object, ...], Need] = {}
    seconds = 0.0
    for arm in experiment.arms:
        recipe = recipes[arm.name]
        alike = (recipe.net, str(recipe.net_options), recipe.batch, recipe.crop, recipe.channels, recipe.precision)
        if alike not in needs:
            needs[alike] = need(recipe, len(data.classes), device)
        seconds += arm.n_nets(len(chosen)) * recipe.epochs * data.n["train"] * needs[alike].seconds
    hours, memory = seconds / 3600, max(each.memory for each in needs.values())
    made = Plan(result, experiment, chosen, recipes, hours=hours, memory=memory)
    if budget is None or hours <= budget:
        return made
    share = budget / hours
    if min(int(recipe.epochs * share) for recipe in recipes.values()) < 1:
        raise UsageError(
            f"{result.id} takes about {hours:.1f} hours here; in {budget:g} not one epoch of each net ends"
        )
    shorter = {name: _shorter(recipe, share) for name, recipe in recipes.items()}
    return replace(made, recipes=shorter, shortened=share, hours=budget)


def need(recipe: Recipe, n_classes: int, device: str) -> Need:
    """What a net's training takes, by a few steps on noise; the memory by account (micro_batch.py)."""
    place = choose(recipe.precision, device)
    n = recipe.batch
    if place.device.type == "cpu":
        n = min(n, PICTURES, max(LEAST, FEWER // multiply_adds(recipe)))
    small = replace(recipe, batch=n)
    step = EagerSteps(place.take(fresh_net(small, n_classes)), small, place)
    shape = picture_shape(recipe)
    memory = bytes_besides(step) + sum(2 * weight.nbytes for weight in step.rule.parameters.values())
    memory += recipe.batch * bytes_a_picture(step, shape)
    images = torch.randn(n, *shape).to(place.device, step.input_dtype)
    labels = torch.zeros(n, dtype=torch.int64, device=place.device)
    step.begin(1)
    seconds = []
    for number in range(TIMED):
        began = perf_counter()
        step.forward_backward(Batch(images, labels, np.arange(n)), number)
        step.update(0.0)
        seconds.append(perf_counter() - began)
    return Need(min(seconds) / n, memory)


def free_memory(device: str) -> int | None:
    """Bytes that a training on the device may take; None where nobody tells."""
    place = choose("fp32", device).device
    return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else hardware.memory().free


def cost(experiment: Experiment, n: int, rates: tuple[float, float]) -> float:
    """Hours for all trainings on n pictures, by `CORE` or `GPU`."""
    recipes = ((arm.n_nets(len(experiment.seeds)), arm.recipe_of(0)) for arm in experiment.arms)
    a_second, besides = rates
    pictures = ((n_nets * recipe.epochs * n, PASSES * multiply_adds(recipe)) for n_nets, recipe in recipes)
    return sum(number * (each / a_second + besides) for number, each in pictures) / 3600


def multiply_adds(recipe: Recipe) -> int:
    """Of the recipe's net for a picture, forward."""
    return _multiply_adds(recipe.net, tuple(sorted(recipe.net_options.items())))


@cache
def _multiply_adds(net: str, options: tuple[tuple[str, object], ...]) -> int:
    return describe.multiply_adds(describe.skeleton(net, **dict(options)))


def _shorter(recipe: Recipe, share: float) -> Recipe:
    """The recipe with a share of its epochs, and its changes of rate in proportion."""
    epochs = int(recipe.epochs * share)
    steps = tuple(sorted({max(2, 1 + round((step - 1) * share)) for step in recipe.lr_steps}))
    fold = max(1, 1 + round((recipe.fold_epoch - 1) * share)) if recipe.fold_epoch else 0
    return replace(recipe, epochs=epochs, lr_steps=steps, fold_epoch=fold)


def keep(out: Path, made: Plan) -> Plan:
    """Writes plan.json, or reads the one that is there, which goes on. Raises: as `begun`."""
    if (kept := begun(out, made.result, made.experiment, made.seeds)) is not None:
        return kept
    content = {
        "result": made.result.id,
        "data": made.experiment.data,
        "seeds": list(made.seeds),
        "shortened": made.shortened,
        "hours": made.hours,
        "memory": made.memory,
        "recipes": {name: to_dict(recipe) for name, recipe in made.recipes.items()},
    }
    atomic.write_atomic(out / PLAN, strict_json.seal(content))
    return made


def begun(out: Path, result: Result, experiment: Experiment, seeds: Sequence[int]) -> Plan | None:
    """The plan in the folder; None where there is none. Raises: UsageError when it is another's; DataError."""
    path = out / PLAN
    if not path.exists():
        return None
    try:
        kept = strict_json.unseal(atomic.read(path, atomic.TEXT))
        own = (result.id, experiment.data, list(seeds), [arm.name for arm in experiment.arms])
        if (kept["result"], kept["data"], kept["seeds"], list(kept["recipes"])) != own:
            words = f"{kept['result']} on {kept['data']}, seeds {kept['seeds']}, of {', '.join(kept['recipes'])}"
            raise UsageError(f"{out} holds another experiment ({words}); choose another folder with --out")
        recipes = {name: from_dict(recipe) for name, recipe in kept["recipes"].items()}
        return Plan(result, experiment, tuple(seeds), recipes, float(kept["shortened"]), kept.get("hours"),
                    kept.get("memory"))  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and the same command plans anew") from error
