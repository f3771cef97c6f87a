"""Which class has a picture of ILSVRC? Its ground truth: a list of (name, wnid or index), or the devkit's numbers.

list     any .txt, .csv or .tsv of names ILSVRC2012_val_00000001 and wnids, Kaggle's LOC_val_solution.csv among them;
         or of indices, which count the wnids of synsets.txt or LOC_synset_mapping.txt from 0, or the training wnids
devkit   ILSVRC2012_validation_ground_truth.txt, ILSVRC2010_test_ground_truth.txt: line i is the number of picture i.
         The numbers are not in wnid order: meta.mat says which wnid each is, or a text of lines `number wnid`

Labels are never assumed: where a part is missing it stops and names it.
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from convnet.data.sources.listing import LIST_SUFFIXES, shown
from convnet.data.sources.published.matfile import read_tables
from convnet.data.sources.tars import tar_members
from convnet.errors import DataError, UsageError
from convnet.io.atomic import read

TRUTHS = {"val": "ILSVRC{}_validation_ground_truth.txt", "test": "ILSVRC{}_test_ground_truth.txt"}
META = "meta.mat"
KITS = {"2010": "ILSVRC2010_devkit-1.0.tar.gz", "2012": "ILSVRC2012_devkit_t12.tar.gz"}
SYNSETS = ("synsets.txt", "LOC_synset_mapping.txt")
DEVKIT = re.compile(r"(ILSVRC20\d\d_)?(devkit|development_kit)[-\w.]*?(?P<packed>\.tar\.gz|\.tgz)?", re.I)
WNID = re.compile(r"n\d{8}")
PICTURE = re.compile(r"ILSVRC(?P<year>20\d\d)_(?P<part>val|test)_(?P<number>\d{8})(?P<end>\.(?:JPEG|jpe?g))?", re.I)
LARGEST = 1 << 26  # bytes of a text, of meta.mat, of the unpacked devkit
TEST_IS_PUBLISHED = ("2010",)  # years whose test pictures have published labels

Files = dict[str, Callable[[], bytes]]


def ground_truth(
    path: Path, folders: list[Path], year: str, part: str, classes: tuple[str, ...]
) -> tuple[dict[int, str], str] | None:
    """{number of a picture: wnid} of a split, and a note on where it is from; None where no labels were published.

    Raises: UsageError when there is none, or half of the devkit's; DataError when a file is damaged.
    """
    files = _files(folders)
    for name in sorted(files):
        is_list = name.lower().endswith(LIST_SUFFIXES) and name not in (
            *SYNSETS,
            *(t.format(year) for t in TRUTHS.values()),
        )
        if is_list and (truth := _listed(files, name, path, year, part, classes)):
            return truth, f"{part} labels from {shown(name)}"
    name = TRUTHS[part].format(year)
    kit = KITS.get(year, f"ILSVRC{year}_devkit.tar.gz")
    ask = f"put {kit} (or {name} and {META}) or a list of (name, wnid) beside it; labels are never assumed"
    if name not in files:
        if part == "test" and year not in TEST_IS_PUBLISHED:
            return None
        raise UsageError(f"{shown(path)} has {part} pictures but no ground truth ({name}); {ask}")
    wnids, source = _numbered(files, path, year)
    if not wnids:
        raise UsageError(
            f"{shown(path)}: {name} holds numbers that are not in wnid order, and {META}, which says what they are, "
            f"is missing; {ask}"
        )
    truth = {}
    for number, word in enumerate(files[name]().split(), 1):
        if not word.isdigit() or len(word) > 9 or int(word) not in wnids:
            raise DataError(f"{shown(path)}: {name}, line {number}: {word[:20]!r} is not a number of {source}")
        truth[number] = wnids[int(word)]
    return truth, f"{part} labels from {name}, by {source}"


def _files(folders: list[Path]) -> Files:
    """The small files of the data set's folders and of the devkit in them, by name; the first of a name counts."""
    files: Files = {}
    for folder in folders:
        names = names_in(folder)
        kits = [name for name in names if DEVKIT.fullmatch(name)]
        for place in (folder, folder / "data", *(folder / kit / data for kit in kits for data in ("", "data"))):
            for name in names_in(place) if place != folder else names:
                if name.lower().endswith((*LIST_SUFFIXES, ".mat")) and (place / name).is_file():
                    files.setdefault(name, partial(read, place / name, LARGEST))
        for kit in kits:
            if (match := DEVKIT.fullmatch(kit)) and match["packed"] and (folder / kit).is_file():
                for name, data in _unpacked(folder / kit):
                    files.setdefault(name, partial(bytes, data))
    return files


