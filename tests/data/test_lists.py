"""Lists of pictures: columns are known or asked for, names mean one file, labels are classes; what is unclear stops."""

import os
from pathlib import Path

import pytest

from convnet.data.sources import ColumnNames, Source, open_source
from convnet.data.sources.lists import lists_in
from convnet.errors import DataError, UsageError

SIX = [f"p{n}.jpg" for n in range(6)]


def fill(folder: Path, pictures: list[str], texts: dict[str, str | bytes]) -> None:
    """Empty files as pictures (a listing doesn't decode) and texts."""
    for name in pictures:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def labels(source: Source) -> dict[str, str]:
    return {entry.key: source.classes[entry.label] for entry in source.entries}


def splits(source: Source) -> dict[str, str]:
    return {entry.key: entry.split for entry in source.entries}


def rows(pattern: str, *values: object, header: str = "", end: str = "\n") -> str:
    """A line for each of the six pictures: {n} its number, {v} its value."""
    lines = [pattern.format(n=n, v=values[n % len(values)] if values else None) for n in range(6)]
    return header + "".join(line + end for line in lines)


def six(*values: str) -> dict[str, str]:
    return {name: values[n % len(values)] for n, name in enumerate(SIX)}


READ = {
    "an unknown name column, one other": rows("p{n}.jpg,{v}", "x", "y", header="Datei,Klasse\n"),
    "known columns among others": rows("{n};p{n}.jpg;30;{v}", "x", "y", header="ID;Path;Width;Class Name\n"),
    "a number and its name": rows("p{n}.jpg,{v}", "0,x", "1,y", header="Path,ClassId,category\n"),
    "pandas' index": rows("{n},p{n}.jpg,{v}", "x", "y", header=",filename,label\n"),
    "one column a class": rows("p{n}.jpg, {v}", "1, 0", "0, 1", header="filename, x, y\n"),
    "one column a class, -1": rows("p{n}.jpg,{v}", "1,-1", "-1,1", header="image_id,x,y\n"),
    "one column a class, 1.0": rows("p{n},{v}", "1.0,0.0", "0.0,1.0", header="image,x,y\n"),
    "the class first": rows("{v} p{n}.jpg", "x", "y"),
    "quotes": rows('"p{n}.jpg","{v}"', "x", "y", header='"image","label"\n'),
    "Excel's first line": "sep=;\r\n" + rows("p{n}.jpg;{v}", "x", "y", end="\r\n"),
    "UTF-16": rows("p{n}.jpg\t{v}", "x", "y", end="\r\n").encode("utf-16"),
    "a mark of UTF-8": b"\xef\xbb\xbf" + rows("p{n}.jpg,{v}", "x", "y", header="file,class\n").encode(),
    "a comment at the top": rows("p{n}.jpg {v}", "x", "y", header="# made by hand, 2012\n\n"),
    "lines of old Macs": rows("p{n}.jpg,{v}", "x", "y", end="\r"),
    "a comma at each line's end": rows("p{n}.jpg,{v},", "x", "y"),
    "ids": rows("p{n} {v}", "x", "y"),
    "./": rows("./p{n}.jpg,{v}", "x", "y"),
    "backslashes": rows(".\\p{n}.jpg,{v}", "x", "y"),
    "letters of another case": rows("P{n}.JPG,{v}", "x", "y"),
    "a folder that has gone": rows("/home/bob/set/p{n}.jpg {v}", "x", "y"),
    "Windows' drive": rows("C:\\set\\p{n}.jpg,{v}", "x", "y"),
    "the folder's own name": rows("images/p{n}.jpg,{v}", "x", "y"),
    "boxes of one class": rows("p{n},{v}", "x 1 2 3 4 x 5 6 7 8 ", "y 1 2 3 4", header="ImageId,PredictionString\n"),
}


@pytest.mark.parametrize("kind", READ)
def test_lists_that_are_clear(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, SIX, {"list.csv": READ[kind]})
    assert labels(open_source(tmp_path / "list.csv", split=0)) == six("x", "y")


