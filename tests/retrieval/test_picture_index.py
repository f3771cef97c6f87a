"""An index of pictures: what it finds is what a plain search finds, and no damage, kill or stranger changes that."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Run
from convnet.data.store import Store
from convnet.data.store_header import shard_name
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluation.seen import from_store
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic, safetensors
from convnet.io.signals import Stop
from convnet.progress import Silent
from convnet.report.sheet import sheet
from convnet.retrieval import activations, build, index, search
from convnet.retrieval.index import Contents, load, write
from convnet.retrieval.search import Answer, Neighbour

N, D = 9, 6
CONTENTS = Contents("net.ckpt", "0" * 64, "f6", D, tuple(f"{i}.png" for i in range(N)), ("a", "b"))
FEATURES = np.random.default_rng(0).standard_normal((N, D)).astype(np.float16)
LABELS = np.arange(N) % 3 - 1


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of numbers, with codes; two pictures to a block, two blocks at a time."""
    monkeypatch.setattr(index, "BLOCK", 4 * D)
    monkeypatch.setattr(index, "PIECE", 2)
    coder = build.codes.fit("lsh", FEATURES, 12)
    contents = Contents(**{**vars(CONTENTS), "coder": "lsh"})
    write(tmp_path / "a.index", contents, LABELS, FEATURES.__getitem__, coder, coder.encode(FEATURES))
    return tmp_path / "a.index"


