"""ILSVRC 2010 with its labelled test pictures, 2012's unlabelled ones, Kaggle's folders; meta.mat by our own reader."""

import gzip
import io
import random
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sources_sets import WNIDS, picture, tar_bytes, train_tars

from convnet.data.sources import Source, open_source
from convnet.data.sources.published.matfile import read_tables
from convnet.errors import DataError, UsageError

NUMBERS = {"n00000007": 1, "n00000003": 2, "n00000005": 3}  # not in wnid order, as in the devkits
TRUTH = {"val": [2, 1, 3, 1], "test": [3, 3, 1, 2, 2]}  # numbers, picture by picture
KIT = "ILSVRC2010_devkit-1.0"


def meta(year: str = "2010", compressed: bool = False) -> bytes:
    """meta.mat as the devkits have it, written by scipy."""
    from scipy.io import savemat

    names = (f"ILSVRC{year}_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.zeros((len(NUMBERS) + 1, 1), dtype=[(name, object) for name in names])
    for row, (wnid, number) in enumerate([*NUMBERS.items(), ("n00000099", 1001)]):
        children: Any = np.zeros((0, 0)) if number < 1000 else np.array([1, 2], np.uint16)
        synsets[row, 0] = (float(number), wnid, "wörd, other", "", float(number > 1000), children, 0.0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets, "more": np.eye(3)}, do_compression=compressed)
    return buffer.getvalue()


def truth_text(part: str) -> bytes:
    return "".join(f"{number}\n" for number in TRUTH[part]).encode()


def flat(part: str, year: str = "2010") -> dict[str, bytes]:
    first = 100 if part == "val" else 150
    return {f"ILSVRC{year}_{part}_{n:08d}.JPEG": picture(first + n) for n in range(1, len(TRUTH[part]) + 1)}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def class_folders(above: str) -> dict[str, bytes]:
    return {f"{above}/{wnid}/{wnid}_{n}.JPEG": picture(10 * k + n) for k, wnid in enumerate(WNIDS) for n in range(3)}


def assert_2010(source: Source) -> None:
    wnid_of = {number: wnid for wnid, number in NUMBERS.items()}
    assert (source.kind, source.classes) == ("ILSVRC 2010", tuple(sorted(WNIDS)))
    assert [entry.split for entry in source.entries] == ["train"] * 9 + ["val"] * 4 + ["test"] * 5
    for entry in source.entries[9:]:
        number = int(entry.key[-13:-5])
        assert source.classes[entry.label] == wnid_of[TRUTH[entry.split][number - 1]]
        assert source.read(entry) == flat(entry.split)[entry.key.split("/")[-1]]
    assert source.failed == source.skipped == ()


@pytest.mark.parametrize("packed", ["tars", "folders", "root"])
@pytest.mark.parametrize("kit", ["folder", "packed", "beside"])
def test_ilsvrc_2010(tmp_path: Path, packed: str, kit: str) -> None:
    if packed == "tars":
        write(tmp_path, {"ILSVRC2010_images_train.tar": tar_bytes(train_tars())})
        for part in TRUTH:
            inside = {f"{part}/{name}": data for name, data in flat(part).items()}
            write(tmp_path, {f"ILSVRC2010_images_{part}.tar": tar_bytes(inside)})
    else:
        write(tmp_path, class_folders("train" if packed == "folders" else "ILSVRC2010_images_train"))
        for part in TRUTH:
            above = f"{part}/" if packed == "folders" else ""
            write(tmp_path, {f"{above}{name}": data for name, data in flat(part).items()})
    data = {"ILSVRC2010_validation_ground_truth.txt": truth_text("val"), "meta.mat": meta(compressed=kit == "packed")}
    if kit == "packed":
        inside = {f"devkit-1.0/data/{name}": text for name, text in data.items()}
        write(tmp_path, {f"{KIT}.tar.gz": gzip.compress(tar_bytes(inside))})
    else:
        write(tmp_path / ("devkit-1.0/data" if kit == "folder" else ""), data)
    write(tmp_path, {"ILSVRC2010_test_ground_truth.txt": truth_text("test")})
    assert_2010(open_source(tmp_path))