STOPS = {
    "no column is known": (
        rows("p{n}.jpg,4{n},f,{v}", "x", header="path,age,sex,dx\n"),
        "path, age, sex, dx",
    ),
    "no header": (rows("p{n}.jpg,{n},{v}", "x", "y"), r"as in line 1: \['p0.jpg', '0', 'x'\].*--label-column"),
    "two classes": (
        rows("p{n}.jpg,{v}", "1,x", "1,y", "2,z", header="name,label,species\n"),
        "label, species could",
    ),
    "several 1s": (rows("p{n}.jpg,{v}", "1,0", "1,1", header="name,x,y\n"), r"line 3 has 2 classes \(x, y\)"),
    "no 1": (rows("p{n}.jpg,{v}", "0,0", header="name,x,y\n"), "line 2 has 0 classes"),
    "columns of 0 and 1 or a class": (
        rows("p{n}.jpg,{v}", "1,0", "0,1", header="name,label,y\n"),
        "label could be",
    ),
    "no label": ("name,class\np0.jpg,x\np1.jpg,\n", "line 3: a name and a class"),
    "nan": ("name,class\np0.jpg,x\np1.jpg,nan\n", "line 3: the label 'nan' says"),
    "a measure": (rows("p{n}.jpg,0.{n}", header="name,score\n"), "fraction"),
    "a checksum": (rows("{v}  p{n}.jpg", "ab" * 16), "checksum"),
    "captions": (rows("p{n}.jpg,a dog {n}", header="image,caption\n"), "no column is known"),
    "several labels": (rows("p{n}.jpg,{v}", "x", "x|y", header="name,label\n"), "'x|y' looks like several"),
    "several numbers": (rows("p{n}.jpg,{v}", "0 3", "2", header="name,labels\n"), "'0 3' holds several numbers"),
    "boxes of two classes": (rows("p{n},x 1 2 3 4 y 1 2 3 4", header="ImageId,PredictionString\n"), "several classes"),
    "a field too many": ("name,class\np0.jpg,x, y\n", "line 2 has 3 fields, the header 2"),
    "an open quote": ('name,class\np0.jpg,"x\np1.jpg,y\n', "quotes must close"),
    "a header or a picture": ("slug,kind\np0,x\np1,y\n", "line 1 could be a header"),
    "true is train, false is what": (
        rows("p{n}.jpg,x,{v}", 0, 1, header="name,class,is_train\n"),
        "is_train doesn't",
    ),
    "another split": (rows("p{n}.jpg,x,PublicTest", header="name,class,Usage\n"), "'PublicTest' must be train, val or"),
    "one number twice": (rows("p{n}.jpg,{v}", "1", "01"), "'01' and '1' differ"),
    "letters' case": (rows("p{n}.jpg,{v}", "cat", "Cat"), "'Cat' and 'cat' differ"),
    "one file under two names": ("p0.jpg,x\nP0.JPG,y\n", "'p0.jpg' is 'x' in line 1, but 'y' in line 2"),
    "UTF-16 that is none": (b"\xff\xfea", "begins as UTF-16"),
    "no text": (b"a\0b", "is no text"),
    "a header alone": ("name,class\n", "no pictures"),
}


@pytest.mark.parametrize("kind", STOPS)
def test_lists_that_stop(tmp_path: Path, kind: str) -> None:
    text, message = STOPS[kind]
    fill(tmp_path, SIX, {"list.csv": text})
    with pytest.raises((UsageError, DataError), match=message):
        open_source(tmp_path / "list.csv")


def test_a_class_for_nearly_each_picture_stops(tmp_path: Path) -> None:
    fill(tmp_path, [f"{n}.jpg" for n in range(21)], {"l.csv": "".join(f"{n}.jpg,patient-{n}\n" for n in range(21))})
    with pytest.raises(UsageError, match="each of the 21 pictures would be a class of its own"):
        open_source(tmp_path / "l.csv")


