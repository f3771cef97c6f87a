"""The store: its page against its bytes, crops against np.pad, every kind of flipped bit against its message."""

import ctypes
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convnet.data import prepare as preparing
from convnet.data.check import check_store
from convnet.data.index import DIGESTS, ROW
from convnet.data.loader import Loader
from convnet.data.prepare import prepare
from convnet.data.preprocess import of_recipe
from convnet.data.sources import open_source
from convnet.data.store import Store, around, crop_square, header_bytes, record
from convnet.errors import DataError, UsageError
from convnet.recipe import load_recipe
from pictures import write_photos

PAGE = Path(__file__).parents[2] / "docs/store.md"
SIZE = 12


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of 33 pictures in 2 splits and several shards; one file is no picture, one is text."""
    root = tmp_path_factory.mktemp(request.param)
    write_photos(root / "in", {"train/cat": 14, "train/dog é": 9, "val/cat": 6, "val/dog é": 4})
    (root / "in/train/cat/broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "in/val/cat/notes.txt").write_text("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "SHARD_BYTES", 10 * (3 * SIZE**2 + 128 + 3 * 512))
        patch.setattr(preparing, "JPEG_PICTURES", 10)
        return prepare(open_source(root / "in"), root / "store", size=SIZE, shorter_side=14, encoding=request.param)


def copied(made: Store, to: Path) -> Path:
    return Path(shutil.copytree(made.path, to))


# the page


def test_the_page_alone_is_enough_to_read_a_store(made: Store) -> None:
    """Nothing of convnet reads here; the answers are compared with convnet's."""
    folder = made.path
    text = (folder / "store.json").read_bytes()
    body = text[88:-2]
    assert text == b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n"store": ' + body + b"}\n"
    header = json.loads(text)["store"]
    assert header == json.loads(body)
    assert (header["format"], header["version"]) == ("convnet store", 1)
    row = [("shard", "<u4"), ("offset", "<u8"), ("length", "<u8"), ("payload", "<u8"), ("label", "<i4")]
    row += [("height", "<u4"), ("width", "<u4"), ("sum", "<u8"), ("sha256", "u1", (32,))]
    for split, about in header["splits"].items():
        index = np.load(folder / f"{split}.index.npy")
        assert index.dtype == np.dtype(row)
        assert index.dtype.itemsize == 80
        keys = [json.loads(line) for line in (folder / f"{split}.keys.jsonl").read_text("ascii").splitlines()]
        assert len(index) == len(keys) == about["n"] == sum(about["per_class"])
        assert np.bincount(index["label"], minlength=len(header["classes"])).tolist() == about["per_class"]
        assert keys == made.split(split).keys
        for shard in range(about["shards"]):
            rows = np.flatnonzero(index["shard"] == shard)
            data = (folder / f"{split}-{shard:05d}.tar").read_bytes()
            assert len(data) == header["files"][f"{split}-{shard:05d}.tar"]["bytes"]
            place = 0
            for i in rows.tolist():
                assert index["offset"][i] == place
                record = data[place : place + int(index["length"][i])]
                assert hashlib.sha256(record).digest() == index["sha256"][i].tobytes()
                words = [int.from_bytes(record[k : k + 8], "little") for k in range(0, len(record), 8)]
                assert sum(word * (2 * k + 1) for k, word in enumerate(words)) % 2**64 == index["sum"][i]
                check_record(record, index[i], header, made.split(split).picture(i))
                place += len(record)
            assert data[place:] == bytes(1024)
    named = {path.name for path in folder.iterdir()}
    assert named == {"store.json", *header["files"]}
    for name in ("mean.npy", "left_out.jsonl", "train.index.npy", "train.keys.jsonl"):
        entry = header["files"][name]
        data = (folder / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    mean = np.load(folder / "mean.npy")
    assert (mean.dtype, mean.shape) == (np.dtype("<f4"), (SIZE, SIZE, 3))
    assert np.array_equal(mean, made.mean_picture)
    left_out = [json.loads(line) for line in (folder / "left_out.jsonl").read_text("ascii").splitlines()]
    assert left_out == [
        {"status": "failed", "key": "train/cat/broken.jpg", "reason": "truncated JPEG"},
        {"status": "skipped", "key": "val/cat/notes.txt", "reason": "not a picture"},
    ]
    n_small = sum(n % 5 == 3 for n in range(14 + 9 + 6 + 4))  # those of 12 x 40
    assert header["counts"] == {"seen": 35, "used": 33, "skipped": 1, "failed": 1, "enlarged": n_small}


def check_record(record: bytes, row: np.void, header: dict, expected: np.ndarray) -> None:
    """One record by the page."""
    suffix = {"raw": "npy", "jpeg": "jpg"}[header["encoding"]]
    length = int(row["payload"])
    assert re.fullmatch(rf"\d{{9}}\.{suffix}", record[:13].decode())
    assert int(record[124:135], 8) == length
    payload = record[512 : 512 + length]
    rest = record[512 + length + -length % 512 :]
    assert not any(record[512 + length : len(record) - len(rest)])
    assert rest[:13] == record[:9] + b".cls"
    digits = str(row["label"]).encode()
    assert rest[512:] == digits + bytes(512 - len(digits))
    if suffix == "npy":
        assert length == 128 + 3 * header["size"] ** 2
        pixels = np.frombuffer(payload, np.uint8, offset=128).reshape(header["size"], header["size"], 3)
        assert np.array_equal(np.load(io.BytesIO(payload)), pixels)
    else:
        pixels = np.asarray(Image.open(io.BytesIO(payload)))
        assert min(pixels.shape[:2]) == header["shorter_side"]
    assert pixels.shape[:2] == (row["height"], row["width"])
    assert np.array_equal(pixels, expected)


def test_a_webdataset_style_reader_gets_every_sample(made: Store) -> None:
    for name, split in made.splits.items():
        samples = []
        for path in sorted(made.path.glob(f"{name}-*.tar")):
            with tarfile.open(path) as tar:
                files = [(member.name.partition("."), tar.extractfile(member).read()) for member in tar]
            samples += [
                {part[2]: data for part, data in group} | {"key": key}
                for key, group in groupby(files, lambda item: item[0][0])
            ]
        assert len(samples) == split.n
        assert len({sample["key"] for sample in samples}) == split.n
        for i, sample in enumerate(samples):
            assert int(sample["cls"]) == split.labels[i]
            if made.encoding == "raw":
                assert np.array_equal(np.load(io.BytesIO(sample["npy"])), split.picture(i))
            else:
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample["jpg"]))), split.picture(i))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_webdataset_gets_every_sample(made: Store) -> None:
    webdataset = pytest.importorskip("webdataset")
    for name, split in made.splits.items():
        shards = [str(path) for path in sorted(made.path.glob(f"{name}-*.tar"))]
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
        assert [int(sample["cls"]) for sample in samples] == list(split.labels)
        part = "npy" if made.encoding == "raw" else "jpg"
        for i, sample in enumerate(samples):
            data = io.BytesIO(sample[part])
            assert np.array_equal(np.load(data) if part == "npy" else np.asarray(Image.open(data)), split.picture(i))


