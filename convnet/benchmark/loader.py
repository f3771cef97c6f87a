"""The loader, alone and with the training step behind it, against the step on pictures in memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from convnet.benchmark.forms import Case, new_net, placed
from convnet.benchmark.timing import Work
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
FIRST, LATER, COMPUTE, PIPELINE = "loader, first pass", "loader", "compute only", "pipeline"
PLACES: dict[str, device_loader.Resident] = {f"{PIPELINE}, 4:2:0": "420", f"{PIPELINE}, copied": "no"}  # on CUDA too


@contextmanager
def opened(store: Path | None, case: Case, pictures: int = PICTURES) -> Iterator[Store]:
    """The store at `store`, or one of random pictures of the recipe's size in a temporary folder, gone afterwards.

    Raises: UsageError when the store's pictures have another size than the recipe of the net wants.
    """
    if store is not None:
        given = Store(store)
        if given.size != case.recipe.size:
            raise UsageError(f"--store {store} holds pictures of {given.size} pixels, recipe {case.recipe.name} wants "
                             f"{case.recipe.size}; name a net that fits first, or leave --store out")  # fmt: skip
        yield given
        return
    with TemporaryDirectory(prefix="convnet-benchmark-") as folder:
        yield prepare(random_pictures(case.recipe.size, pictures), Path(folder) / "store", size=case.recipe.size)


def random_pictures(size: int, n: int) -> Source:
    """A source of n pictures of noise, for training only."""

    def read(entry: Entry) -> NDArray[np.uint8]:
        return np.random.default_rng(int(entry.key)).integers(0, 256, (size, size, 3), np.uint8)

    entries = [Entry(f"{i:06d}", "train", i * CLASSES // n, IN_MEMORY, str(i)) for i in range(n)]
    classes = tuple(str(label) for label in range(CLASSES))
    return Source("random", "random pictures", classes, entries, (), (), size, (), read)


def passes(
    case: Case, store: Store, batches: int, workers: int, with_step: bool = True
) -> tuple[dict[str, Work], dict[str, int]]:
    """(passes of so many whole batches, the pictures that each goes through), by name.

    Through the loader alone and, with the step, through step alone and both; on CUDA in each place where the pictures
    may lie. The first pass looks at each record's sum, as the first epoch of a training does; later ones don't. A store
    with fewer pictures than a pass has is gone through several times; the first pass is shorter then.
    """
    recipe = case.recipe
    net, where = placed(new_net(case, len(store.classes)), case)
    step = EagerSteps(net, recipe, where)
    split, n = store.split("train"), batches * case.batch
    ids = np.resize(np.arange(split.n), n)
    means = store.mean_picture, store.statistics.mean_rgb
    preprocessing = preprocess.of_recipe(recipe, *means, store.shorter_side, store.fit)
    loader = Loader(split, store.statistics, ids, recipe, preprocessing, where.device, workers, step.input_dtype)

    def resident(place: device_loader.Resident) -> device_loader.Feed:  # chosen as training does
        return device_loader.choose(loader, place, lambda: peak_bytes(step, case.shape), SILENT)

    feed, epochs, numbers = resident("auto"), count(), count()

    def read(loader: device_loader.Feed) -> None:
        for _ in loader.epoch(next(epochs)):
            pass

    def first() -> None:
        read(replace(loader, split=Store(store.path).split("train"), ids=ids[: split.n]))

    works: dict[str, Work] = {FIRST: first, LATER: lambda: read(feed)}
    if with_step:
        batch, steps = next(iter(feed.epoch(0))), choose(step, lambda text: None)

        def train(stream: Iterable[Batch]) -> None:
            for batch in stream:
                steps.forward_backward(batch, next(numbers))
                steps.update(recipe.lr)

        def pipeline(feed: device_loader.Feed) -> Work:
            return lambda: train(feed.epoch(next(epochs)))

        works |= {COMPUTE: lambda: train([batch] * batches), PIPELINE: pipeline(feed)}
        if where.device.type == "cuda":
            works |= {name: pipeline(resident(place)) for name, place in PLACES.items()}
    return works, dict.fromkeys(works, n) | {FIRST: min(n, split.n)}
