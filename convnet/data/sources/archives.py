"""What lies in a tar or a zip? Class folders, WebDataset samples, CIFAR's files, or tars of classes; read in place."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from convnet.data.sources.folder import folder_source
from convnet.data.sources.listing import LIST_SUFFIXES, ByteReader, File, Parts, Source, read_entry, shown
from convnet.data.sources.published.cifar import cifar_of, is_cifar
from convnet.data.sources.published.idx import is_idx
from convnet.data.sources.published.ilsvrc import is_class_tar, open_class_tars
from convnet.data.sources.tars import BLOCK, compression, is_tar, list_tar, unpack
from convnet.data.sources.webdataset import Shard, is_shard, open_shards
from convnet.data.sources.zips import is_zip, list_zip, read_zipped
from convnet.errors import UsageError

PACKED = re.compile(r".+\.(zip|tar(\.\w+)?|tgz|tbz2?|txz|7z|rar)", re.I)
ABOUT = re.compile(r"readme|licen[cs]e", re.I)  # texts that are no lists
OURS = re.compile(r"(train|val|test)-\d{5}\.tar")  # a shard of a store


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with these bytes (512) is a tar, plain or compressed, or a zip."""
    return is_zip(head) or is_tar(head)


def open_archive(path: Path, work: Path | None, choice: str | None = None) -> Source:
    """The source of a tar or zip; a compressed tar is unpacked to `work`/source.tar. choice: as in `folder_source`.

    Raises: UsageError when it holds something else, or is compressed and `work` is None; DataError when it is damaged.
    """
    if OURS.fullmatch(path.name) and (path.parent / "store.json").is_file():
        raise UsageError(f"{shown(path)} is a shard of the store {shown(path.parent)}; point at the store")
    is_tar, (members, folders), read = _members(path, work)
    files = [file for file in members if file.problem is None or file.problem[0] == "skipped"]
    if is_tar and any(is_class_tar(file.parts[-1]) for file in files):
        return open_class_tars(path, members)
    in_folder: dict[Parts, dict[str, File]] = {}
    for file in files:
        in_folder.setdefault(file.parts[:-1], {})[file.parts[-1]] = file
    for folder, inside in in_folder.items():
        if is_cifar(inside):
            return cifar_of(
                {name: partial(read, file.entry()) for name, file in inside.items()}, path.joinpath(*folder)
            )
    if is_tar and is_shard(members):
        return open_shards(path, [Shard((), "train", members)])
    _refuse_packed(path, files)
    lists = [file.key for file in files if len(file.parts) < 3 and _may_be_list(file.parts[-1])]
    what = "tar" if is_tar else "zip"
    note = f"{', '.join(lists[:3])} in the {what} is not read: unpack it to have a list decide"
    try:
        source = folder_source(members, folders, path, f"{what} of class folders", read, choice)
    except UsageError as error:
        raise UsageError(f"{error}; {note}") if lists else error from error
    return replace(source, notes=(*source.notes, note)) if lists and "class folders" in source.kind else source


def _members(path: Path, work: Path | None) -> tuple[bool, tuple[list[File], list[Parts]], ByteReader]:
    """Whether an archive is a tar, its files and folders, and how a file is read."""
    with open(path, "rb") as file:
        head = file.read(BLOCK)
    if is_zip(head):
        return False, list_zip(path), read_zipped
    if (kind := compression(head)) is None:
        return True, list_tar(path), read_entry
    if work is None:
        raise UsageError(f"{shown(path)} is compressed ({kind}) and can't be read in place; unpack it first")
    return True, list_tar(unpack(path, kind, work / "source.tar"), shown(path)), read_entry


def _refuse_packed(path: Path, files: list[File]) -> None:
    """Raises: UsageError when an archive holds other archives or a data set's files, and no pictures."""
    names = [file.parts[-1] for file in files]
    packed = [shown(name) for name in names if PACKED.fullmatch(name)]
    if all(file.problem for file in files) and (packed or is_idx(names)):
        what = f"other archives ({', '.join(packed[:3])})" if packed else "IDX files"
        raise UsageError(f"{shown(path)} holds {what}, no pictures; unpack it and point at what it holds")


def _may_be_list(name: str) -> bool:
    return name.lower().endswith(LIST_SUFFIXES) and not ABOUT.match(name)
