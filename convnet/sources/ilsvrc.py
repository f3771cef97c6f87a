"""ILSVRC 2012 as ImageNet hands it out: tars of tars for training, flat pictures and a ground truth for validation.

training     ILSVRC2012_img_train.tar, or n*.tar or n*/ in train/, ILSVRC2012_img_train/ or the folder itself
validation   ILSVRC2012_img_val.tar, or ILSVRC2012_val_*.JPEG in val/, ILSVRC2012_img_val/ or the folder itself
its labels   a list of (name, wnid) or (name, index in wnid order), or the devkit (folder or .tar.gz), whose numbers are
             not in wnid order: data/meta.mat says which wnid each is

Classes are the wnids, sorted. Labels are never assumed: without a ground truth it stops.
"""

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from convnet.errors import DataError, UsageError
from convnet.sources.folders import walk
from convnet.sources.listing import Entry, Found, Source, finish, pread, read_entry, read_piece, shown, stamp_of
from convnet.sources.lists import SUFFIXES, read_list
from convnet.sources.tars import Member, sort_members, tar_members

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train", "")
VAL_FOLDERS = ("val", "ILSVRC2012_img_val", "")
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
WNID = re.compile(r"n\d{8}")
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.(?:JPEG|jpe?g)", re.I)
LARGEST = 1 << 26  # bytes of the unpacked devkit
ASK = (
    f"put {DEVKIT}.tar.gz (or its data/{TRUTH} and data/{META}) or a list of (name, wnid) beside it; "
    "labels are never assumed"
)


def is_ilsvrc(where: Path, names: list[str]) -> bool:
    """Whether a folder with these names is ILSVRC's own."""
    if TRAIN_TAR in names or VAL_TAR in names or any(_wnid_tar(name) for name in names):
        return True
    train = [name for folder in TRAIN_FOLDERS[:2] if folder in names for name in _names(where / folder)]
    if any(_wnid_tar(name) for name in train):
        return True
    val = [name for folder in VAL_FOLDERS if not folder or folder in names for name in _names(where / folder)]
    return any(VAL_NAME.fullmatch(name) for name in val) and any(WNID.fullmatch(name) for name in [*train, *names])


def open_ilsvrc(where: Path) -> Source:
    """The source of ILSVRC's own files.

    Raises: UsageError when training pictures or the ground truth are missing; DataError when a file is damaged.
    """
    train = _training(where)
    classes = tuple(
        sorted({file.parts[-2] for file in train if len(file.parts) > 1 and WNID.fullmatch(file.parts[-2])})
    )
    if not classes:
        raise UsageError(f"{shown(where)}: no training pictures; put {TRAIN_TAR} or its n*.tar there")
    labels = {wnid: label for label, wnid in enumerate(classes)}
    entries, left_out = [], []
    for file in train:
        key = "/".join(("train", *file.parts[-2:]))
        if file.problem is None:
            entries.append(Entry(key, "train", labels[file.parts[-2]], file.place, file.stamp))
        else:
            left_out.append(file)
    val, others = _validation(where)
    left_out += others
    notes: list[str] = []
    if val:
        truth, note = _ground_truth(where, classes)
        notes.append(note)
        _label(val, truth, labels, entries, left_out)
    left_out += _rest(where)
    return finish(where, "ILSVRC 2012", classes, entries, left_out, notes, _read, "imagenet")


def _read(entry: Entry) -> bytes:
    return read_piece(entry) if isinstance(entry.place, tuple) else read_entry(entry)


def _label(
    val: dict[str, Found], truth: dict[str, str], labels: dict[str, int], entries: list[Entry], left_out: list[Found]
) -> None:
    """Gives the validation pictures their labels: each is an entry or left out with the reason."""
    for name, file in sorted(val.items()):
        key, wnid = f"val/{name}", truth.get(name)
        if file.problem is not None:
            left_out.append(Found((key,), None, "", file.problem))
        elif wnid is None:
            left_out.append(Found((key,), None, "", ("failed", "not in the ground truth")))
        elif wnid not in labels:
            left_out.append(Found((key,), None, "", ("skipped", f"its class {wnid} has no training pictures")))
        else:
            entries.append(Entry(key, "val", labels[wnid], file.place, file.stamp))
    for name in sorted(truth.keys() - val.keys()):
        left_out.append(Found((f"val/{name}",), None, "", ("failed", "in the ground truth, but missing")))


