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
from pathlib import Path

from convnet.data.sources.folders import walk
from convnet.data.sources.listing import Entry, Found, Source, finish, pread, read_entry, read_piece, shown, stamp_of
from convnet.data.sources.published.devkit import DEVKIT, META, PICTURE, SYNSETS, WNID, ground_truth
from convnet.data.sources.tars import head_by, list_tar, sort_members, tar_members
from convnet.errors import UsageError

KAGGLE = Path("ILSVRC/Data/CLS-LOC")
TAR = r"ILSVRC(20\d\d)_(?:img|images)_{}\w*"  # a split's tar, or its folder
PARTS = ("train", "val", "test")


def is_class_tar(name: str) -> bool:
    """Whether a file of this name is the tar of a class, as n01440764.tar."""
    return re.fullmatch(r"n\d{8}\.tar", name) is not None


def is_ilsvrc(where: Path, names: list[str]) -> bool:
    """Whether a folder with these names is ILSVRC's own, or holds tars of classes."""
    root = where / KAGGLE
    if "ILSVRC" in names and root.is_dir():
        return is_ilsvrc(root, os.listdir(root))
    if any(is_class_tar(name) or _is_tar_of(name, part) for name in names for part in PARTS):
        return True
    train = [name for folder in _folders(where, "train")[:-1] for name in _names(folder)]
    if any(map(is_class_tar, train)):
        return True
    flat = (name for part in PARTS[1:] for folder in _folders(where, part) for name in _names(folder))
    return any(WNID.fullmatch(name) for name in [*train, *names]) and any(map(PICTURE.fullmatch, flat))


def open_ilsvrc(where: Path) -> Source:
    """The source of ILSVRC's own files.

    Raises: UsageError when training pictures or a ground truth are missing; DataError when a file is damaged.
    """
    root = where / KAGGLE if (where / KAGGLE).is_dir() else where
    train = _training(root)
    classes = tuple(
        sorted({file.parts[-2] for file in train if len(file.parts) > 1 and WNID.fullmatch(file.parts[-2])})
    )
    if not classes:
        raise UsageError(f"{shown(where)}: no training pictures; put ILSVRC2012_img_train.tar or its n*.tar there")
    labels = {wnid: label for label, wnid in enumerate(classes)}
    entries, left_out = _labelled(train, "train", labels, {})
    notes, years = list[str](), set[str]()
    places = [where, *dict.fromkeys(folder for part in PARTS[1:] for folder in (root, *_folders(root, part)))]
    for part in PARTS[1:]:
        pictures, others = _flat(root, part)
        left_out += others
        years |= {match["year"] for file in pictures if (match := PICTURE.fullmatch(file.parts[-1]))}
        if len(years) > 1:
            raise UsageError(f"{shown(where)} holds pictures of ILSVRC {' and '.join(sorted(years))}; keep one of them")
        truth: dict[int, str] | None = {}
        if any(len(file.parts) == 2 for file in pictures):
            truth, note = ground_truth(where, places, min(years), part, classes) or (None, _unpublished(pictures))
            notes.append(note)
        made, others = _labelled(pictures, part, labels, truth, "".join(years))
        entries += made
        left_out += others
    left_out += _rest(root)
    kind = f"ILSVRC {years.pop()}" if years else "ImageNet's classes"
    return finish(where, kind, classes, entries, left_out, notes, _read, "imagenet")


def open_class_tars(where: Path, found: list[Found]) -> Source:
    """The source of a tar of tars of classes, as the Fall releases and ILSVRC's training pictures are published."""
    train = _nested(where, found)
    classes = tuple(sorted({file.parts[1] for file in train if file.problem is None}))
    entries, left_out = _labelled(train, "train", {wnid: label for label, wnid in enumerate(classes)}, {})
    return finish(where, "tar of tars of classes", classes, entries, left_out, (), read_piece)


def _read(entry: Entry) -> bytes:
    return read_piece(entry) if isinstance(entry.place, tuple) else read_entry(entry)


def _unpublished(pictures: list[Found]) -> str:
    return f"{len(pictures):,} test pictures have no published labels and were left out"


def _labelled(
    files: list[Found], part: str, labels: dict[str, int], truth: dict[int, str] | None, year: str = ""
) -> tuple[list[Entry], list[Found]]:
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
            left_out.append(Found(key, None, "", ("skipped", "its label was never published")))
        elif wnid is None:
            left_out.append(Found(key, None, "", ("failed", "not in the ground truth")))
        elif wnid not in labels:
            left_out.append(Found(key, None, "", ("skipped", f"its class {wnid} has no training pictures")))
        else:
            entries.append(Entry("/".join(key), part, labels[wnid], file.place, file.stamp))
    for number in sorted(missing):
        name = f"ILSVRC{year}_{part}_{number:08d}.JPEG"
        left_out.append(Found((part, name), None, "", ("failed", "in the ground truth, but missing")))
    return entries, left_out