@pytest.fixture(scope="module")
def digits_index(untrained: Path, few_digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "digits.index"
    net = TrainedNet.load(untrained, "cpu")
    made = build.make(path, net, untrained, few_digits.path, kind="itq", n_bits=16)
    assert (made.n, made.changed, made.failed) == (450, 450, ())
    return path


def test_an_index_gives_back_what_was_written(small: Path) -> None:
    opened = load(small)
    assert np.array_equal(np.concatenate(list(opened.blocks())), FEATURES)
    assert [len(block) for block in opened.blocks()] == [4, 4, 1]
    assert np.array_equal(opened.features(np.array([7, 0, 8])), FEATURES[[7, 0, 8]])
    assert [opened.label(i) for i in range(3)] == ["", "a", "b"]
    assert opened.coder is not None
    assert np.array_equal(opened.codes, opened.coder.encode(FEATURES))


def test_a_search_of_a_digit_finds_what_the_plainest_search_finds(
    digits_index: Path, untrained: Path, few_digits: Store
) -> None:
    """Features one picture at a time: its float32 differ in the last digits, which may turn nearly equal distances."""
    net, opened, split = TrainedNet.load(untrained, "cpu"), load(digits_index), few_digits.split("val")
    assert opened.contents.stage == "f6"
    every = {
        f"{few_digits.path}/{key}": (name, i)
        for name in few_digits.splits
        for i, key in enumerate(few_digits.split(name).keys)
    }
    assert list(opened.contents.names) == sorted(every)
    rows = np.stack(
        [
            net.features(from_store(few_digits.split(split_), [i], net.preprocessing), "f6")[0]
            .numpy()
            .astype(np.float16)
            for split_, i in map(every.get, opened.contents.names)
        ]
    )
    labels = [
        few_digits.classes[few_digits.split(split_).labels[i]] for split_, i in map(every.get, opened.contents.names)
    ]
    assert [opened.label(i) for i in range(450)] == labels
    queries = net.features(from_store(split, range(5), net.preprocessing), "f6").numpy()
    places, distances = search.search(opened, queries, 6)
    plain = np.sqrt(
        np.square(queries[:, None].astype(np.float16).astype(np.float64) - rows[None].astype(np.float64)).sum(2)
    )
    # a few of 84 features are rounded to the next float16, which is 2**-10 of the largest away at most
    most = 9 * 2**-10 * np.abs(rows).max()
    assert np.allclose(distances, np.sort(plain, 1)[:, :6], rtol=0, atol=most)
    assert np.allclose(np.take_along_axis(plain, places, 1), distances, rtol=0, atol=most)
    assert [opened.contents.names[i] for i in places[:, 0]] == [f"{few_digits.path}/{key}" for key in split.keys[:5]]
    assert distances[:, 0].max() < most


def test_features_decide_among_the_nearest_codes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many candidates as there are pictures: the exact answer; as few as are wanted: the codes' pictures."""
    opened, queries = load(small), FEATURES[:4].astype(np.float32)
    exact = search.search(opened, queries, 3)
    both = search.search(opened, queries, 3, "both")
    assert np.array_equal(exact[0], both[0])
    assert np.array_equal(exact[1], both[1])
    monkeypatch.setattr(search, "CANDIDATES", 1)
    by_codes, bits = search.search(opened, queries, 3, "codes")
    assert bits[:, 0].tolist() == [0, 0, 0, 0]
    assert np.array_equal(np.sort(search.search(opened, queries, 3, "both")[0]), np.sort(by_codes))


def test_truncations_and_changed_bytes_are_found(small: Path) -> None:
    """On opening, or in a block of features when it is read; in its header, names, codes, coder and digests too."""
    data, n_late, begin = small.read_bytes(), 0, load(small)._begin

    def read(changed: bytes) -> None:
        nonlocal n_late
        small.write_bytes(changed)
        opened = load(small)
        n_late += 1
        list(opened.blocks())

    for length in range(len(data)):
        with pytest.raises(DataError, match=r"a\.index is no index that convnet index wrote"):
            read(data[:length])
    assert n_late == 0
    places = range(1, len(data), 3)
    for place in places:
        with pytest.raises(DataError, match=r"a\.index is no index that convnet index wrote"):
            read(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
    assert n_late == sum(begin <= place < begin + FEATURES.nbytes for place in places)


def test_a_stranger_s_file_is_no_index(small: Path, untrained: Path) -> None:
    """Nor is one that a stranger has sealed, and whose parts don't fit."""
    with pytest.raises(DataError, match="no index that convnet index wrote"):
        load(untrained)
    small.write_bytes(
        b"".join(map(bytes, safetensors.pieces({"features": torch.zeros(3, 4)}, {"format": index.FORMAT})))
    )
    with pytest.raises(DataError, match="its sha256 does not match"):
        load(small)
    wrong: dict[str, object] = {"names": [*range(N)], "classes": ("a",), "stage": None, "coder": "lsh"}
    wrong |= {"n_features": 7, "sha256": 1}
    for name, value in wrong.items():
        write(small, Contents(**{**vars(CONTENTS), name: value}), LABELS, FEATURES.__getitem__)
        with pytest.raises(DataError, match="no index that convnet index wrote"):
            load(small)
    write(small, Contents(**{**vars(CONTENTS), "names": CONTENTS.names[::-1]}), LABELS, FEATURES.__getitem__)
    with pytest.raises(DataError, match="its names are not in order"):
        load(small)


def test_codes_of_centres_are_kept_and_searched(tmp_path: Path) -> None:
    """Twelve parts, so that the tenth doesn't come before the second. What doesn't fit is refused, sealed as it is: a
    part too few, the signs' layers, a code beyond the centres."""
    rows = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float16)
    contents = Contents("net.ckpt", "0" * 64, "f6", 30, tuple(f"{i:02}.png" for i in range(40)), coder="pq")
    path, coder, labels = tmp_path / "a.index", build.codes.fit("pq", rows, 96), np.full(40, -1)

    def kept(coder: build.Coder, codes: np.ndarray) -> index.Index:
        write(path, contents, labels, rows.__getitem__, coder, codes)
        return load(path)

    opened = kept(coder, coder.encode(rows))
    right = coder.nearest(rows[:5], opened.words, 7)
    for ours, theirs in zip(search.search(opened, rows[:5], 7, "codes"), right, strict=True):
        assert np.array_equal(ours, theirs)
    assert right[0][:, 0].tolist() == [0, 1, 2, 3, 4]
    exact = search.search(opened, rows[:5], 7)
    assert np.array_equal(search.search(opened, rows[:5], 7, "both")[0], exact[0])
    lacking = build.Coder("pq", coder.layers[:-1])
    signs = build.Coder("pq", build.codes.fit("lsh", rows, 96).layers)
    with pytest.raises(DataError, match="its coder's layers don't fit each other"):
        kept(lacking, coder.encode(rows)[:, :-1])
    with pytest.raises(DataError, match="its codes are not 40 of 8 bits"):  # one part with 96 centres
        kept(signs, coder.encode(rows))
    with pytest.raises(DataError, match="its codes name centres that it lacks"):
        kept(coder, np.full((40, 12), 40, np.uint8))


def test_an_index_that_changed_while_it_was_searched_is_told(small: Path) -> None:
    opened = load(small)
    os.utime(small, ns=(1, 1))
    with pytest.raises(UsageError, match=r"a\.index has changed since it was opened; run the same command again"):
        list(opened.blocks())


def test_pictures_are_added_and_removed(untrained: Path, tmp_path: Path) -> None:
    """The index is the one that would have been made of all at once; an unreadable picture is told, and left out."""
    net, folder = TrainedNet.load(untrained, "cpu"), tmp_path / "pictures"
    folder.mkdir()

    def picture(i: int) -> None:
        pixels = np.random.default_rng(i).integers(0, 256, (28, 28, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")

    for i in (1, 4):
        picture(i)
    path, again = tmp_path / "a.index", tmp_path / "b.index"
    assert build.make(path, net, untrained, folder, kind="lsh", n_bits=16).n == 2
    for i in (0, 2, 3):
        picture(i)
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:400])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"torn\.png: none of the 1 pictures could be read"):
        build.add(path, net, untrained, folder / "torn.png")
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.index", "pictures"]
    added = build.add(path, net, untrained, folder)
    assert (added.n, added.changed, added.there) == (5, 3, 2)
    assert [odd["key"] for odd in added.failed] == ["torn.png"]
    whole = load(path)
    rows = np.concatenate(list(whole.blocks()))
    assert list(whole.contents.names) == [str(folder / f"{i}.png") for i in range(5)]
    build.make(again, net, untrained, folder, kind="lsh", n_bits=16)
    at_once = load(again)
    # batches of 2 and 3 pictures, or of 5: float32 in another order, then rounded to float16, whose steps are 2**-10
    assert np.allclose(
        np.concatenate(list(whole.blocks())), np.concatenate(list(at_once.blocks())), rtol=2**-9, atol=1e-3
    )
    assert build.remove(path, untrained, str(folder / "[03].png")) == build.Changed(3, 2)
    assert list(load(path).contents.names) == [str(folder / f"{i}.png") for i in (1, 2, 4)]
    assert np.array_equal(next(load(path).blocks()), rows[[1, 2, 4]])
    assert np.array_equal(load(path).codes, whole.codes[[1, 2, 4]])
    with pytest.raises(UsageError, match=r"every picture is at '.*pictures'; its first one is '.*1\.png'"):
        build.remove(path, untrained, str(folder))
    with pytest.raises(UsageError, match="no picture is at 'elsewhere'"):
        build.remove(path, untrained, "elsewhere")


