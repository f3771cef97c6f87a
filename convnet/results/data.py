"""Which pictures is a result tried on? A source, of which stores are made, or a store that is there already."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from convnet.data.prepare import holds, prepare, settings_for
from convnet.data.sources import Source, open_source
from convnet.data.store import Store
from convnet.data.store_header import is_store
from convnet.errors import UsageError
from convnet.progress import SILENT, Progress
from convnet.recipe import Recipe
from convnet.results import Experiment, Result, wanted


@dataclass(frozen=True)
class Data:
    """n: pictures of each split. store: None where stores are made of the source."""

    name: str
    kind: str
    classes: tuple[str, ...]
    n: Counter[str]
    source: Source | None = None
    store: Store | None = None

    @classmethod
    def at(cls, place: str, progress: Progress = SILENT) -> "Data":
        """What a user points at. Raises: as `open_source` and `Store`."""
        if is_store(Path(place)):
            return cls.of(Store(place, progress))
        return cls.of(open_source(place))

    @classmethod
    def of(cls, pictures: Source | Store) -> "Data":
        if isinstance(pictures, Source):
            n = Counter(entry.split for entry in pictures.entries)
            return cls(pictures.name, pictures.kind, pictures.classes, n, source=pictures)
        source, n = pictures.header["source"], Counter({name: split.n for name, split in pictures.splits.items()})
        return cls(source["name"], source["kind"], pictures.classes, n, store=pictures)

    @property
    def n_tested(self) -> int:
        return self.n["test"] or self.n["val"]

    def serves(self, result: Result) -> Experiment | None:
        """The result's experiment on such data; None where there is none."""
        with suppress(UsageError):
            return result.experiment(self.kind, self.classes)
        return None

    def lacks(self, experiment: Experiment) -> Iterator[str]:
        """What the experiment's data had more of, in words."""
        least = wanted()[experiment.data]
        here = {"classes": len(self.classes), "training pictures": self.n["train"], "test pictures": self.n_tested}
        there = (2, 1, 1) if least.free else (least.classes, least.train, least.tested)
        for (what, n), enough in zip(here.items(), there, strict=True):
            if n < enough:
                yield f"{n:,} {what} of {enough:,}"

    def check(self, recipes: Mapping[str, Recipe]) -> None:
        """Raises: UsageError when the pictures lie in a store that isn't as the recipes want it."""
        if (store := self.store) is None:
            return
        for name, recipe in recipes.items():
            if (store.size, store.shorter_side, store.fit) != (recipe.size, recipe.size, "crop"):
                raise UsageError(
                    f"{store.path} holds pictures of {store.size} pixels in a shorter side of {store.shorter_side} by "
                    f"{store.fit}, and {name} wants {recipe.size} in {recipe.size} by crop; give --data the pictures "
                    f"themselves, or a store made by convnet prepare --size {recipe.size}"
                )

    def store_for(self, out: Path, size: int, progress: Progress) -> Store:
        """The store of that size in the experiment's folder, made if it isn't there; or the one that was given."""
        if self.source is None:
            assert self.store is not None
            return self.store
        path, settings = out / f"store-{size}", settings_for(self.source, size, "raw", None)
        if is_store(path) and holds(path, self.source, settings):
            return Store(path, progress)
        return prepare(self.source, path, size=size, progress=progress)

    def whole_pictures(self, out: Path, side: int, progress: Progress) -> Store:
        """The test pictures whole, their shorter side of `side` pixels, for views that see more than the square."""
        if self.source is None:
            assert self.store is not None
            return self.store
        entries, tested = self.source.entries, "test" if self.n["test"] else "val"
        first = {entry.label: entry for entry in reversed(entries) if entry.split == "train"}  # no store is without
        kept = [entry for entry in entries if entry.split == tested or entry is first.get(entry.label)]
        source, path = replace(self.source, entries=kept), out / f"tested-{side}"
        if is_store(path) and holds(path, source, settings_for(source, side, "jpeg", side)):
            return Store(path, progress)
        return prepare(source, path, size=side, encoding="jpeg", progress=progress)
