"""What does the user point at? A `Source`: a listing of (key, split, label) with a way to read each picture.

source         told apart by
digits         the word `digits`
tar            a file that is a tar, plain or compressed
list           a .txt, .csv or .tsv file of (name, class), or a folder of pictures with one beside them
ILSVRC         ILSVRC2012_img_train.tar, n*.tar, or a flat folder of ILSVRC2012_val_*.JPEG
CIFAR          data_batch_*, or CIFAR-100's train and test; binary or python
IDX            *train-images-idx3-ubyte, plain or .gz
class folders  any other folder
"""

from pathlib import Path

from convnet.errors import UsageError
from convnet.sources.folders import open_folders
from convnet.sources.listing import SPLITS, Entry, Source

__all__ = ["SPLITS", "Entry", "Source", "open_source"]


def open_source(where: str | Path, *, split: float = 0.1, seed: int = 0, work: Path | None = None) -> Source:
    """The listing of what `where` points at; `split` and `seed` say how a source without splits is divided.

    A compressed tar is unpacked to `work`/source.tar.
    Raises: UsageError when it is none of the kinds or lacks a part; DataError when a file of it is damaged.
    """
    if not 0 <= split < 1:
        raise UsageError(f"split {split:g} is not in 0 <= split < 1; it is the part of each class that goes to val")
    return open_folders(Path(where), split, seed)