def _training(where: Path) -> list[Found]:
    """Training pictures; the last two parts are wnid and name."""
    if (where / TRAIN_TAR).is_file():
        return _nested(where / TRAIN_TAR)
    for folder in TRAIN_FOLDERS:
        path = where / folder
        names = sorted(_names(path))
        tars = [name for name in names if _wnid_tar(name)]
        if tars:
            return [file for name in tars for file in _inside(path / name, name[:9], ("train",))]
        if any(WNID.fullmatch(name) for name in names):
            return _class_folders(path, [name for name in names if WNID.fullmatch(name)])
    return []


def _class_folders(path: Path, wnids: list[str]) -> list[Found]:
    found = []
    for wnid in wnids:
        for file in walk(path / wnid)[0]:
            found.append(Found(("train", wnid, "/".join(file.parts)), file.place, file.stamp, file.problem))
    return found


def _nested(path: Path) -> list[Found]:
    """The pictures of a tar of n*.tar, read in place."""
    found: list[Found] = []
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        stamp = stamp_of(status)

        def read(length: int, offset: int) -> bytes:
            return pread(file.fileno(), length, offset)

        taken: set[str] = set()
        for member in tar_members(read, 0, status.st_size, shown(path)):
            name = shown(posix_name(member))
            if member.kind == b"5":
                continue
            if not _wnid_tar(name) or member.kind != b"0" or name in taken:
                why: tuple[Literal["skipped", "failed"], str] = ("skipped", "not a tar of a class")
                if name in taken:
                    why = ("failed", "duplicate name in the tar")
                found.append(Found((path.name, f"{name} at byte {member.offset}"), None, "", why))
                continue
            taken.add(name)
            inner = list(tar_members(read, member.offset, member.offset + member.length, f"{shown(path)}: {name}"))
            pictures, _ = sort_members(inner, path, stamp, read)
            found += [_under(file, ("train", name[:9])) for file in pictures]
    return found


def posix_name(member: Member) -> str:
    """A member's name without a leading `./`."""
    return member.name.removeprefix("./")