def test_ilsvrc_2010_stops_at_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, class_folders("train"))
    for part in TRUTH:
        write(tmp_path / part, flat(part))
    steps = [
        (r"val pictures but no ground truth \(ILSVRC2010_validation_ground_truth\.txt\); put ILSVRC2010_devkit-1\.0",
         {"ILSVRC2010_validation_ground_truth.txt": truth_text("val")}),
        (r"meta\.mat, which says what they are, is missing", {"synsets.txt": "\n".join(sorted(WNIDS)).encode()}),
        (r"meta\.mat, which says what they are, is missing", {"meta.mat": meta("2012")}),
        (r"meta\.mat holds no table of ILSVRC2010_ID and WNID", {"meta.mat": meta()}),
        (r"test pictures but no ground truth \(ILSVRC2010_test_ground_truth\.txt\)",
         {"ILSVRC2010_test_ground_truth.txt": b"3\n3\n1\n2\n4\n"}),
        (r"ILSVRC2010_test_ground_truth\.txt, line 5: b'4' is not a number of meta\.mat",
         {"ILSVRC2010_test_ground_truth.txt": truth_text("test")}),
    ]  # fmt: skip
    for text, files in steps:
        with pytest.raises((UsageError, DataError), match=text):
            open_source(tmp_path)
        write(tmp_path, files)
    assert_2010(open_source(tmp_path))
    write(tmp_path / "test", {"ILSVRC2012_test_00000001.JPEG": picture(1)})
    with pytest.raises(UsageError, match="holds pictures of ILSVRC 2010 and 2012; keep one of them"):
        open_source(tmp_path)


def test_a_text_of_numbers_and_wnids_takes_the_place_of_meta_mat(tmp_path: Path) -> None:
    write(tmp_path, class_folders("train"))
    for part in TRUTH:
        write(tmp_path / part, flat(part))
    write(tmp_path, {"ILSVRC2010_validation_ground_truth.txt": truth_text("val")})
    write(tmp_path, {"ILSVRC2010_test_ground_truth.txt": truth_text("test")})
    write(tmp_path, {"synsets.txt": "".join(f"{number} {wnid} words\n" for wnid, number in NUMBERS.items()).encode()})
    source = open_source(tmp_path)
    assert_2010(source)
    assert [note for note in source.notes if "synsets.txt" in note]