def test_the_pages_own_code_runs(made: Store) -> None:
    if made.encoding == "jpeg":
        pytest.skip("the page shows a raw store")
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    found: dict = {}
    exec(code[0].replace("stores/photos", str(made.path)), found)
    assert np.array_equal(found["pixels"], made.split("train").picture(0))
    assert found["name"] == made.classes[made.split("train").labels[0]]


def test_the_page_names_every_field_of_the_header(made: Store) -> None:
    page = PAGE.read_text()
    fields = {*made.header, *made.header["counts"], *made.header["statistics"], *made.header["splits"]["train"]}
    fields |= {*made.header["source"], *ROW.names, *DIGESTS.names}
    assert [field for field in sorted(fields) if f"`{field}`" not in page] == []


@pytest.mark.parametrize(("position", "label", "suffix", "size"), [
    (1, 0, "npy", 196736), (123456789, 99, "jpg", 1), (0, 1_000_000, "jpg", 512), (7, 3, "jpg", 0),
])  # fmt: skip
def test_a_record_is_what_tarfile_writes(position: int, label: int, suffix: str, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    expected = b""
    for ending, content in ((suffix, data), ("cls", str(label).encode())):
        info = tarfile.TarInfo(f"{position:09d}.{ending}")
        info.size, info.mode, info.mtime = len(content), 0o644, 0
        expected += info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    assert record(position, label, suffix, data) == expected
    before, after = around(position, label, suffix, size)
    assert before + data + after == expected


# reading


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9), st.integers(1, 14), st.integers(-20, 20), st.integers(-20, 20))
def test_crops_equal_a_padded_picture(size: int, crop: int, top: int, left: int) -> None:
    square = np.arange(1, 3 * size**2 + 1, dtype=np.uint8).reshape(size, size, 3)
    wide = np.pad(square, ((40, 40), (40, 40), (0, 0)))
    right = wide[40 + top : 40 + top + crop, 40 + left : 40 + left + crop]
    assert np.array_equal(crop_square(square, top, left, crop), right)


