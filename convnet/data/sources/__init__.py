"""What does the user point at? A `Source`: a listing of (key, split, label) with a way to read each picture.

source         recognised by
digits         the word `digits`
tar, zip       a file that is one, plain or compressed: class folders, shards, CIFAR, tars of classes
list           a .txt, .csv or .tsv file of (name, class), or a folder of pictures with one beside them
ILSVRC         ILSVRC2012_img_train.tar, n*.tar, or a flat folder of ILSVRC2012_val_*.JPEG; 2010's likewise
WebDataset     a tar of KEY.jpg and KEY.cls, or a folder of such tars
CIFAR          data_batch_*, or CIFAR-100's train and test; binary or python
IDX            *train-images-idx3-ubyte, plain or .gz, in the folder or in MNIST/raw; or one such file
class folders  any other folder
"""

import errno
import os
import stat
from pathlib import Path

from convnet.data.image_formats import sniff
from convnet.data.sources.archives import is_archive, open_archive
from convnet.data.sources.columns import ANY, ColumnNames
from convnet.data.sources.folder import open_folder
from convnet.data.sources.listing import LIST_SUFFIXES, SPLITS, Entry, Source, hold_out, reason_of, shown
from convnet.data.sources.lists import open_list, refuse_unread
from convnet.data.sources.published.cifar import cifar_folders, is_cifar, open_cifar
from convnet.data.sources.published.digits import open_digits
from convnet.data.sources.published.idx import NAME as IDX_NAME
from convnet.data.sources.published.idx import idx_folders, is_idx, open_idx
from convnet.data.sources.published.ilsvrc import is_ilsvrc, open_ilsvrc
from convnet.data.sources.webdataset import open_shards, shards_in
from convnet.errors import DataError, UsageError
from convnet.io.atomic import PathLike, as_path, what_is

BESIDE_ARRAYS = ("processed", "__MACOSX")  # folders that torchvision and macOS leave there

__all__ = ["ANY", "SPLITS", "ColumnNames", "Entry", "Source", "open_source"]


def open_source(
    path: PathLike,
    *,
    split: float = 0.1,
    seed: int = 0,
    into: str = "val",
    work: Path | None = None,
    columns: ColumnNames = ANY,
    layout: str | None = None,
) -> Source:
    """The listing of what `path` points at; of a source without splits a part `split`, sampled by `seed`, is `into`.

    A compressed tar is unpacked to `work`/source.tar. `columns`: which columns of a list are to be read.
    `layout`: folders (they decide, not a list beside them), outer or inner (of two that could be the class).
    Raises: UsageError when it is none of the kinds or lacks a part; DataError when a file of it is damaged.
    """
    if not 0 <= split < 1:
        raise UsageError(f"split {split:g} is not in 0 <= split < 1; it is the part of each class that goes to {into}")
    if into not in SPLITS[1:]:
        raise UsageError(f"--as {into}: the divided part goes to val or to test")
    source = open_digits() if str(path) == "digits" else _open(as_path(path, "the source"), work, columns, layout)
    if columns and not source.kind.startswith("list"):
        raise UsageError(f"{path} is no list but {source.kind}; --name-column and its like are for lists")
    if layout and "class folders" not in source.kind:
        raise UsageError(f"{path} is {source.kind}, without class folders; --layout is for these")
    return hold_out(source, split, seed, into)


def _open(path: Path, work: Path | None, columns: ColumnNames, layout: str | None) -> Source:
    try:
        return (_folder if path.is_dir() else _file)(path, work, columns, layout)
    except OSError as error:
        place = error.filename if isinstance(error.filename, str | Path) else path
        raise DataError(f"{shown(place)} can't be read: {reason_of(error)}") from error


def _folder(path: Path, work: Path | None, columns: ColumnNames, layout: str | None) -> Source:
    names = os.listdir(path)
    if "store.json" in names:
        raise UsageError(f"{shown(path)} is already a store; give it to train, or point at the pictures it was made of")
    if is_ilsvrc(path, names):
        return open_ilsvrc(path)
    if is_cifar(name for name in names if (path / name).is_file()):
        return open_cifar(path)
    if is_idx(names):
        return open_idx(path)
    if (arrays := _one_set(path, names)) is not None:
        return _open(arrays, work, columns, layout)
    if shards := shards_in(path, names):
        return open_shards(path, shards)
    return open_folder(path, names, layout, columns)


def _one_set(path: Path, names: list[str]) -> Path | None:
    """The data set of arrays below a folder, as torchvision's root has it: cifar-10-batches-py, MNIST/raw.

    Raises: UsageError when there are several, or other folders.
    """
    inside = [folder.relative_to(path) for folder in (*cifar_folders(path, names), *idx_folders(path, names))]
    if not inside:
        return None
    known = {*BESIDE_ARRAYS, *(folder.parts[0] for folder in inside)}
    others = [name for name in sorted(names) if name not in known and name[0] != "." and (path / name).is_dir()]
    if len(inside) > 1 or others:
        what = f"several data sets: {', '.join(map(shown, inside))}"
        what = f"{shown(inside[0])} and {others[0]!r}" if len(inside) == 1 else what
        raise UsageError(f"{shown(path)} holds {what}; point at one of them")
    return path / inside[0]


def _file(path: Path, work: Path | None, columns: ColumnNames, layout: str | None) -> Source:
    try:
        status = path.stat()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        raise UsageError(
            f"{shown(path)}: no such file or folder; a source is a folder, a list, a tar, a zip or 'digits'"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{shown(path)} is {what_is(status.st_mode)}; a source is a folder, a list, a tar or a zip")
    with open(path, "rb") as file:
        head = file.read(512)
    if (match := IDX_NAME.fullmatch(path.name)) is not None:
        return open_idx(path.parent, match["prefix"])
    if is_archive(head):
        return open_archive(path, work, layout)
    if path.name.lower().endswith(LIST_SUFFIXES):
        return open_list(path, columns)
    refuse_unread(path)
    what = f"one picture ({kind})" if (kind := sniff(head)) else "neither a tar or zip nor a list (.txt, .csv, .tsv)"
    raise UsageError(f"{shown(path)} is {what}; a source is a folder of labelled pictures, a list, a tar or a zip")