def _training(root: Path) -> list[Found]:
    """Training pictures: (train, wnid, name)."""
    for path in (root / name for name in _names(root) if _is_tar_of(name, "train")):
        return _nested(path, list_tar(path, shown(path))[0])
    for folder in _folders(root, "train"):
        names = _names(folder)
        tars = [name for name in names if is_class_tar(name)]
        wnids = [name for name in names if WNID.fullmatch(name)]
        if tars and wnids:
            raise UsageError(
                f"{shown(folder)} holds {shown(tars[0])} and the folder {shown(wnids[0])}: which are the training "
                "pictures isn't known; move the tars or the folders away"
            )
        if tars:
            return [
                _under(f, ("train", name[:9]))
                for name in tars
                for f in list_tar(folder / name, shown(folder / name))[0]
            ]
        if wnids:
            return [_under(file, ("train", wnid)) for wnid in wnids for file in walk(folder / wnid)[0]]
    return []


def _nested(path: Path, found: list[Found]) -> list[Found]:
    """The pictures of a tar of n*.tar, read in place, as (train, wnid, name)."""
    pictures: list[Found] = []
    taken: set[str] = set()
    tar = next((file.place[0] for file in found if file.place), path)  # the unpacked one of a compressed tar
    with open(tar, "rb") as file:
        stamp = stamp_of(os.fstat(file.fileno()))

        def read(length: int, offset: int) -> bytes:
            return pread(file.fileno(), length, offset)

        for item in found:
            name = item.parts[-1]
            if item.problem and item.problem[0] == "failed":
                pictures.append(Found((path.name, "/".join(item.parts)), None, "", item.problem))
            elif not is_class_tar(name) or name in taken:
                why = "duplicate name in the tar" if name in taken else "not a tar of a class"
                pictures.append(Found((path.name, "/".join(item.parts)), None, "", ("skipped", why)))
            else:
                taken.add(name)
                start, length = item.place[1:]
                inner = list(tar_members(read, start, start + length, f"{shown(path)}: {name}"))
                files, _ = sort_members(inner, tar, stamp, head_by(read))
                pictures += [_under(picture, ("train", name[:9])) for picture in files]
    return pictures


def _under(file: Found, above: tuple[str, ...]) -> Found:
    """A file with its own folders as a part of its name."""
    return replace(file, parts=(*above, "/".join(file.parts)))


def _flat(root: Path, part: str) -> tuple[list[Found], list[Found]]:
    """The pictures of val or test, (part, name) or (part, wnid, name), and what else lies among them."""
    found: list[Found] = []
    tars = [name for name in _names(root) if _is_tar_of(name, part)]
    if tars:
        found = list_tar(root / tars[0], shown(root / tars[0]))[0]
    else:
        folders = [folder for folder in _folders(root, part) if any(map(PICTURE.fullmatch, _names(folder)))]
        folders += [folder for folder in _folders(root, part)[:-1] if any(map(WNID.fullmatch, _names(folder)))]
        if folders and folders[0] != root:
            found = walk(folders[0])[0]
        elif folders:
            names = {name for name in _names(root) if (m := PICTURE.fullmatch(name)) and m["part"].lower() == part}
            found = [file for file in walk(root)[0] if len(file.parts) == 1 and file.parts[0] in names]
    pictures, others = [], []
    for file in found:
        match = PICTURE.fullmatch(file.parts[-1])
        if len(file.parts) > 1 and WNID.fullmatch(file.parts[-2]):
            pictures.append(replace(file, parts=(part, *file.parts[-2:])))
        elif match and match["end"] and match["part"].lower() == part:
            pictures.append(replace(file, parts=(part, file.parts[-1])))
        elif not file.parts[-1].lower().endswith((".txt", ".csv", ".tsv", ".mat")):
            others.append(Found((part, *file.parts), None, "", file.problem or ("skipped", "not a picture's name")))
    return pictures, others


def _rest(root: Path) -> Iterable[Found]:
    """What lies in the folder and is no part of the data set."""
    for name in _names(root):
        known = name in (META, "data", *SYNSETS, *PARTS) or any(_is_tar_of(name, part) for part in PARTS)
        folder = any(re.fullmatch(TAR.format(part), name) for part in PARTS)
        match = PICTURE.fullmatch(name)
        text = name.startswith("ILSVRC") and name.endswith(".txt")
        if known or folder or text or match or DEVKIT.fullmatch(name) or WNID.fullmatch(name) or is_class_tar(name):
            continue
        reason = (
            "hidden" if name.startswith(".") else "an archive; not read" if name.endswith(".tar") else "not a picture"
        )
        yield Found((shown(name),), None, "", ("skipped", reason))


def _is_tar_of(name: str, part: str) -> bool:
    return re.fullmatch(TAR.format(part) + r"\.tar", name) is not None


def _folders(root: Path, part: str) -> list[Path]:
    """Where a split's pictures may lie: its folder, a folder called as its tar, the root itself."""
    named = [root / name for name in _names(root) if re.fullmatch(TAR.format(part), name) and (root / name).is_dir()]
    return [root / part, *named, root]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