def test_a_stopped_index_goes_on(
    untrained: Path, few_digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second split; the file is that of one that was never stopped, and nothing else stays."""
    monkeypatch.setattr(activations, "BATCH", 40)
    net, whole, stopped = TrainedNet.load(untrained, "cpu"), tmp_path / "whole", tmp_path / "stopped"

    class Brake(Silent):
        def update(self, done: int, **values: str) -> None:
            if (n := next(steps)) == 10:
                stop.ask(15)
            assert n <= 10

    steps, stop = count(), Stop()
    with pytest.raises(Interrupted, match="the same command goes on"):
        build.make(stopped, net, untrained, few_digits.path, progress=Brake(), stop=stop)
    assert not stopped.exists()
    for path in (stopped, whole):
        build.make(path, net, untrained, few_digits.path)
    assert stopped.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]


def test_another_net_s_features_are_refused(
    digits_index: Path, untrained: Path, few_digits: Store, tmp_path: Path, run: Run
) -> None:
    other = tmp_path / "other.ckpt"
    other.write_bytes(untrained.read_bytes() + b" ")
    before = digits_index.read_bytes()
    for change in (
        lambda: build.add(digits_index, TrainedNet.load(untrained, "cpu"), other, few_digits.path),
        lambda: build.remove(digits_index, other, "*"),
    ):
        with pytest.raises(UsageError, match=r"is of a checkpoint whose sha256 is \w{12}\.\.\., and .*other.ckpt has"):
            change()
    assert digits_index.read_bytes() == before
    code, _, said = run("search", digits_index, few_digits.path, "--checkpoint", other)
    assert code == 2
    assert "name the checkpoint that the index was made with" in said


def test_what_was_killed_while_adding_leaves_the_old_index(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each piece of the new file that is written, and before it takes the old one's place."""
    before, opened = small.read_bytes(), load(small)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> np.ndarray:
        raise Killed

    def interrupted(blocks: Iterator[int], ids: np.ndarray) -> np.ndarray:
        return FEATURES[ids] if next(blocks, None) is not None else killed()

    for most in range(5):
        blocks = iter(range(most))
        with pytest.raises(Killed):
            write(small, CONTENTS, LABELS, partial(interrupted, blocks))
        assert small.read_bytes() == before
    monkeypatch.setattr(atomic.os, "replace", killed)
    with pytest.raises(Killed):
        write(small, CONTENTS, LABELS, FEATURES.__getitem__)
    assert small.read_bytes() == before
    assert load(small).contents == opened.contents


def test_the_verbs(digits_index: Path, untrained: Path, few_digits: Store, tmp_path: Path, run: Run) -> None:
    """The page holds every picture that was found, and asks nobody for anything."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    names = [f"{i}<b>.png" for i in range(3)]
    for i, name in enumerate(names):
        Image.fromarray(few_digits.split("val").square(i)).save(pictures / name)
    (pictures / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, told, said = run("index", untrained, pictures, "a.index", "--codes", 16, "--coder", "lsh", "-q")
    assert code == 0, said
    assert "a.index: 3 pictures, 3 added, 1 failed; " in told
    assert "torn.png" in said
    code, told, said = run("search", "a.index", pictures, "--top", 2, "--html", "a.html", "-q")
    assert code == 3
    assert "1 of 4 pictures could not be read" in said
    assert f"{pictures / names[1]}:\n  0.0000  {pictures / names[1]}\n" in told
    page = Path("a.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/') == 9
    assert "0&lt;b&gt;.png" in page
    assert "<b>" not in page
    assert "not found" not in page
    for flags in ((), ("--by", "codes"), ("--by", "both"), ("--cosine",)):
        code, told, _ = run("search", digits_index, pictures / names[0], "--json", *flags)
        (answer,) = json.loads(told)
        assert code == 0
        assert len(answer["nearest"]) == 6
        assert answer["nearest"][0]["distance"] <= ("codes" in flags or 1e-3)  # one bit may be on the edge
        if "codes" not in flags:
            assert answer["nearest"][0]["name"] == f"{few_digits.path}/{few_digits.split('val').keys[0]}"
        assert answer["nearest"][0]["class"] in few_digits.classes
    assert run("index", untrained, pictures / names[0], "a.index", "--remove")[1].startswith(
        "a.index: 2 pictures, 1 removed"
    )


def test_the_page_says_why_it_lacks_a_picture(untrained: Path, few_digits: Store, tmp_path: Path) -> None:
    """Of a damaged store what is wrong with it; the others are shown."""
    store = shutil.copytree(few_digits.path, tmp_path / "store")
    shard = store / shard_name("val", 0)
    shard.write_bytes(shard.read_bytes()[:-1000])
    keys = {split: few_digits.split(split).keys[0] for split in ("val", "test")}
    names = [f"{store}/{keys['test']}", f"{store}/{keys['val']}", "nowhere.png"]
    found = Answer(names[0], tuple(Neighbour(name, "", 0.0, "0") for name in names[1:]))
    page = tmp_path / "a.html"
    assert sheet(page, "a", "", [found], TrainedNet.load(untrained, "cpu").preprocessing) == 2
    reasons = re.findall(r'class="gone"[^>]*>([^<]*)<', page.read_text(encoding="utf-8"))
    assert shard.name in reasons[0]
    assert reasons[1] == "not found"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("index", "{net}", "{store}", "a", "--add", "--remove"), "--add and --remove exclude each other"),
        (("index", "{net}", "{store}", "a", "--add", "--codes", "16"), "--stage and codes are the index's own"),
        (("index", "{net}", "{store}", "a", "--codes-only"), "--codes-only needs --codes BITS"),
        (("index", "{net}", "{store}", "{index}"), "exists; --add adds pictures to it"),
        (("index", "{net}", "{store}", "a", "--add"), "a: no such index; convnet index CHECKPOINT STORE a makes it"),
        (("search", "{index}", "{store}", "--html", "a.txt"), "--html a.txt: a page's name ends in .html"),
        (("search", "{index}", "{store}", "--top", "0"), "--top 0: at least 1"),
        (("search", "{index}", "{store}", "--by", "code"), "unknown way to search 'code': did you mean 'codes'?"),
    ],
)
def test_what_the_verbs_refuse(
    words: tuple[str, ...], text: str, digits_index: Path, untrained: Path, few_digits: Store, run: Run
) -> None:
    names = {"net": untrained, "store": few_digits.path, "index": digits_index}
    code, _, said = run(*(word.format(**names) for word in words))
    assert code == 2
    assert text in said