def test_ilsvrc_2012_without_labels_for_test(tmp_path: Path) -> None:
    """Kaggle's folders: val by LOC_val_solution.csv, test without labels; and val sorted into folders of wnids."""
    root = tmp_path / "ILSVRC/Data/CLS-LOC"
    write(root, class_folders("train"))
    write(root / "val", flat("val", "2012"))
    write(root / "test", flat("test", "2012"))
    boxes = {1: "n00000003", 2: "n00000007", 3: "n00000005", 4: "n00000007"}
    rows = [f"ILSVRC2012_val_{n:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for n, wnid in boxes.items()]
    write(tmp_path, {"LOC_val_solution.csv": "\n".join(["ImageId,PredictionString", *rows]).encode()})
    write(tmp_path, {"LOC_synset_mapping.txt": "\n".join(f"{wnid} words" for wnid in sorted(WNIDS)).encode()})
    source = open_source(tmp_path)
    assert source.kind == "ILSVRC 2012"
    val = {int(e.key[-13:-5]): source.classes[e.label] for e in source.entries if e.split == "val"}
    assert val == boxes
    assert "5 test pictures have no published labels and were left out" in source.notes
    assert {reason for _, reason in source.skipped} == {"its label was never published"}
    assert len(source.skipped) == 5
    rows[1] += " n00000003 1 2 3 4"
    write(tmp_path, {"LOC_val_solution.csv": "\n".join(["ImageId,PredictionString", *rows]).encode()})
    with pytest.raises(UsageError, match=r"LOC_val_solution\.csv, line 3: .* has 2 classes"):
        open_source(tmp_path)
    (tmp_path / "LOC_val_solution.csv").unlink()
    for n, wnid in boxes.items():
        name = f"ILSVRC2012_val_{n:08d}.JPEG"
        (root / "val" / wnid).mkdir(exist_ok=True)
        (root / "val" / name).rename(root / "val" / wnid / name)
    source = open_source(root)
    assert {int(e.key[-13:-5]): source.classes[e.label] for e in source.entries if e.split == "val"} == boxes


def test_indices_count_the_synsets_of_the_list_beside(tmp_path: Path) -> None:
    """A set with some of the classes: index 5 is the sixth of all synsets, not of the three in training."""
    every = sorted([*WNIDS, "n00000001", "n00000002", "n00000004"])
    write(tmp_path, class_folders("train"))
    write(tmp_path / "val", flat("val", "2012"))
    right = ["n00000003", "n00000007", "n00000005", "n00000003"]
    rows = [f"ILSVRC2012_val_{n:08d}.JPEG {every.index(wnid)}" for n, wnid in enumerate(right, 1)]
    write(tmp_path, {"val.txt": "\n".join(rows).encode()})
    with pytest.raises(UsageError, match="index 5 is not below the 3 classes"):
        open_source(tmp_path)
    write(tmp_path, {"synsets.txt": "\n".join(every).encode()})
    source = open_source(tmp_path)
    assert [source.classes[entry.label] for entry in sorted(source.entries, key=lambda e: e.key)[9:]] == right


def test_class_tars_beside_class_folders_stop(tmp_path: Path) -> None:
    write(tmp_path, class_folders("train"))
    write(tmp_path / "train", {"n00000009.tar": tar_bytes({"n00000009_1.JPEG": picture(1)})})
    with pytest.raises(UsageError, match=r"holds n00000009\.tar and the folder n00000003: which are the training"):
        open_source(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_tables_of_a_mat_file(compressed: bool) -> None:
    tables = read_tables(meta(compressed=compressed))
    assert list(tables) == ["synsets"]
    rows = tables["synsets"]
    assert [(row["ILSVRC2010_ID"], row["WNID"]) for row in rows] == [
        *((float(number), wnid) for wnid, number in NUMBERS.items()),
        (1001.0, "n00000099"),
    ]
    assert rows[0]["words"] == "wörd, other"
    assert rows[0]["gloss"] == ""
    assert rows[0]["children"] is None


def test_mat_files_that_lie(tmp_path: Path) -> None:
    """Mutated, cut short and swollen ones end in ValueError, at once and in little memory."""
    data, choice = meta(), random.Random(0)
    packed = meta(compressed=True)
    for whole in (data, packed):
        for _ in range(500):
            copy = bytearray(whole)
            for _ in range(choice.choice((1, 2, 8))):
                copy[choice.randrange(126, len(copy))] = choice.choice((0, 255, choice.randrange(256)))
            with suppress(ValueError):
                read_tables(bytes(copy[: choice.choice((len(copy), choice.randrange(len(copy))))]))
    huge = zlib.compress(bytes(200 << 20), 1)
    tracemalloc.start()
    with pytest.raises(ValueError, match="larger than 8,388,608 bytes"):
        read_tables(data[:128] + struct.pack("<II", 15, len(huge)) + huge)
    many = bytearray(data)
    shape = many.index(struct.pack("<II", 5, 8)) + 8
    many[shape : shape + 8] = struct.pack("<ii", 1 << 30, 1 << 30)
    with pytest.raises(ValueError, match="rows where fewer fit"):
        read_tables(bytes(many))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