def test_crops_of_a_store_equal_those_of_its_pictures(made: Store) -> None:
    split, random = made.split("train"), np.random.default_rng(0)
    ids = random.integers(0, split.n, 50)
    tops, lefts = random.integers(-6, SIZE, (2, 50))
    got = split.crops(ids, tops, lefts, 8)
    assert (got.dtype, got.shape) == (np.uint8, (50, 8, 8, 3))
    for k in range(50):
        frame = split.picture(ids[k])
        above, before = (frame.shape[0] - SIZE) // 2, (frame.shape[1] - SIZE) // 2
        square = frame[above : above + SIZE, before : before + SIZE]
        wide = np.pad(square, ((20, 20), (20, 20), (0, 0)))
        assert np.array_equal(got[k], wide[20 + tops[k] : 28 + tops[k], 20 + lefts[k] : 28 + lefts[k]])


def test_pictures_of_a_raw_store_are_mapped(made: Store) -> None:
    if made.encoding == "raw":
        picture = made.split("val").picture(0)
        assert not picture.flags.owndata
        assert not picture.flags.writeable


def test_the_addresses_of_many_pictures_are_theirs(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    split, verified = Store(made.path).split("train"), []
    assert split.is_mapped == (made.encoding == "raw")
    if split.is_mapped:
        verify = split.verify
        monkeypatch.setattr(split, "verify", lambda i: (verified.append(i), verify(i)))
        ids = np.random.default_rng(0).integers(0, split.n, 50)
        addresses, shards = split.addresses(ids)
        assert set(verified) == set(ids.tolist())
        assert len(shards) > 1
        for i, address in zip(ids, addresses.tolist(), strict=True):
            assert ctypes.string_at(address, 3 * SIZE**2) == split.square(i).tobytes()


def test_what_is_asked_for_must_be_there(made: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown split 'vall': did you mean 'val'"):
        made.split("vall")
    with pytest.raises(UsageError, match=r"is not a store \(it has no store.json\); make one with: convnet prepare"):
        Store(tmp_path)


def test_another_version_is_refused(made: Store, tmp_path: Path) -> None:
    path = copied(made, tmp_path / "s")
    body = json.dumps({**made.header, "version": 3}).encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    (path / "store.json").write_bytes(b'{"sha256": "' + digest + b'",\n"store": ' + body + b"}\n")
    with pytest.raises(DataError, match="is of format convnet store 3, this convnet reads convnet store 1 and 2"):
        Store(path)


# flipped bits


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_in_any_part_of_a_record_names_the_picture(made: Store, tmp_path: Path) -> None:
    """The header, the payload, its padding, the header of the label, the label, its padding: two bytes of each."""
    path, split, i = copied(made, tmp_path / "s"), made.split("train"), 7
    row, shard = split.rows[i], f"train-{split.rows[i]['shard']:05d}.tar"
    start, payload = int(row["offset"]), int(row["payload"])
    label = start + int(row["length"]) - 1024
    places = [start, start + 511, start + 512, start + 511 + payload, label - 1, label, label + 511]
    places += [label + 512, label + 513, label + 1023]
    assert payload % 512, "there is padding to damage"
    clean = (path / shard).read_bytes()
    for n, place in enumerate(places):
        flip(path / shard, place, n % 8)
        with pytest.raises(DataError, match=re.escape(f"{shard} is damaged at picture {split.keys[i]!r}; prepare")):
            Store(path).split("train").picture(i)
        Store(path).split("train").picture(i - 1)
        report = check_store(path)
        assert [problem.keys for problem in report.problems] == [(split.keys[i],)]
        assert not report.ok
        (path / shard).write_bytes(clean)
    assert check_store(path).ok


def test_a_record_is_verified_when_it_is_read_first_and_not_again(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    verified, split = [], Store(made.path).split("val")
    monkeypatch.setattr(split, "verify", verified.append)
    for i in (2, 0, 2, 2, 0):
        split.payload(i)
    assert verified == [2, 0]


def test_flips_in_two_pictures_and_the_trailer_are_all_named(made: Store, tmp_path: Path) -> None:
    path, split = copied(made, tmp_path / "s"), made.split("train")
    for i in (2, 15):
        flip(path / f"train-{split.rows[i]['shard']:05d}.tar", int(split.rows[i]["offset"]) + 700, 3)
    flip(path / "val-00000.tar", made.header["files"]["val-00000.tar"]["bytes"] - 5, 0)
    flip(path / "mean.npy", 200, 1)
    report = check_store(path)
    assert {key for problem in report.problems for key in problem.keys} == {split.keys[2], split.keys[15]}
    text = "\n".join(report.lines())
    assert "val-00000.tar does not end in 1024 zeros" in text
    assert "mean.npy is damaged" in text
    assert "4 errors, 0 warnings" in text


def read_small_files(path: Path) -> None:
    store = Store(path)
    assert store.mean_picture.shape == (SIZE, SIZE, 3)
    assert store.mean_picture.flags.writeable  # else torch warns where it becomes a tensor
    assert all(len(split.keys) == split.n for split in store.splits.values())
    store.read_file("left_out.jsonl")


@pytest.mark.parametrize("name", ["train.index.npy", "val.keys.jsonl", "mean.npy", "left_out.jsonl"])
def test_flips_in_other_files_are_noticed_on_reading_and_by_check(made: Store, tmp_path: Path, name: str) -> None:
    path, random = copied(made, tmp_path / "s"), np.random.default_rng(0)
    clean = (path / name).read_bytes()
    for place in [0, 9, len(clean) - 1, *random.integers(0, len(clean), 40).tolist()]:
        flip(path / name, place, int(random.integers(8)))
        with pytest.raises(DataError, match=f"{name} is damaged: its sha256 does not match"):
            read_small_files(path)
        assert any(f"{name} is damaged" in problem.text for problem in check_store(path).problems)
        (path / name).write_bytes(clean)


def test_every_byte_of_the_header_counts(made: Store, tmp_path: Path) -> None:
    path, random = copied(made, tmp_path / "s"), np.random.default_rng(0)
    clean = (path / "store.json").read_bytes()
    for place in range(0, len(clean), 1 if made.encoding == "raw" else 7):
        flip(path / "store.json", place, int(random.integers(8)))
        with pytest.raises(DataError, match=r"store\.json is damaged: its sha256 does not match"):
            Store(path)
        if place % 100 == 0:
            assert [problem.kind for problem in check_store(path).problems] == ["header"]
        (path / "store.json").write_bytes(clean)
    for length in range(0, len(clean), 7):
        (path / "store.json").write_bytes(clean[:length])
        with pytest.raises(DataError, match=r"store\.json is damaged"):
            Store(path)


@pytest.mark.large
def test_a_flip_anywhere_in_a_store_counts(made: Store, tmp_path: Path) -> None:
    path = copied(made, tmp_path / "s")
    for file in sorted(path.iterdir()):
        clean = file.read_bytes()
        for place in range(0, len(clean), 7):
            flip(file, place, place % 8)
            assert not check_store(path).ok, (file, place)
            file.write_bytes(clean)


def test_a_shard_cut_short_too_long_or_gone(made: Store, tmp_path: Path) -> None:
    path = copied(made, tmp_path / "s")
    clean = (path / "val-00000.tar").read_bytes()
    for data in (clean[:-1], clean + b"\0", clean[:600], b""):
        (path / "val-00000.tar").write_bytes(data)
        with pytest.raises(DataError, match=r"val-00000\.tar (has|cannot be read).*; prepare the store again"):
            Store(path).split("val").picture(0)
        assert not check_store(path).ok
    (path / "val-00000.tar").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Store(path).split("val").picture(0)
    assert "val-00000.tar cannot be read" in "\n".join(check_store(path).lines())


# a stranger's store, whose sha256 is right


def forged(store: Store, folder: Path, **changes: object) -> Path:
    """A copy of a store with another header, and its right sha256."""
    shutil.copytree(store.path, folder / "forged")
    (folder / "forged" / "store.json").write_bytes(header_bytes({**store.header, **changes}))
    return folder / "forged"


def many_shards(header: dict[str, Any]) -> dict[str, Any]:
    return {"splits": {**header["splits"], "train": {**header["splits"]["train"], "shards": 10**30}}}


def bad_name(header: dict[str, Any]) -> dict[str, Any]:
    return {"files": {**header["files"], "../../outside": {"bytes": 1, "sha256": "0"}}}


@pytest.mark.parametrize(
    "changes",
    [
        many_shards,
        bad_name,
        lambda header: {"classes": [1, 2]},
        lambda header: {"classes": []},
        lambda header: {"size": "28"},
        lambda header: {"size": 1 << 40, "shorter_side": 1 << 41},
        lambda header: {"splits": {"../x": header["splits"]["train"]}},
        lambda header: {"splits": {"train": []}},
        lambda header: {"statistics": {**header["statistics"], "covariance": [1.0]}},
        lambda header: {"statistics": {**header["statistics"], "n": None}},
        lambda header: {"files": {**header["files"], "mean.npy": {"bytes": 1}}},
        lambda header: {"source": {"name": "../../evil", "kind": "x", "notes": []}},
        lambda header: {"counts": None},
        lambda header: {"encoding": "exe"},
    ],
)
def test_an_impossible_header_is_refused(digits: Store, tmp_path: Path, changes: Callable[[Any], Any]) -> None:
    with pytest.raises(DataError, match=r"store.json: the header is wrong: .*; prepare the store again"):
        Store(forged(digits, tmp_path, **changes(digits.header)))


def test_a_header_lists_every_file_that_is_read(digits: Store, tmp_path: Path) -> None:
    for name in digits.header["files"]:
        others = {other: entry for other, entry in digits.header["files"].items() if other != name}
        with pytest.raises(DataError, match=f"{name} is not among its files"):
            Store(forged(digits, tmp_path / name, files=others))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("shard", 7), ("shard", 1), ("label", 10), ("label", -1), ("offset", 2**63)),
        *(("length", 2**62), ("length", 0), ("payload", 9)),
    ],
)
def test_an_impossible_row_is_refused(digits: Store, tmp_path: Path, field: str, value: int) -> None:
    rows = digits.split("val").rows[:].copy()
    rows[field][3] = value
    data = io.BytesIO()
    np.save(data, rows)
    entry = {"bytes": len(data.getvalue()), "sha256": hashlib.sha256(data.getvalue()).hexdigest()}
    path = forged(digits, tmp_path, files={**digits.header["files"], "val.index.npy": entry})
    (path / "val.index.npy").write_bytes(data.getvalue())
    with pytest.raises(DataError, match=r"val.index.npy: row 3 is impossible"):
        Store(path)