def test_columns_that_are_asked_for(tmp_path: Path) -> None:
    text = rows("{n},p{n}.jpg,4{n},{v}", "x,train", "y,test", header="patient,scan,age,dx,round\n")
    fill(tmp_path, SIX, {"list.csv": text, "plain.txt": rows("p{n}.jpg {n} {v} 7", "x", "y")})
    source = open_source(tmp_path / "list.csv", columns=ColumnNames("scan", "DX", "round"), split=0)
    assert labels(source) == six("x", "y")
    assert splits(source)["p1.jpg"] == "test"
    assert any("not used: patient, age" in note for note in source.notes)
    assert labels(open_source(tmp_path / "plain.txt", columns=ColumnNames("1", "3"), split=0)) == six("x", "y")
    with pytest.raises(UsageError, match="--label-column: unknown column 'dy': did you mean 'dx'"):
        open_source(tmp_path / "list.csv", columns=ColumnNames(label="dy"))
    with pytest.raises(UsageError, match="digits is no list"):
        open_source("digits", columns=ColumnNames(label="x"))


def test_names_with_spaces(tmp_path: Path) -> None:
    fill(tmp_path, ["my cat 1.jpg", "my dog.jpg"], {"l.txt": "my cat 1.jpg cat\nmy dog.jpg dog\n", "q.txt": ""})
    assert labels(open_source(tmp_path / "l.txt", split=0)) == {"my cat 1.jpg": "cat", "my dog.jpg": "dog"}
    (tmp_path / "q.txt").write_text('"my cat 1.jpg" "big cat"\n"my dog.jpg" dog\n', encoding="utf-8")
    assert labels(open_source(tmp_path / "q.txt", split=0)) == {"my cat 1.jpg": "big cat", "my dog.jpg": "dog"}


def test_what_a_name_may_mean(tmp_path: Path) -> None:
    files = ["a/1.jpg", "a/1.png", "b/2.jpg", "b/3.jpg", "thumbs/3.jpg", "A.jpg", "a.jpg"]
    inside = "/etc/passwd,x\n../out.jpg,y\n..\\out.jpg,y\n1,x\n2,y\n3.jpg,x\nx" + "y" * 5000 + ".jpg,y\n"
    fill(tmp_path / "set", files, {"l.csv": "name,class\n" + inside})
    fill(tmp_path, ["out.jpg"], {})
    source = open_source(tmp_path / "set/l.csv", split=0)
    assert labels(source) == {"b/2.jpg": "y"}
    failed = dict(source.failed)
    leaves = "its name leaves the folder; not read"
    assert [failed[name] for name in ("/etc/passwd", "../out.jpg", "..\\out.jpg")] == [leaves] * 3
    assert failed["1"] == "2 files could be meant: a/1.jpg, a/1.png"
    assert failed["3.jpg"] == "2 files could be meant: b/3.jpg, thumbs/3.jpg"
    assert failed["x" + "y" * 5000 + ".jpg"] == "in the list, but missing"
    (tmp_path / "set/l.csv").write_text("A.JPG,x\n2.jpg,y\na.jpg,z\n", encoding="utf-8")
    source = open_source(tmp_path / "set/l.csv", split=0)  # a.jpg lies beside the list: what isn't there is missing
    assert labels(source) == {"a.jpg": "z"}
    assert dict(source.failed)["A.JPG"] == "2 files could be meant: A.jpg, a.jpg"
    assert dict(source.failed)["2.jpg"] == "in the list, but missing"


def test_another_machines_folder_is_never_guessed(tmp_path: Path) -> None:
    fill(tmp_path, ["cat/1.jpg", "cat/2.jpg"], {"l.txt": "/h/x/cat/1.jpg 0\n/h/x/dog/1.jpg 1\n/h/x/dog/2.jpg 1\n"})
    source = open_source(tmp_path / "l.txt", split=0)
    assert labels(source) == {"cat/1.jpg": "0"}
    assert set(dict(source.failed)) == {"/h/x/dog/1.jpg", "/h/x/dog/2.jpg"}
    assert any("'/h/x/cat/1.jpg' is cat/1.jpg" in note for note in source.notes)


