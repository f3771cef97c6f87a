"""At which rate do the weights move in each epoch? A function of the past alone, so resuming has nothing to restore."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from convnet.errors import UsageError
from convnet.recipe import Recipe

Hand = Sequence[tuple[int, float]]  # (epoch, the rate that somebody gave it from there on), in order


def rate(recipe: Recipe, epoch: int, validation_errors: Sequence[float], hand: Hand = ()) -> float:
    """The learning rate of `epoch` (the first is 1).

    validation_errors[i] is the validation error after epoch i + 1; only those before `epoch` count. After a change by
    hand the schedule goes on from there: it falls by the same factors, and waits anew for a plateau.

    >>> rate(Recipe(patience=2), 4, [0.5, 0.6, 0.5])  # epochs 2 and 3 were no better than epoch 1
    0.001
    """
    hand = [change for change in hand if change[0] <= epoch]
    if not hand:
        return _scheduled(recipe, epoch, validation_errors, ())
    (begin, lr), restarts = hand[-1], [at for at, _ in hand]
    now, then = (_scheduled(recipe, at, validation_errors, restarts) for at in (epoch, begin))
    return lr * (now / then)


def _scheduled(recipe: Recipe, epoch: int, validation_errors: Sequence[float], restarts: Sequence[int]) -> float:
    warmth = min(1.0, epoch / (recipe.warm_up + 1))
    if recipe.schedule == "cosine":
        return warmth * recipe.lr * (1 + math.cos(math.pi * (epoch - 1) / recipe.epochs)) / 2
    if recipe.schedule == "steps":
        drops = sum(step <= epoch for step in recipe.lr_steps)
    else:
        drops = min(_plateaus(recipe.patience, validation_errors[: epoch - 1], restarts), recipe.lr_drops)
    return warmth * recipe.lr / recipe.lr_divisor**drops


def finished(recipe: Recipe, epoch: int, validation_errors: Sequence[float], hand: Hand = ()) -> bool:
    """True when training ends before `epoch`: the epochs are used up, or a plateau came after the last drop."""
    if epoch > recipe.epochs:
        return True
    if recipe.schedule != "plateau":
        return False
    plateaus = _plateaus(recipe.patience, validation_errors[: epoch - 1], [at for at, _ in hand])
    return plateaus > recipe.lr_drops


def _plateaus(patience: int, errors: Sequence[float], restarts: Sequence[int]) -> int:
    """How often the best error so far stood for `patience` epochs in a row; each time the count begins anew.

    restarts: epochs before which it begins anew as well.
    """
    best, waited, plateaus = float("inf"), 0, 0
    for epoch, error in enumerate(errors, 1):
        if epoch in restarts:
            waited = 0
        if error < best:
            best, waited = error, 0
        else:
            waited += 1
        if waited == patience:
            waited, plateaus = 0, plateaus + 1
    return plateaus


def by_layer(table: Mapping[str, float], parameters: Iterable[str], epoch: int, field: str) -> dict[str, float]:
    """The numbers that a table of a recipe gives to parameters in `epoch`; those that it doesn't name are left out.

    A key is a layer, a parameter or a pattern of names (`conv1`, `conv1.bias`, `conv*`), then, where it holds only from
    an epoch on, @ and the epoch. The longest name counts, names before patterns, of one name the last that has begun.

    Raises: UsageError where two patterns name one parameter.

    >>> by_layer({"fc8": 10, "conv*": 0, "fc8@5": 1}, ["conv1.weight", "fc7.weight", "fc8.weight"], 5, "layer_lr")
    {'conv1.weight': 0, 'fc8.weight': 1}
    """
    entries = _entries(table)
    chosen = {name: entries.get(_key(entries, name, field) or "", {}) for name in parameters}
    begun = {name: [begin for begin in numbers if begin <= epoch] for name, numbers in chosen.items()}
    return {name: chosen[name][max(epochs)] for name, epochs in begun.items() if epochs}


def frozen(recipe: Recipe, parameters: Iterable[str]) -> list[str]:
    """The parameters whose rate is 0 in all epochs: nothing of them is learned, no gradient is computed."""
    entries = _entries(recipe.layer_lr)
    keys = {name: _key(entries, name, "layer_lr") for name in parameters}
    return [name for name, key in keys.items() if key and not any(entries[key].values()) and 1 in entries[key]]


def check_layers(recipe: Recipe, parameters: Iterable[str]) -> None:
    """Raises: UsageError for a layer in a table of the recipe that the net doesn't have, or that is named twice."""
    names = list(parameters)
    for field, table in (("layer_lr", recipe.layer_lr), ("layer_decay", recipe.layer_decay)):
        by_layer(table, names, 1, field)
        for key in _entries(table):
            if not any(fnmatchcase(prefix, key) for name in names for prefix in _prefixes(name)):
                layers = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
                raise UsageError(f"{field}: {recipe.net} has no layer {key!r}; it has {layers}")


def _entries(table: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """{name or pattern: {epoch from which it holds: number}}"""
    entries: dict[str, dict[int, float]] = {}
    for key, number in table.items():
        name, _, begin = key.partition("@")
        entries.setdefault(name, {})[int(begin or 1)] = number
    return entries


def _prefixes(name: str) -> list[str]:
    """conv2.0.weight -> conv2.0.weight, conv2.0, conv2."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _key(entries: Mapping[str, object], parameter: str, field: str) -> str | None:
    """The entry that counts for a parameter."""
    for prefix in _prefixes(parameter):
        if prefix in entries:
            return prefix
    patterns = [key for key in entries if any(fnmatchcase(prefix, key) for prefix in _prefixes(parameter))]
    if len(patterns) > 1:
        raise UsageError(f"{field}: {parameter} is named by {' and by '.join(map(repr, patterns))}; which counts?")
    return patterns[0] if patterns else None
