"""Folders as people have them, each built in small from its public description: right labels and splits, or a stop."""

import io
import tarfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from convnet.data.sources import Source, open_source
from convnet.errors import ConvnetError, DataError, UsageError

CAT_DOG = ("cat", "dog")
ACCENT = unicodedata.normalize("NFC", "é")


def fill(root: Path, names: Iterable[str], texts: dict[str, str] | None = None) -> Path:
    """Pictures of two pixels, each another one, and texts."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.new("RGB", (2, 1), (number % 256, number // 256, 9)).save(file, "PNG")
        (root / name).write_bytes(file.getvalue())
    for name, text in (texts or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def each(pattern: str, names: Iterable[str] = CAT_DOG, n: int = 3) -> list[str]:
    """`pattern` for each class and number: train/{}/{}.jpg."""
    return [pattern.format(*[name] * (pattern.count("{") - 1), k) for name in names for k in range(n)]


def placed(source: Source) -> dict[str, tuple[str, str]]:
    return {entry.key: (entry.split, source.classes[entry.label]) for entry in source.entries}


def noted(source: Source, text: str) -> bool:
    return any(text in note for note in source.notes)


TREES = {  # {name: (pictures, {folder or picture: split} of all that is used, the part of a key that is its class)}
    "seg": (
        each("seg_train/seg_train/{}/{}.jpg") + each("seg_test/seg_test/{}/{}.jpg") + ["seg_pred/seg_pred/1.jpg"],
        {"seg_train": "train", "seg_test": "test"},
        2,
    ),
    "images beside annotations": (each("images/{}/{}.jpg"), {"images": "train"}, 1),
    "wnid/images": (
        each("train/{}/images/{}.JPEG") + each("val/{}/images/{}.JPEG"),
        {"train": "train", "val": "val"},
        1,
    ),
    "dev": (each("train/{}/{}.jpg") + each("dev/{}/{}.jpg"), {"train": "train", "dev": "val"}, 1),
    "valid, testing": (
        each("Training/{}/{}.jpg") + each("valid/{}/{}.jpg") + each("testing/{}/{}.jpg"),
        {"Training": "train", "valid": "val", "testing": "test"},
        1,
    ),
    "training_set": (
        each("training_set/training_set/{}/{}.jpg") + each("test_set/test_set/{}/{}.jpg"),
        {"training_set": "train", "test_set": "test"},
        2,
    ),
    "splits below": (each("{}/train/{}.jpg") + each("{}/val/{}.jpg"), {"*/train": "train", "*/val": "val"}, 0),
    "a second copy": (each("{}/{}.jpg") + each("data/{}/{}.jpg"), {"cat": "train", "dog": "train"}, 0),
    "a second copy of splits": (
        each("train/{}/{}.jpg") + each("set/train/{}/{}.jpg") + each("set/set/train/{}/{}.jpg"),
        {"train": "train"},
        1,
    ),
    "flat test": ([*each("train/{}/{}.jpg"), "test/1.jpg", "test/2.jpg"], {"train": "train"}, 1),
    "flat test/images": ([*each("train/{}/{}.jpg"), "test/images/1.jpg"], {"train": "train"}, 1),
    "loose": ([*each("{}/{}.jpg"), "montage.jpg"], {"cat": "train", "dog": "train"}, 0),
    "rubbish": (
        [*each("{}/{}.jpg"), "cat/.ipynb_checkpoints/0.jpg", "__MACOSX/cat/0.jpg", "dog/@eaDir/1.jpg"],
        {"cat": "train", "dog": "train"},
        0,
    ),
    "Imagenette": (
        each("train/{}/{}.JPEG", ("n01440764", "n02102040")) + each("val/{}/{}.JPEG", ("n01440764", "n02102040")),
        {"train": "train", "val": "val"},
        1,
    ),
    "Stanford Dogs": (each("Images/{}/{}.jpg", ("n02085620-Chihuahua", "n02085782-Spaniel")), {"Images": "train"}, 1),
    "Caltech-101": (
        each("101_ObjectCategories/{}/image_{}.jpg", ("BACKGROUND_Google", "accordion")),
        {"101_ObjectCategories": "train"},
        1,
    ),
    "places365_standard": (each("train/{}/{}.jpg", ("airfield", "zoo")), {"train": "train"}, 1),
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_of_class_folders(tmp_path: Path, name: str) -> None:
    names, splits, level = TREES[name]
    texts = {"annotations/x.xml": "<x/>", "Thumbs.db": "\xd0"} if "images" in name else {}
    # a copy is one: the same content
    fill(tmp_path, names, texts)
    for path in names if "copy" in name else []:
        original = tmp_path / path.replace("set/set/", "").replace("data/", "").replace("set/train", "train")
        (tmp_path / path).write_bytes(original.read_bytes())
    expected = {}
    for key in names:
        parts = key.split("/")
        split = splits.get(parts[0]) or splits.get("/".join(("*", *parts[1:2])))
        if split is not None and not any(part.startswith((".", "__", "@")) for part in parts):
            expected[key] = (split, parts[level])
    source = open_source(tmp_path, split=0)
    assert placed(source) == expected
    assert len(source.skipped) + len(expected) + len(source.failed) == len(names) + len(texts)
    if len(expected) < len(names) and name != "rubbish":
        assert noted(source, "left out: ")


STOPS = {  # {name: (pictures, what is said)}
    "flat": (["1.jpg", "2.jpg"], "neither class folders"),
    "one folder": (["images/1.jpg", "images/2.jpg"], "neither class folders"),
    "dogs-vs-cats": (["train/cat.0.jpg", "train/dog.0.jpg", "test1/1.jpg"], r"labels are not read from names \('cat"),
    "train alone, flat": (["train/cat.0.jpg"], "no class folders in train/"),
    "sub-classes": (
        each("dog/{}/{}.jpg", ("puppy", "old")) + each("cat/{}/{}.jpg", ("kitten",)),
        "of class 'cat' or of class",
    ),
    "some deeper": (["cat/1.jpg", "dog/puppy/1.jpg"], "'dog/puppy' of class 'dog' or of class 'puppy'"),
    "domains": (each("amazon/{}/{}.jpg") + each("webcam/{}/{}.jpg"), "--layout inner"),
    "folds": (["fold1/1.jpg", "fold2/2.jpg"], "cross-validation"),
    "folds of classes": (each("fold1/{}/{}.jpg") + each("fold2/{}/{}.jpg"), "cross-validation"),
    "two spellings": ([*each("train/{}/{}.jpg"), "val/cat/1.jpg", "dev/cat/1.jpg"], "dev and val are both spellings"),
    "no train": (["val/cat/1.jpg", "test/cat/1.jpg"], "but no train/"),
    "flat val": ([*each("train/{}/{}.jpg"), "val/1.jpg"], "1 picture in 'val' lie in no class folder"),
    "another set beside": (each("train/{}/{}.jpg") + each("other/{}/{}.jpg"), "beside train lies 'other'"),
    "no copy": ([*each("{}/{}.jpg"), "data/cat/9.jpg"], "but other pictures"),
    "mostly loose": (["cat/1.jpg", "1.jpg", "2.jpg"], r"most pictures \(2 of 3\)"),
    "letters' case": (["cat/1.jpg", "Cat/2.jpg", "dog/1.jpg"], "'Cat' and 'cat' differ"),
    "zeros": (["train/1/1.jpg", "train/2/1.jpg", "test/01/1.jpg"], "'1' and '01' differ"),
    "accents": ([f"caf{ACCENT}/1.jpg", "cafe\u0301/2.jpg", "dog/1.jpg"], "how their accents are written"),
    "some splits below": (["cat/train/1.jpg", "cat/val/1.jpg", "dog/1.jpg"], "of class 'cat' or of class 'train'"),
    "two roots": (each("flowers/{}/{}.jpg") + each("pets/{}/{}.jpg"), "of class 'flowers' or of class"),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_tree_that_could_mean_two_things_stops(tmp_path: Path, name: str) -> None:
    names, text = STOPS[name]
    with pytest.raises(UsageError, match=text):
        open_source(fill(tmp_path, names))


def test_a_choice_settles_what_is_the_class(tmp_path: Path) -> None:
    fill(tmp_path, each("fold1/{}/{}.jpg") + each("fold2/{}/{}.jpg"))
    assert open_source(tmp_path, layout="outer").classes == ("fold1", "fold2")
    assert open_source(tmp_path, layout="inner").classes == CAT_DOG
    with pytest.raises(UsageError, match="--layout deep: must be folders, outer or inner"):
        open_source(tmp_path, layout="deep")


def test_spellings_from_disks_that_ignore_case_or_compose_accents(tmp_path: Path) -> None:
    fill(tmp_path, [*each("train/{}/{}.jpg", ("Cat", f"caf{ACCENT}")), *each("val/{}/{}.jpg", ("cat", "cafe\u0301"))])
    source = open_source(tmp_path)
    assert source.classes == ("Cat", f"caf{ACCENT}")
    assert {split for split, _ in placed(source).values()} == {"train", "val"}
    assert noted(source, "'cat' and 'Cat' are taken for one class")


def test_numbers_stand_in_their_order(tmp_path: Path) -> None:
    fill(tmp_path, each("{}/{}.jpg", map(str, range(12)), 2))
    assert open_source(tmp_path).classes == tuple(map(str, range(12)))


def test_a_mixed_tree_is_told(tmp_path: Path) -> None:
    fill(tmp_path, [*each("{}/{}.jpg"), "cat/kittens/9.jpg"])
    source = open_source(tmp_path, split=0)
    assert placed(source)["cat/kittens/9.jpg"] == ("train", "cat")
    assert noted(source, "1 picture lie in folders below their class's: 'cat'")


@pytest.mark.parametrize(
    ("name", "texts", "note"),
    [
        (
            "Stanford Dogs",
            {"train_list.mat": "", "Annotation/x/y": "<xml>"},
            "the published split lies in 'train_list.mat'",
        ),
        ("Caltech-101", {"Annotations/x.mat": ""}, "'BACKGROUND_Google' is a class of pictures that belong to none"),
    ],
)
def test_what_is_said_of_a_published_set(tmp_path: Path, name: str, texts: dict[str, str], note: str) -> None:
    assert noted(open_source(fill(tmp_path, TREES[name][0], texts)), note)


def test_flowers_102_labels_are_not_read(tmp_path: Path) -> None:
    fill(tmp_path, ["jpg/image_00001.jpg", "jpg/image_00002.jpg"], {"imagelabels.mat": "", "setid.mat": ""})
    with pytest.raises(UsageError, match=r"labels in files such as 'imagelabels.mat', 'setid.mat' are not read"):
        open_source(tmp_path)


# lists beside class folders


def test_imagenettes_list_of_noisy_labels_is_not_used(tmp_path: Path) -> None:
    names = TREES["Imagenette"][0]
    rows = "".join(f"{name},{name.split('/')[1]},n02102040,{name.startswith('val')}\n" for name in names)
    fill(tmp_path, names, {"noisy_imagenette.csv": f"path,noisy_labels_0,noisy_labels_1,is_valid\n{rows}"})
    source = open_source(tmp_path)
    assert placed(source) == {name: (name.split("/")[0], name.split("/")[1]) for name in names}
    assert noted(source, "'noisy_imagenette.csv' lies there too and was not used; point at it to use it")


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("{name},{label}\n", None),  # the same
        ("{name},number {label}\n", None),  # other names for the same classes
        ("{name} {sum}\n", None),
        ("{sum}  {name}\n", None),
        ("{name},{other}\n", "has class folders, and 'labels.csv' says otherwise"),
        ("{name},one\n", "it has 1 classes for the 2 of the folders"),
        ("{name},{label},{split}\n", "is in train by its folder and in val by the list"),
        ("{name},{width}\n", None),  # no classes: a value for nearly every picture
        ("x" * 5000 + "\n", None),
    ],
)
def test_class_folders_decide_over_a_list(tmp_path: Path, text: str, stop: str | None) -> None:
    names = each("train/{}/{}.jpg") + each("val/{}/{}.jpg")
    label = {name: name.split("/")[1] for name in names}
    rows = [
        text.format(
            name=name,
            label=label[name],
            other=CAT_DOG[k % 2],
            split=("val", "train")[k % 2],
            sum=f"{k:032x}",
            width=f"{k}px",
        )
        for k, name in enumerate(names)
    ]
    fill(tmp_path, names, {"labels.csv": "".join(rows)})
    if stop is not None:
        with pytest.raises(UsageError, match=f"{stop}.*--layout folders takes the folders"):
            open_source(tmp_path)
    source = open_source(tmp_path, layout="folders" if stop else None)
    assert placed(source) == {name: (name.split("/")[0], label[name]) for name in names}


def test_a_list_decides_where_folders_are_no_classes(tmp_path: Path) -> None:
    for folder, names in {"flat": ["1.jpg", "2.jpg"], "one": ["images/1.jpg", "images/2.jpg"]}.items():
        text = "".join(f"{name},{label}\n" for name, label in zip(names, CAT_DOG, strict=True))
        source = open_source(fill(tmp_path / folder, names, {"labels.csv": text}), split=0)
        assert placed(source) == {name: ("train", label) for name, label in zip(names, CAT_DOG, strict=True)}


def test_kaggles_dog_breeds_list_reaches_the_pictures_by_id(tmp_path: Path) -> None:
    text = "id,breed\n000bec18,boxer\n001513df,pug\n"
    fill(tmp_path, ["train/000bec18.jpg", "train/001513df.jpg", "test/00a3edd2.jpg"], {"labels.csv": text})
    assert placed(open_source(tmp_path, split=0)) == {
        "train/000bec18.jpg": ("train", "boxer"),
        "train/001513df.jpg": ("train", "pug"),
    }


def test_a_list_labels_flat_test_pictures_too(tmp_path: Path) -> None:
    train = [f"Train/{k}/{n}.png" for k in range(2) for n in range(3)]
    test = [f"Test/{n}.png" for n in range(4)]
    rows = {name: k for k, name in zip((0, 0, 0, 1, 1, 1, 0, 1, 0, 1), train + test, strict=True)}
    head = "Width,Height,ClassId,Path\n"
    texts = {
        "Train.csv": head + "".join(f"2,1,{rows[name]},{name}\n" for name in train),
        "Test.csv": head + "".join(f"2,1,{rows[name]},{name}\n" for name in test),
    }
    source = open_source(fill(tmp_path, [*train, *test, "Meta/0.png", "Meta/1.png"], texts))
    assert placed(source) == {name: (name.split("/")[0].lower(), str(k)) for name, k in rows.items()}


# published sets with labels and splits in files of their own


def tiny_imagenet(root: Path) -> dict[str, tuple[str, str]]:
    wnids = ("n01443537", "n01629819")
    train = {f"train/{w}/images/{w}_{k}.JPEG": ("train", w) for w in wnids for k in range(3)}
    val = {f"val/images/val_{k}.JPEG": ("val", wnids[k % 2]) for k in range(4)}
    rows = "".join(f"{key.split('/')[-1]}\t{w}\t0\t0\t3\t3\n" for key, (_, w) in val.items())
    fill(
        root,
        [*train, *val, "test/images/test_0.JPEG"],
        {"val/val_annotations.txt": rows, "wnids.txt": "\n".join(wnids)},
    )
    return train | val


def cub(root: Path) -> dict[str, tuple[str, str]]:
    right = {
        f"images/{name}/{name}_{k}.jpg": ("train" if k else "test", name)
        for name in ("001.Black_footed_Albatross", "002.Laysan_Albatross")
        for k in range(3)
    }
    texts = {
        "images.txt": "".join(f"{n} {key.removeprefix('images/')}\n" for n, key in enumerate(right, 1)),
        "image_class_labels.txt": "".join(f"{n} {int(name[:3])}\n" for n, (_, name) in enumerate(right.values(), 1)),
        "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
        "train_test_split.txt": "".join(f"{n} {int(s == 'train')}\n" for n, (s, _) in enumerate(right.values(), 1)),
    }
    fill(root, right, texts)
    return right


def food(root: Path) -> dict[str, tuple[str, str]]:
    right = {
        f"images/{c}/{n}.jpg": ("test" if n == 7 else "train", c) for c in ("apple_pie", "waffles") for n in (5, 6, 7)
    }
    lists = {
        split: "".join(f"{key[7:-4]}\n" for key, (part, _) in right.items() if part == split)
        for split in ("train", "test")
    }
    fill(
        root,
        right,
        {f"meta/{split}.txt": text for split, text in lists.items()} | {"meta/classes.txt": "apple_pie\nwaffles\n"},
    )
    return right


def pets(root: Path) -> dict[str, tuple[str, str]]:
    right = {
        f"images/{name}_{n}.jpg": ("test" if n == 9 else "train", name)
        for name in ("Abyssinian", "english_setter")
        for n in (1, 9)
    }
    rows = {key: f"{key[7:-4]} {1 + (name == 'english_setter')} 1 1\n" for key, (_, name) in right.items()}
    texts = {
        "annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\n" + "".join(rows.values()),
        "annotations/trainval.txt": "".join(row for key, row in rows.items() if right[key][0] == "train"),
        "annotations/test.txt": "".join(row for key, row in rows.items() if right[key][0] == "test"),
    }
    fill(root, [*right, "annotations/trimaps/Abyssinian_1.png"], texts)
    return right


def places(root: Path) -> dict[str, tuple[str, str]]:
    classes = ("a/airfield", "a/apartment_building/outdoor", "z/zoo")
    train = {f"data_256/{name}/{k:08}.jpg": ("train", name) for name in classes for k in (1, 2)}
    val = {f"val_256/Places365_val_{k:08}.jpg": ("val", classes[2 - k]) for k in range(3)}
    texts = {
        "places365_train_standard.txt": "".join(
            f"{key[8:]} {classes.index(name)}\n" for key, (_, name) in train.items()
        ),
        "places365_val.txt": "".join(f"{key[8:]} {classes.index(name)}\n" for key, (_, name) in val.items()),
    }
    fill(root, [*train, *val, "test_256/Places365_test_00000001.jpg"], texts)
    return train | val


def gtsrb(root: Path) -> dict[str, tuple[str, str]]:
    train = {
        f"Final_Training/Images/{c:05}/00000_0000{k}.ppm": ("train", f"{c:05}") for c in range(3) for k in range(2)
    }
    test = {f"Final_Test/Images/{k:05}.ppm": ("test", f"{2 - k:05}") for k in range(3)}
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    rows = "".join(f"{key.split('/')[-1]};2;1;0;0;1;1;{int(name)}\n" for key, (_, name) in test.items())
    texts = {
        f"Final_Training/Images/{c:05}/GT-{c:05}.csv": f"{head}00000_00000.ppm;2;1;0;0;1;1;{c}\n" for c in range(3)
    }
    fill(root, [*train, *test], {**texts, "GT-final_test.csv": head + rows})
    return train | test


SETS = (tiny_imagenet, cub, food, pets, places, gtsrb)


@pytest.mark.parametrize("make", SETS)
@pytest.mark.parametrize("below", ["", "root/set"])
def test_published_sets(tmp_path: Path, make, below: str) -> None:  # type: ignore[no-untyped-def]
    right = make(tmp_path / below)
    source = open_source(tmp_path)
    prefix = f"{below}/" if below else ""
    assert placed(source) == {prefix + key: value for key, value in right.items()}
    assert not source.failed


def test_a_tar_of_a_published_set_is_read_as_its_folder(tmp_path: Path) -> None:
    right = cub(tmp_path / "CUB_200_2011")
    with tarfile.open(tmp_path / "cub.tar", "w") as tar:
        tar.add(tmp_path / "CUB_200_2011", "CUB_200_2011")
    assert placed(open_source(tmp_path / "cub.tar")) == {f"CUB_200_2011/{key}": value for key, value in right.items()}


def test_gtsrb_without_the_tests_classes(tmp_path: Path) -> None:
    right = gtsrb(tmp_path)
    (tmp_path / "GT-final_test.csv").unlink()
    source = open_source(tmp_path, split=0)
    assert placed(source) == {key: value for key, value in right.items() if value[0] == "train"}
    assert noted(source, "left out: 3 pictures in 'Final_Test', without labels in GTSRB's files")


def test_two_published_sets_below_one_root_are_named(tmp_path: Path) -> None:
    food(tmp_path / "food-101")
    gtsrb(tmp_path / "gtsrb")
    with pytest.raises(UsageError, match="GTSRB in 'gtsrb', and pictures beside it: 'Food-101 in food-101'"):
        open_source(tmp_path)


def test_a_published_sets_pictures_that_are_missing_or_not_listed(tmp_path: Path) -> None:
    food(tmp_path)
    (tmp_path / "images/waffles/7.jpg").rename(tmp_path / "images/waffles/8.jpg")
    source = open_source(tmp_path)
    assert source.failed == (("images/waffles/7.jpg", "in the lists of Food-101, but missing"),)
    assert dict(source.skipped)["images/waffles/8.jpg"] == "it has no label in Food-101's files"
    assert noted(source, "left out: 1 picture in 'images', without labels")


@pytest.mark.parametrize(
    ("make", "file", "text"),
    [
        (tiny_imagenet, "val/val_annotations.txt", "val_0.JPEG\tn99999999\n"),
        (tiny_imagenet, "val/val_annotations.txt", "val_0.JPEG\n"),
        (cub, "train_test_split.txt", "1 1\n"),
        (cub, "classes.txt", "1 002.Laysan_Albatross\n2 001.Black_footed_Albatross\n"),
        (food, "meta/test.txt", "apple_pie/5\n"),
        (pets, "annotations/test.txt", "Abyssinian_9 2 1 1\nenglish_setter_9 2 1 1\n"),
        (places, "places365_val.txt", "Places365_val_00000000.jpg 9\n"),
        (gtsrb, "GT-final_test.csv", "Filename;ClassId\n00000.ppm;7\n"),
        (gtsrb, "GT-final_test.csv", "Filename\n00000.ppm\n"),
    ],
)
def test_files_of_a_published_set_that_contradict_each_other(tmp_path: Path, make, file: str, text: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError):
        open_source(tmp_path)


def test_wrong_words_for_the_layout(tmp_path: Path) -> None:
    with pytest.raises(ConvnetError, match="--layout is for"):
        open_source("digits", layout="folders")