@pytest.mark.parametrize(
    "row",
    [{"status": "failed", "key": "a"}, {"status": "failed", "key": "a", "reason": 3}, {"key": "a", "why": "b"}, []],
)
def test_a_list_of_what_was_left_out_that_is_none_is_refused(digits: Store, tmp_path: Path, row: object) -> None:
    data = json.dumps(row).encode() + b"\n"
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path = forged(digits, tmp_path, files={**digits.header["files"], "left_out.jsonl": entry})
    (path / "left_out.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=r"left_out.jsonl is damaged: .*; prepare the store again"):
        Store(path).left_out()


def test_a_store_with_classes_that_a_net_lacks_names_three_of_each(digits: Store) -> None:
    with pytest.raises(UsageError) as caught:
        digits.with_labels_of(["a", "b", "c", "d"], "net.ckpt")
    some, theirs = (", ".join(map(repr, names[:3])) for names in (digits.classes, "abcd"))
    assert f"has 10 classes that net.ckpt lacks, as {some}; the net's are {theirs} ...: name them" in str(caught.value)


def test_an_array_that_claims_more_than_it_has_is_refused(digits: Store, tmp_path: Path) -> None:
    data = io.BytesIO()
    np.save(data, np.zeros((1, 28, 3), np.float32))
    claimed = data.getvalue().replace(b"(1, 28, 3)", b"(9**9, 28)")
    entry = {"bytes": len(claimed), "sha256": hashlib.sha256(claimed).hexdigest()}
    path = forged(digits, tmp_path, files={**digits.header["files"], "mean.npy": entry})
    (path / "mean.npy").write_bytes(claimed)
    with pytest.raises(DataError, match=r"mean.npy has an unknown layout"):
        _ = Store(path).mean_picture


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_not_the_end(
    digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a mapped page that is gone ends a process; so the length is looked at before each read."""
    monkeypatch.setattr("convnet.data.loader.PIECE", 1)  # a batch
    shutil.copytree(digits.path, tmp_path / "store")
    split = Store(tmp_path / "store").split("train")
    recipe = load_recipe("lenet5_small")
    how = of_recipe(recipe, digits.mean_picture, None)
    loader = Loader(split, digits.statistics, np.arange(split.n), recipe, how, torch.device("cpu"), 0)
    batches = loader.epoch(1)
    next(batches)
    os.truncate(tmp_path / "store" / "train-00000.tar", 4096)
    with pytest.raises(DataError, match=r"train-00000.tar has 4096 bytes instead of"):
        next(batches)
