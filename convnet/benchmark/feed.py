"""Does the loader keep up? Alone, and with the training step behind it, against the step on pictures in memory."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnet.benchmark.forms import Case, fresh
from convnet.data import device_loader, preprocess
from convnet.data.loader import Batch, Loader
from convnet.data.prepare import prepare
from convnet.data.sources import Entry, Source
from convnet.data.sources.listing import IN_MEMORY
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.progress import SILENT
from convnet.training.micro_batch import peak_bytes
from convnet.training.step import EagerSteps, choose

PICTURES = 1024  # in the store that is made for the measurement
CLASSES = 10


class Feed(NamedTuple):
    """What to call, and how many pictures each call goes through, by name."""

    works: dict[str, Callable[[], object]]
    pictures: dict[str, int]


FIRST, LATER, COMPUTE, PIPELINE = "loader, first pass", "loader", "compute only", "pipeline"


@contextmanager
def opened(store: Path | None, of: Case, pictures: int = PICTURES) -> Iterator[Store]:
    """The store at `store`, or one of random pictures of the recipe's size in a temporary folder, gone afterwards.

    Raises: UsageError when the store's pictures have another size than the recipe of the net wants.
    """
    if store is not None:
        found = Store(store)
        if found.size != of.recipe.size:
            raise UsageError(f"--store {store} holds pictures of {found.size} pixels, recipe {of.recipe.name} wants "
                             f"{of.recipe.size}; name a net that fits first, or leave --store out")  # fmt: skip
        yield found
        return
    with TemporaryDirectory(prefix="convnet-benchmark-") as folder:
        yield prepare(random_pictures(of.recipe.size, pictures), Path(folder) / "store", size=of.recipe.size)


def random_pictures(size: int, n: int) -> Source:
    """A source of n pictures of noise, for training only."""

    def read(entry: Entry) -> NDArray[np.uint8]:
        return np.random.default_rng(int(entry.key)).integers(0, 256, (size, size, 3), np.uint8)

    entries = [Entry(f"{i:06d}", "train", i * CLASSES // n, IN_MEMORY, str(i)) for i in range(n)]
    classes = tuple(str(label) for label in range(CLASSES))
    return Source("random", "random pictures", classes, entries, (), (), size, (), read)


def feed(of: Case, store: Store, batches: int, workers: int, with_step: bool = True) -> Feed:
    """Passes of so many whole batches: through the loader alone and, with the step, through step alone and both.

    The first pass looks at each record's sum, as the first epoch of a training does; later ones don't. A store with
    fewer pictures than a pass has is gone through several times; the first pass is shorter then.
    """
    recipe, where = of.recipe, of.where
    net = where.take(fresh(of, len(store.classes)))
    step = EagerSteps(net, recipe, where)
    split, n = store.split("train"), batches * of.batch
    ids = np.resize(np.arange(split.n), n)
    means = store.mean_picture, store.statistics.mean_rgb
    how = preprocess.of_recipe(recipe, *means, store.shorter_side, store.fit)
    loader = Loader(split, store.statistics, ids, recipe, how, where.device, workers, step.input_dtype)
    fed = device_loader.choose(loader, "auto", lambda: peak_bytes(step, of.shape), SILENT)  # as training does
    epochs, numbers = count(), count()

    def through(loader: device_loader.Feed) -> None:
        for _ in loader.epoch(next(epochs)):
            pass

    def first() -> None:
        through(replace(loader, split=Store(store.path).split("train"), ids=ids[: split.n]))

    works: dict[str, Callable[[], object]] = {FIRST: first, LATER: lambda: through(fed)}
    if with_step:
        kept, steps = next(iter(fed.epoch(0))), choose(step, lambda text: None)

        def train(stream: Iterable[Batch]) -> None:
            for batch in stream:
                steps.forward_backward(batch, next(numbers))
                steps.update(recipe.lr)

        works |= {COMPUTE: lambda: train([kept] * batches), PIPELINE: lambda: train(fed.epoch(next(epochs)))}
    return Feed(works, dict.fromkeys(works, n) | {FIRST: min(n, split.n)})