def test_caffes_two_lists_and_a_filler(tmp_path: Path) -> None:
    fill(
        tmp_path,
        [f"images/{part}{n}.jpg" for part in ("a", "b", "c") for n in range(4)],
        {
            "train.txt": "".join(f"a{n}.jpg {n % 2}\n" for n in range(4)),
            "val_map.txt": "".join(f"b{n}.jpg {n % 2}\n" for n in range(4)),
            "test.txt": "".join(f"c{n}.jpg 0\n" for n in range(4)),
            "synset_words.txt": "n01 tench, Tinca tinca\nn02 shark\n",
        },
    )
    source = open_source(tmp_path)
    assert source.kind == "lists train.txt, test.txt, val_map.txt"
    assert source.classes == ("n01 tench, Tinca tinca", "n02 shark")
    assert splits(source) == {
        f"images/{s}{n}.jpg": part for s, part in (("a", "train"), ("b", "val")) for n in range(4)
    }
    assert dict(source.skipped)["images/c3.jpg"] == "in test.txt, which has no classes"
    assert "test.txt gives all 4 pictures the class '0'" in source.notes


def test_kaggles_files(tmp_path: Path) -> None:
    fill(
        tmp_path,
        [f"train/{n}.jpg" for n in range(4)] + [f"test/{n}.jpg" for n in range(4, 8)],
        {
            "train.csv": "id,breed\n" + "".join(f"{n},{'xy'[n % 2]}\n" for n in range(4)),
            "test.csv": "id,width\n" + "".join(f"{n},300\n" for n in range(4, 8)),
            "sample_submission.csv": "id,breed\n" + "".join(f"{n},x\n" for n in range(4, 8)),
        },
    )
    source = open_source(tmp_path, split=0)
    assert labels(source) == {f"train/{n}.jpg": "xy"[n % 2] for n in range(4)}
    assert dict(source.skipped)["test/4.jpg"] == "in test.csv, which has no classes"
    assert "sample_submission.csv is a form to fill in; it was not used" in source.notes


def test_lists_of_names_give_the_splits(tmp_path: Path) -> None:
    texts = {
        "labels.csv": rows("p{n}.jpg,{v}", "x", "y"),
        "train.txt": "p0.jpg\np1.jpg\n",
        "test.txt": "p2.jpg\np3.jpg\n",
    }
    fill(tmp_path, SIX, texts)
    source = open_source(tmp_path)
    assert splits(source) == {"p0.jpg": "train", "p1.jpg": "train", "p2.jpg": "test", "p3.jpg": "test"}
    assert dict(source.skipped)["p4.jpg"] == "in none of test.txt, train.txt"


def test_folders_give_the_splits_where_the_list_gives_none(tmp_path: Path) -> None:
    names = [f"{part}/{n}.jpg" for part in ("train", "test") for n in range(4)]
    fill(
        tmp_path,
        names,
        {"labels.csv": "name,class\n" + "".join(f"{name},{'xy'[int(name[-5]) % 2]}\n" for name in names)},
    )
    assert splits(open_source(tmp_path / "labels.csv")) == {name: name.split("/")[0] for name in names}


def test_lists_of_one_name_in_two_folders(tmp_path: Path) -> None:
    texts: dict[str, str | bytes] = {f"{part}.txt": "0.jpg 0\n1.jpg 1\n" for part in ("train", "val")}
    fill(tmp_path, [f"{part}/{n}.jpg" for part in ("train", "val") for n in range(2)], texts)
    source = open_source(tmp_path)
    assert splits(source) == {f"{part}/{n}.jpg": part for part in ("train", "val") for n in range(2)}


def test_lists_within_the_split_folders(tmp_path: Path) -> None:
    names = {part: [f"{part}{n}.jpg" for n in range(2)] for part in ("train", "valid", "test")}
    for part, group in names.items():
        fill(tmp_path / part, group, {"_classes.csv": f"filename, x, y\n{group[0]}, 1, 0\n{group[1]}, 0, 1\n"})
    source = open_source(tmp_path)
    assert splits(source) == {f"{part}/{name}": part.replace("valid", "val") for part in names for name in names[part]}
    assert set(labels(source).values()) == {"x", "y"}