def _inside(path: Path, folder: str, above: tuple[str, ...] = ()) -> list[Found]:
    """The pictures of one plain tar, under `folder`."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())

        def read(length: int, offset: int) -> bytes:
            return pread(file.fileno(), length, offset)

        members = list(tar_members(read, 0, status.st_size, shown(path)))
        found, _ = sort_members(members, path, stamp_of(status), read)
    return [_under(item, (*above, folder)) for item in found]


def _under(file: Found, above: tuple[str, ...]) -> Found:
    return Found((*above, "/".join(file.parts)), file.place, file.stamp, file.problem)


def _validation(where: Path) -> tuple[dict[str, Found], list[Found]]:
    """{name: file} of the validation pictures, and what else lies among them."""
    found: list[Found] = []
    if (where / VAL_TAR).is_file():
        found = _inside(where / VAL_TAR, "val")
    else:
        folder = next((name for name in VAL_FOLDERS if any(VAL_NAME.fullmatch(n) for n in _names(where / name))), None)
        if folder is not None:
            only = None if folder else {name for name in _names(where) if VAL_NAME.fullmatch(name)}
            found = [
                _under(file, ("val",)) for file in walk(where / folder)[0] if only is None or file.parts[0] in only
            ]
    val = {
        os.path.basename(file.parts[-1]): file for file in found if VAL_NAME.fullmatch(os.path.basename(file.parts[-1]))
    }
    kept = set(map(id, val.values()))
    others = [
        file for file in found if id(file) not in kept and not str(file.parts[-1]).lower().endswith((*SUFFIXES, ".mat"))
    ]
    return val, [
        Found(file.parts, None, "", file.problem or ("skipped", "not a validation picture's name")) for file in others
    ]


def _ground_truth(where: Path, classes: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """{name: wnid} of the validation pictures, and a note on where it is from.

    Raises: UsageError when there is none, or half of the devkit's.
    """
    for folder in (where, *(where / name for name in VAL_FOLDERS[:2])):
        for name in sorted(_names(folder)):
            if name.lower().endswith(SUFFIXES) and name != TRUTH and (truth := _listed(folder / name, classes)):
                return truth, f"validation labels from {shown(name)}"
    files = _devkit(where)
    if TRUTH not in files:
        raise UsageError(f"{shown(where)} has validation pictures but no ground truth; {ASK}")
    if META not in files:
        raise UsageError(
            f"{shown(where)}: {TRUTH} holds numbers that are not in wnid order, and {META}, which says what they are, "
            f"is missing; {ASK}"
        )
    wnids = _meta(files[META], where)
    truth = {}
    for number, word in enumerate(files[TRUTH].split(), 1):
        if not word.isdigit() or int(word) not in wnids:
            raise DataError(f"{shown(where)}: {TRUTH}, line {number}: {word[:20]!r} is not a number of {META}")
        truth[f"ILSVRC2012_val_{number:08d}.JPEG"] = wnids[int(word)]
    return truth, f"validation labels from the devkit, by {META}"


def _listed(path: Path, classes: tuple[str, ...]) -> dict[str, str]:
    """{name: wnid} of a list of validation pictures; nothing when it is another text."""
    try:
        lines = [line for line in read_list(path) if VAL_NAME.fullmatch(os.path.basename(line.name))]
    except (UsageError, DataError, OSError):
        return {}
    truth: dict[str, str] = {}
    for line in lines:
        wnid = line.label.split()[0]
        if wnid.isdigit():
            if int(wnid) >= len(classes):
                raise UsageError(
                    f"{shown(path)}, line {line.number}: index {int(wnid)} is not below the {len(classes)} classes in "
                    "training; indices count the training wnids in order from 0; a list of (name, wnid) is safer"
                )
            wnid = classes[int(wnid)]
        elif not WNID.fullmatch(wnid):
            raise UsageError(f"{shown(path)}, line {line.number}: '{wnid}' is neither a wnid (n01440764) nor an index")
        name = os.path.basename(line.name)
        if truth.setdefault(name, wnid) != wnid:
            raise UsageError(f"{shown(path)}, line {line.number}: '{name}' has two classes; keep one of them")
    return truth


def _devkit(where: Path) -> dict[str, bytes]:
    """The devkit's two files, as many as are there."""
    files: dict[str, bytes] = {}
    for folder in (where, where / "data", where / "val", where / DEVKIT, where / DEVKIT / "data"):
        for name in (TRUTH, META):
            if name not in files and (folder / name).is_file():
                files[name] = _some(folder / name)
    packed = where / f"{DEVKIT}.tar.gz"
    if len(files) < 2 and packed.is_file():
        try:
            with gzip.open(packed) as file:
                data = file.read(LARGEST + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{shown(packed)} is damaged or cut short ({error}); get it again") from error
        if len(data) > LARGEST:
            raise DataError(f"{shown(packed)} unpacks to more than {LARGEST:,} bytes; get it again")
        for member in tar_members(lambda length, offset: data[offset : offset + length], 0, len(data), shown(packed)):
            name = os.path.basename(member.name)
            if name in (TRUTH, META) and member.kind == b"0":
                files.setdefault(name, data[member.offset : member.offset + member.length])
    return files


def _some(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(LARGEST)


def _meta(data: bytes, where: Path) -> dict[int, str]:
    """{ILSVRC2012_ID: wnid} of meta.mat."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"].ravel()
        pairs = [(int(synset["ILSVRC2012_ID"]), str(synset["WNID"])) for synset in synsets]
    except Exception as error:  # scipy raises whatever it stumbles over
        raise DataError(
            f"{shown(where)}: {META} can't be read ({type(error).__name__}: {error}); get it again"
        ) from error
    wnids = dict(pairs)
    if len(wnids) != len(pairs) or not all(WNID.fullmatch(wnid) for wnid in wnids.values()):
        raise DataError(f"{shown(where)}: {META} holds no table of ILSVRC2012_ID and WNID; get it again")
    return wnids


def _rest(where: Path) -> Iterable[Found]:
    """What lies in the folder and is no part of the data set."""
    known = {TRAIN_TAR, VAL_TAR, DEVKIT, f"{DEVKIT}.tar.gz", TRUTH, META, "data", *TRAIN_FOLDERS, *VAL_FOLDERS}
    for name in sorted(_names(where)):
        if name in known or WNID.fullmatch(name) or _wnid_tar(name) or VAL_NAME.fullmatch(name):
            continue
        yield Found((shown(name),), None, "", ("skipped", "hidden" if name.startswith(".") else "not a picture"))


def _wnid_tar(name: str) -> bool:
    return re.fullmatch(r"n\d{8}\.tar", name) is not None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
