"""ILSVRC as ImageNet hands it out: tars of tars for training, flat pictures and a ground truth for the other splits.

training     ILSVRC2012_img_train.tar or ILSVRC2010_images_train.tar, or n*.tar or n*/ in train/, in a folder called as
             that tar, or in the folder itself; the Fall releases are such tars too
val, test    the same with val or test: flat pictures called ILSVRC2012_val_00000001.JPEG, or in folders of wnids
its labels   devkit.py; test pictures of years whose labels were never published are left out

Classes are the wnids, sorted. Kaggle's ILSVRC/Data/CLS-LOC is gone down to.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from convnet.data.sources.listing import (
    LIST_SUFFIXES,
    Entry,
    File,
    Source,
    failed,
    make_source,
    pread,
    read_entry,
    shown,
    skipped,
    stamp_of,
)
from convnet.data.sources.published.devkit import DEVKIT, META, PICTURE, SYNSETS, WNID, ground_truth, names_in
from convnet.data.sources.tars import list_nested, list_tar
from convnet.data.sources.walk import walk
from convnet.errors import UsageError

KAGGLE = Path("ILSVRC/Data/CLS-LOC")
TAR = r"ILSVRC(20\d\d)_(?:img|images)_{}\w*"  # a split's tar, or its folder
PARTS = ("train", "val", "test")  # the order in which labels are looked for


def is_class_tar(name: str) -> bool:
    """Whether a file of this name is the tar of a class, as n01440764.tar."""
    return re.fullmatch(r"n\d{8}\.tar", name) is not None


def is_ilsvrc(path: Path, names: list[str]) -> bool:
    """Whether a folder with these names is ILSVRC's own, or holds tars of classes."""
    root = path / KAGGLE
    if "ILSVRC" in names and root.is_dir():
        return is_ilsvrc(root, os.listdir(root))
    if any(is_class_tar(name) or _is_tar_of(name, part) for name in names for part in PARTS):
        return True
    train = [name for folder in _folders(path, "train")[:-1] for name in names_in(folder)]
    if any(map(is_class_tar, train)):
        return True
    flat = (name for part in PARTS[1:] for folder in _folders(path, part) for name in names_in(folder))
    return any(WNID.fullmatch(name) for name in [*train, *names]) and any(map(PICTURE.fullmatch, flat))


def open_ilsvrc(path: Path) -> Source:
    """The source of ILSVRC's own files.

    Raises: UsageError when training pictures or a ground truth are missing; DataError when a file is damaged.
    """
    root = path / KAGGLE if (path / KAGGLE).is_dir() else path
    train = _training(root)
    classes = tuple(
        sorted({file.parts[-2] for file in train if len(file.parts) > 1 and WNID.fullmatch(file.parts[-2])})
    )
    if not classes:
        raise UsageError(f"{shown(path)}: no training pictures; put ILSVRC2012_img_train.tar or its n*.tar there")
    labels = {wnid: label for label, wnid in enumerate(classes)}
    entries, left_out = _labelled(train, "train", labels, {})
    notes, years = list[str](), set[str]()
    places = [path, *dict.fromkeys(folder for part in PARTS[1:] for folder in (root, *_folders(root, part)))]
    for part in PARTS[1:]:
        pictures, others = _flat(root, part)
        left_out += others
        years |= {match["year"] for file in pictures if (match := PICTURE.fullmatch(file.parts[-1]))}
        if len(years) > 1:
            raise UsageError(f"{shown(path)} holds pictures of ILSVRC {' and '.join(sorted(years))}; keep one of them")
        truth: dict[int, str] | None = {}
        if any(len(file.parts) == 2 for file in pictures):
            unpublished = f"{len(pictures):,} test pictures have no published labels and were left out"
            truth, note = ground_truth(path, places, min(years), part, classes) or (None, unpublished)
            notes.append(note)
        made, others = _labelled(pictures, part, labels, truth, "".join(years))
        entries += made
        left_out += others
    left_out += _rest(root)
    kind = f"ILSVRC {years.pop()}" if years else "ImageNet's classes"
    return make_source(path, kind, classes, entries, left_out, notes, read_entry, "imagenet")


def open_class_tars(path: Path, members: list[File]) -> Source:
    """The source of a tar of tars of classes, as the Fall releases and ILSVRC's training pictures are published."""
    train = _nested(path, members)
    classes = tuple(sorted({file.parts[1] for file in train if file.problem is None}))
    entries, left_out = _labelled(train, "train", {wnid: label for label, wnid in enumerate(classes)}, {})
    return make_source(path, "tar of tars of classes", classes, entries, left_out, (), read_entry)


def _labelled(
    files: list[File], part: str, labels: dict[str, int], truth: dict[int, str] | None, year: str = ""
) -> tuple[list[Entry], list[File]]:
    """The pictures of a split with their labels, by the folder of a wnid or by `truth`; and the others."""
    entries, left_out, missing = [], [], dict(truth or {})
    for file in files:
        key = (part, *file.parts[1:]) if len(file.parts) > 1 else file.parts
        match = PICTURE.fullmatch(file.parts[-1])
        number = int(match["number"]) if match else 0
        wnid = file.parts[1] if len(file.parts) > 2 else (truth or {}).get(number)
        missing.pop(number, None)
        if file.problem is not None:
            left_out.append(replace(file, parts=key))
        elif truth is None and wnid is None:
            left_out.append(skipped(key, "its label was never published"))
        elif wnid is None:
            left_out.append(failed(key, "not in the ground truth"))
        elif wnid not in labels:
            left_out.append(skipped(key, f"its class {wnid} has no training pictures"))
        else:
            entries.append(replace(file, parts=key).entry(part, labels[wnid]))
    for number in sorted(missing):
        left_out.append(failed((part, f"ILSVRC{year}_{part}_{number:08d}.JPEG"), "in the ground truth, but missing"))
    return entries, left_out