def test_lists_that_contradict_each_other(tmp_path: Path) -> None:
    fill(tmp_path, SIX, {"train.txt": rows("p{n}.jpg {v}", 0, 1), "val.txt": "p0.jpg 0\np1.jpg 1\n"})
    with pytest.raises(UsageError, match=r"is in train \(line 1 of train.txt\) and in val \(line 1 of val.txt\)"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "train.txt").entries) == 6, "the user's word chooses"
    assert "val.txt seems to be a list too; it was not used" in open_source(tmp_path / "train.txt").notes
    (tmp_path / "val.txt").rename(tmp_path / "others.txt")
    with pytest.raises(UsageError, match=r"several lists: others.txt, train.txt; point at one"):
        open_source(tmp_path)


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    fill(tmp_path, SIX, {"l.txt": rows("p{n}.jpg {v}", 10, 2, 0, 1, 5, 0)})
    source = open_source(tmp_path / "l.txt", split=0)
    assert source.classes == ("0", "1", "2", "5", "10")
    assert "the labels are numbers: there are no pictures of 3-4, 6-9; output 3 is class 5" in source.notes
    (tmp_path / "l.txt").write_text(rows("p{n}.jpg,{v}", "1.0", "2.0", "3"), encoding="utf-8")
    assert open_source(tmp_path / "l.txt", split=0).classes == ("1", "2", "3")
    (tmp_path / "l.txt").write_text(rows("p{n}.jpg,{v}", "10", "9", "cat"), encoding="utf-8")
    assert open_source(tmp_path / "l.txt", split=0).classes == ("10", "9", "cat"), "not all numbers: as text"


@pytest.mark.parametrize(
    ("numbers", "names", "classes"),
    [
        ((0, 1), "cat\ndog\n", ("cat", "dog")),
        ((1, 2), "cat\ndog\n", ("cat", "dog")),  # from 1
        ((0, 1), "1 dog\n0 cat\n", ("cat", "dog")),
        ((0, 1), "cat\ndog\nfox\n", ("0", "1")),  # a name too many: which one?
        ((0, 1), "cat\ncat\n", ("0", "1")),
    ],
)
def test_names_of_numbers(tmp_path: Path, numbers: tuple[int, int], names: str, classes: tuple[str, str]) -> None:
    fill(tmp_path, SIX, {"l.txt": rows("p{n}.jpg {v}", *numbers), "classes.txt": names})
    source = open_source(tmp_path, split=0)
    assert labels(source) == six(*classes)
    assert any("classes.txt" in note for note in source.notes), "used or not, it is told"


def test_two_files_of_names_that_differ_are_not_used(tmp_path: Path) -> None:
    fill(tmp_path, SIX, {"l.txt": rows("p{n}.jpg {v}", 0, 1), "classes.txt": "a\nb\n", "labels.txt": "b\na\n"})
    source = open_source(tmp_path, split=0)
    assert source.classes == ("0", "1")
    assert "labels.txt and classes.txt name the labels differently; neither was used" in source.notes


def test_which_texts_are_lists(tmp_path: Path) -> None:
    fill(
        tmp_path,
        SIX,
        {
            "list.csv": rows("p{n}.jpg,{v}", "x", "y"),
            "README.txt": "p0.jpg is a cat\nsome more\nand more\nand more\n",
            "md5sums.txt": rows("{v}  p{n}.jpg", "ab" * 16),
            "names.tsv": "".join(f"{name}\n" for name in SIX),
            "wide.txt": "x" * 300 + " y\n" + "z" * 5000 + "\n",
            "binary.txt": b"\0\1\2",
            "others.csv": "q.jpg,x\nr.jpg,y\n",
            "metadata.jsonl": "{}",
        },
    )
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    assert lists_in(tmp_path, os.listdir(tmp_path)) == [tmp_path / "list.csv"]
    with pytest.raises(UsageError, match=r"metadata.jsonl is JSON lines, which is not read as a list; write it as CSV"):
        open_source(tmp_path / "metadata.jsonl")


def test_a_list_of_splits_is_no_list_of_classes(tmp_path: Path) -> None:
    fill(tmp_path, SIX, {"list_eval_partition.txt": rows("p{n}.jpg {v}", 0, 1, 2)})
    with pytest.raises(UsageError, match="its name says that it holds splits"):
        open_source(tmp_path / "list_eval_partition.txt")
