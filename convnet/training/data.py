"""What does a run train and validate on?"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from convnet.data.index import Numbers
from convnet.data.store import Split, Store
from convnet.errors import UsageError
from convnet.io import rng
from convnet.recipe import Recipe


@dataclass(frozen=True)
class Data:
    """What a run trains and validates on: pictures of a store by their positions. `val` is None when there is none."""

    store: Store
    train: Split
    train_ids: Numbers
    val: Split | None
    val_ids: NDArray[np.int64]

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """(K,): what of the training pictures each class has."""
        ids = self.train_ids[: rng.SORTED]  # of more these are a random sample
        return np.bincount(self.train.labels[ids], minlength=len(self.store.classes)) / len(ids)

    @property
    def class_weights(self) -> NDArray[np.float32]:
        """(K,): what a picture's loss counts where all classes that there are count alike; 1 on the average."""
        counted = self.shares * (self.shares > 0).sum()
        return np.asarray([1 / share if share else 0 for share in counted], np.float32)

    @cached_property
    def folded(self) -> "Data":
        """All of train to train on, also what was held out for validation."""
        everything = np.union1d(self.train_ids[:], self.val_ids)
        return Data(self.store, self.train, everything, None, np.empty(0, np.int64))


def choose_data(recipe: Recipe, store: Store) -> Data:
    """What to train and validate on: the store's val split, or the share of train that the recipe holds out."""
    if store.size != recipe.size:
        raise UsageError(
            f"{store.path} holds pictures of {store.size} pixels, recipe {recipe.name} wants {recipe.size}; "
            f"prepare the source with --size {recipe.size}, or choose --set size={store.size} and a crop that fits"
        )
    split = store.split("train")
    if recipe.fold_epoch and not (recipe.validation and "val" not in store.splits):
        held = "has a val split of its own" if "val" in store.splits else "holds none out (validation = 0)"
        raise UsageError(
            f"fold_epoch = {recipe.fold_epoch}: from then on the pictures that were held out of train would be trained "
            f"on, but {store.path} {held}"
        )
    if "val" in store.splits and store.splits["val"].n:
        val = store.split("val")
        return Data(store, split, _all(split.n, recipe.seed), val, np.arange(val.n))
    held = round(recipe.validation * split.n)
    if held >= split.n:
        raise UsageError(f"validation = {recipe.validation:g} leaves none of the {split.n} pictures to train on")
    if held:
        order = rng.order(split.n, recipe.seed, rng.stream("validation"))
        rest = np.sort(order[held:]) if isinstance(order, np.ndarray) else order.after(held)
        return Data(store, split, rest, split, np.sort(order[:held]))
    if recipe.schedule == "plateau":
        raise UsageError(
            f"recipe {recipe.name} lowers its rate by the validation error, but {store.path} has no val split; "
            "hold out a part of train with --set validation=0.1"
        )
    return Data(store, split, _all(split.n, recipe.seed), None, np.empty(0, np.int64))


def _all(n: int, seed: int) -> Numbers:
    """All pictures: 0 .. n-1, of very many in an order that is computed, so that no list of them is needed."""
    return np.arange(n) if n <= rng.SORTED else rng.order(n, seed, rng.stream("validation"))
