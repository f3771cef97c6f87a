"""What lies in a tar or a zip? Class folders, WebDataset samples, CIFAR's files, or tars of classes; read in place."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from convnet.data.sources.arrange import arrange
from convnet.data.sources.listing import Entry, Found, Parts, Source, read_piece, shown
from convnet.data.sources.published.cifar import cifar_of, is_cifar
from convnet.data.sources.published.idx import is_idx
from convnet.data.sources.published.ilsvrc import is_class_tar, open_class_tars
from convnet.data.sources.tars import BLOCK, is_tar, list_tar, packing, unpack
from convnet.data.sources.webdataset import Shard, is_shard, open_shards
from convnet.data.sources.zips import is_zip, list_zip, read_zipped
from convnet.errors import UsageError

PACKED = re.compile(r".+\.(zip|tar(\.\w+)?|tgz|tbz2?|txz|7z|rar)", re.I)
LISTS = re.compile(r"(?!readme|licen[cs]e).+\.(csv|tsv|txt)", re.I)
OURS = re.compile(r"(train|val|test)-\d{5}\.tar")  # a shard of a store


@dataclass(frozen=True)
class Archive:
    """An archive that was listed: the file a user named, what it is, its files and folders, how one is read."""

    where: Path
    what: str
    found: list[Found]
    folders: list[Parts]
    read: Callable[[Entry], bytes]


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with these bytes (512) is a tar, plain or compressed, or a zip."""
    return is_zip(head) or is_tar(head)


def open_archive(where: Path, work: Path | None, choice: str | None = None) -> Source:
    """The source of a tar or zip; a compressed tar is unpacked to `work`/source.tar first. choice: as in `arrange`.

    Raises: UsageError when it holds something else, or is compressed and `work` is None; DataError when it is damaged.
    """
    if OURS.fullmatch(where.name) and (where.parent / "store.json").is_file():
        raise UsageError(f"{shown(where)} is a shard of the store {shown(where.parent)}; point at the store")
    archive = _listed(where, work)
    files = [file for file in archive.found if file.problem is None or file.problem[0] == "skipped"]
    if archive.what == "tar" and any(is_class_tar(file.parts[-1]) for file in files):
        return open_class_tars(where, archive.found)
    folders: dict[Parts, dict[str, Found]] = {}
    for file in files:
        folders.setdefault(file.parts[:-1], {})[file.parts[-1]] = file
    for folder, inside in folders.items():
        if is_cifar(inside):
            readers = {name: _reader(archive, file) for name, file in inside.items()}
            return cifar_of(readers, where.joinpath(*folder))
    if archive.what == "tar" and is_shard(archive.found):
        return open_shards(where, [Shard((), "train", archive.found)])
    return _class_folders(archive, files, choice)


def _listed(where: Path, work: Path | None) -> Archive:
    with open(where, "rb") as file:
        head = file.read(BLOCK)
    if is_zip(head):
        return Archive(where, "zip", *list_zip(where), read_zipped)
    path = where
    if (how := packing(head)) is not None:
        if work is None:
            raise UsageError(f"{shown(where)} is compressed ({how}) and can't be read in place; unpack it first")
        path = unpack(where, how, work / "source.tar")
    return Archive(where, "tar", *list_tar(path, shown(where)), read_piece)


def _reader(archive: Archive, file: Found) -> Callable[[], bytes]:
    return lambda: archive.read(Entry("/".join(file.parts), "train", 0, file.place, file.stamp))


def _class_folders(archive: Archive, files: list[Found], choice: str | None) -> Source:
    """The source of an archive of class folders.

    Raises: UsageError when it holds other archives, a data set's files or a list in their place.
    """
    names = [file.parts[-1] for file in files]
    pictures = [file for file in files if file.problem is None]
    packed = [shown(name) for name in names if PACKED.fullmatch(name)]
    if not pictures and (packed or is_idx(names)):
        what = f"other archives ({', '.join(packed[:3])})" if packed else "IDX files"
        raise UsageError(f"{shown(archive.where)} holds {what}, no pictures; unpack it and point at what it holds")
    lists = ["/".join(file.parts) for file in files if len(file.parts) < 3 and LISTS.fullmatch(file.parts[-1])]
    told = f"{', '.join(lists[:3])} in the {archive.what} is not read: unpack it to have a list decide"
    try:
        kind = f"{archive.what} of class folders"
        source = arrange(archive.found, archive.folders, archive.where, kind, archive.read, choice)
    except UsageError as error:
        raise UsageError(f"{error}; {told}") if lists else error from error
    return replace(source, notes=(*source.notes, told)) if lists and source.kind == kind else source
