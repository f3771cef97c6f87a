"""A store for any training loop: a map-style dataset of torch's own DataLoader."""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split, Store
from convnet.evaluation.pictures import check_gives, split_to_test
from convnet.evaluation.seen import from_store, to_images
from convnet.evaluation.views import protocol
from convnet.io import atomic

CPU = torch.device("cpu")


class StoreDataset(Dataset[tuple[Tensor, int]]):
    """The pictures of a store's split, in its order: item i is (picture, its class's number).

    store, split: as `TrainedNet.evaluate` takes them. preprocessing: a net's; the picture is then what the net sees of
    it, float32 (C, crop, crop), the loader's test picture to the last bit. None: uint8 (3, H, W), RGB, as stored, which
    torchvision's transforms take. transform: is called with the picture and gives what stands in its place.

    It can be pickled as far as `transform` can; each process opens the store for itself.

    Raises: UsageError when there is no such store or split, or it can't give what the net sees.
    """

    def __init__(
        self,
        store: Split | Store | atomic.PathLike,
        split: str | None = None,
        *,
        preprocessing: Preprocessing | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(store, Split):
            store = split_to_test(store if isinstance(store, Store) else Store(store), split)
        if preprocessing is not None:
            check_gives(store, protocol("single", preprocessing).looks, preprocessing)
        self.preprocessing, self.transform = preprocessing, transform
        self._place = store.store.path, store.name, store.store.classes
        self._split, self._process = store, os.getpid()

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by number."""
        return self._place[2]

    def __len__(self) -> int:
        return len(self._opened().labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Raises: IndexError; DataError naming the picture that is damaged."""
        split = self._opened()
        if not 0 <= i < split.n:
            raise IndexError(f"picture {i} of {split.n}")
        if self.preprocessing is None:
            picture = torch.from_numpy(split.picture(i).copy()).permute(2, 0, 1)
        else:
            picture = to_images(from_store(split, [i], self.preprocessing), self.preprocessing, CPU)[0]
        return picture if self.transform is None else self.transform(picture), int(split.labels[i])

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_split", "_process")}

    def _opened(self) -> Split:
        """The split, opened by this process: a worker that was forked can't go on with its parent's connections."""
        if getattr(self, "_process", None) != os.getpid():
            path, name, classes = self._place
            self._split = Store(path).with_labels_of(classes, "the dataset").split(name)
            self._process = os.getpid()
        return self._split