def _training(root: Path) -> list[File]:
    """Training pictures: (train, wnid, name)."""
    for path in (root / name for name in names_in(root) if _is_tar_of(name, "train")):
        return _nested(path, list_tar(path)[0])
    for folder in _folders(root, "train"):
        names = names_in(folder)
        tars = [name for name in names if is_class_tar(name)]
        wnids = [name for name in names if WNID.fullmatch(name)]
        if tars and wnids:
            raise UsageError(
                f"{shown(folder)} holds {shown(tars[0])} and the folder {shown(wnids[0])}: which are the training "
                "pictures isn't known; move the tars or the folders away"
            )
        if tars:
            return [file for name in tars for file in _of_class(name[:9], list_tar(folder / name)[0])]
        if wnids:
            return [file for wnid in wnids for file in _of_class(wnid, walk(folder / wnid)[0])]
    return []


def _of_class(wnid: str, files: list[File]) -> list[File]:
    """Files of a class as (train, wnid, name): their own folders are a part of the name."""
    return [replace(file, parts=("train", wnid, file.key)) for file in files]


def _nested(path: Path, members: list[File]) -> list[File]:
    """The pictures of a tar of n*.tar, read in place, as (train, wnid, name)."""
    pictures: list[File] = []
    seen: set[str] = set()
    tar = next((member.place.path for member in members if member.place), path)  # the unpacked one if compressed
    with open(tar, "rb") as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        for member in members:
            name, place = member.parts[-1], member.place
            if member.problem and member.problem[0] == "failed":
                pictures.append(replace(member, parts=(path.name, member.key)))
            elif not is_class_tar(name) or name in seen or place is None:
                reason = "duplicate name in the tar" if name in seen else "not a tar of a class"
                pictures.append(skipped((path.name, member.key), reason))
            else:
                seen.add(name)
                start, end, title = place.offset, place.offset + place.length, f"{shown(path)}: {name}"
                files, _ = list_nested(partial(pread, file.fileno()), start, end, title, tar, stamp)
                pictures += _of_class(name[:9], files)
    return pictures


def _flat(root: Path, part: str) -> tuple[list[File], list[File]]:
    """The pictures of val or test, (part, name) or (part, wnid, name), and what else lies among them."""
    files: list[File] = []
    tars = [name for name in names_in(root) if _is_tar_of(name, part)]
    if tars:
        files = list_tar(root / tars[0])[0]
    else:
        folders = [folder for folder in _folders(root, part) if any(map(PICTURE.fullmatch, names_in(folder)))]
        folders += [folder for folder in _folders(root, part)[:-1] if any(map(WNID.fullmatch, names_in(folder)))]
        if folders and folders[0] != root:
            files = walk(folders[0])[0]
        elif folders:
            names = {name for name in names_in(root) if (m := PICTURE.fullmatch(name)) and m["part"].lower() == part}
            files = [file for file in walk(root)[0] if len(file.parts) == 1 and file.parts[0] in names]
    pictures, others = [], []
    for file in files:
        match = PICTURE.fullmatch(file.parts[-1])
        if len(file.parts) > 1 and WNID.fullmatch(file.parts[-2]):
            pictures.append(replace(file, parts=(part, *file.parts[-2:])))
        elif match and match["end"] and match["part"].lower() == part:
            pictures.append(replace(file, parts=(part, file.parts[-1])))
        elif not file.parts[-1].lower().endswith((*LIST_SUFFIXES, ".mat")):
            others.append(File((part, *file.parts), problem=file.problem or ("skipped", "not a picture's name")))
    return pictures, others


def _rest(root: Path) -> Iterable[File]:
    """What lies in the folder and is no part of the data set."""
    parts = [TAR.format(part) + r"(\.tar)?" for part in PARTS]
    known = re.compile("|".join((*parts, r"ILSVRC.*\.txt", r"n\d{8}(\.tar)?")))
    for name in names_in(root):
        if name in (META, "data", *SYNSETS, *PARTS) or any(p.fullmatch(name) for p in (known, PICTURE, DEVKIT)):
            continue
        reason = "an archive; not read" if name.endswith(".tar") else "not a picture"
        yield skipped((shown(name),), "hidden" if name.startswith(".") else reason)


def _is_tar_of(name: str, part: str) -> bool:
    return re.fullmatch(TAR.format(part) + r"\.tar", name) is not None


def _folders(root: Path, part: str) -> list[Path]:
    """Where a split's pictures may lie: its folder, a folder called as its tar, the root itself."""
    named = [root / name for name in names_in(root) if re.fullmatch(TAR.format(part), name) and (root / name).is_dir()]
    return [root / part, *named, root]