def _unpacked(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a devkit's data, from its .tar.gz."""
    try:
        with gzip.open(path) as file:
            data = file.read(LARGEST + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{shown(path)} is damaged or cut short ({error}); get it again") from error
    if len(data) > LARGEST:
        raise DataError(f"{shown(path)} unpacks to more than {LARGEST:,} bytes; get it again")
    for member in tar_members(lambda length, offset: data[offset : offset + length], 0, len(data), shown(path)):
        name = os.path.basename(member.name)
        if member.kind == b"0" and member.name.split("/")[-2:-1] == ["data"]:
            yield name, data[member.offset : member.offset + member.length]


def _listed(files: Files, name: str, path: Path, year: str, part: str, classes: tuple[str, ...]) -> dict[int, str]:
    """{number: wnid} of a list of this split's pictures; nothing when it is another text."""
    truth: dict[int, str] = {}
    order: list[str] | None = None
    for line, row in enumerate(files[name]().decode("utf-8", "replace").splitlines(), 1):
        words = re.split(r"[,;\s]+", row.strip().strip('"'))
        match = PICTURE.fullmatch(os.path.basename(words[0].replace("\\", "/")))
        if match is None or (match["year"], match["part"].lower()) != (year, part):
            if line > 1 and not truth:
                return {}
            continue
        here = f"{shown(path)}: {shown(name)}, line {line}"
        wnids = {word for word in words[1:] if WNID.fullmatch(word)}
        if len(wnids) > 1:
            raise UsageError(f"{here}: {shown(words[0])!r} has {len(wnids)} classes; a picture must have one")
        if not wnids and len(words) == 2 and words[1].isdigit():
            order = order or _order(files, classes)
            if int(words[1][:9]) >= len(order):
                raise UsageError(
                    f"{here}: index {words[1][:9]} is not below the {len(order)} classes in training; indices count "
                    "the wnids in order from 0; a list of (name, wnid) is safer"
                )
            wnids = {order[int(words[1])]}
        if not wnids:
            raise UsageError(f"{here}: {shown(' '.join(words[1:]))[:40]!r} is neither a wnid (n01440764) nor an index")
        wnid = wnids.pop()
        if truth.setdefault(int(match["number"]), wnid) != wnid:
            raise UsageError(f"{here}: '{shown(words[0])}' has two classes; keep one of them")
    return truth


def _order(files: Files, classes: tuple[str, ...]) -> list[str]:
    """The wnids that indices count: those of a list of synsets, else those in training."""
    for name in SYNSETS:
        if name in files:
            words = [line.split()[0] for line in files[name]().decode("utf-8", "replace").splitlines() if line.strip()]
            if words and all(WNID.fullmatch(word) for word in words) and set(classes) <= set(words):
                return words
    return list(classes)


def _numbered(files: Files, path: Path, year: str) -> tuple[dict[int, str], str]:
    """{number: wnid}, and the file that says so: meta.mat, or a text whose lines pair a number with a wnid.

    A list of wnids alone does not do: its order is not the numbers'.
    """
    if META in files:
        return _meta(files[META](), path, year), META
    for name in SYNSETS:
        rows = files[name]().decode("utf-8", "replace").splitlines() if name in files else []
        pairs = [match for row in rows if (match := re.match(r"(\d{1,9})[\s,;]+(n\d{8})\b", row))]
        wnids = {int(match[1]): match[2] for match in pairs}
        if rows and len(wnids) == len(pairs) == sum(bool(row.strip()) for row in rows):
            return wnids, name
    return {}, META


def _meta(data: bytes, path: Path, year: str) -> dict[int, str]:
    """{ILSVRC2012_ID: wnid} of meta.mat."""
    field = f"ILSVRC{year}_ID"
    try:
        rows = read_tables(data).get("synsets", [])
    except (ValueError, ArithmeticError) as error:
        raise DataError(f"{shown(path)}: {META} can't be read ({error}); get it again") from error
    wnids: dict[int, str] = {}
    for row in rows:
        number, wnid = row.get(field), row.get("WNID")
        if not isinstance(number, float) or not number.is_integer() or not isinstance(wnid, str):
            wnids = {}
            break
        wnids[int(number)] = wnid
    if not wnids or len(wnids) != len(rows) or not all(WNID.fullmatch(wnid) for wnid in wnids.values()):
        raise DataError(f"{shown(path)}: {META} holds no table of {field} and WNID; get it again")
    return wnids


def names_in(folder: Path) -> list[str]:
    """The names in a folder, none where it can't be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
