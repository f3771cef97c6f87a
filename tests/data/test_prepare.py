"""Preparation: geometry and statistics against brute force; killed, interrupted, out of disk: the same bytes."""

import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnet.data import prepare as preparing
from convnet.data.check import check_folder, check_store
from convnet.data.decode import decode
from convnet.data.preparation import records
from convnet.data.prepare import WORK, prepare
from convnet.data.resize import Settings, to_frame, to_square
from convnet.data.sources import Source, open_source
from convnet.data.statistics import BLOCK, Sums, channel_products, statistics
from convnet.data.store import Store
from convnet.errors import DataError, DiskError, UsageError
from convnet.io import atomic
from convnet.progress import Silent
from forked import run
from pictures import content, encoded, photo, write_photos

SIZE = 10
FOLDERS = {"train/a": 21, "train/b": 14, "val/a": 5, "val/b": 6}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 pictures to a shard, 3 to a worker."""
    monkeypatch.setattr(preparing, "SHARD_BYTES", 12 * (3 * SIZE**2 + 128 + 3 * 512))
    monkeypatch.setattr(preparing, "JPEG_PICTURES", 12)
    monkeypatch.setattr(records, "CHUNK", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_photos(tmp_path_factory.mktemp("photos"), FOLDERS)
    (root / "train/a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


@pytest.fixture
def source(folder: Path) -> Source:
    return open_source(folder)


def made_of(source: Source, path: Path, **options: object) -> dict[str, bytes]:
    prepare(source, path, **{"size": SIZE, "workers": 1, **options})
    return content(path)


def stored_of(pixels: np.ndarray, shorter: int, encoding: str) -> np.ndarray:
    if encoding == "jpeg":
        return to_frame(pixels, Settings(SIZE, shorter, "jpeg"))
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    to_square(pixels, Settings(SIZE, shorter, "raw"), out)
    return out


# geometry


@pytest.mark.parametrize(
    "sides", [(24, 18), (17, 29), (16, 16), (10, 10), (12, 50), (5, 7), (1, 9), (11, 10), (10, 13)]
)
@pytest.mark.parametrize("shorter", [SIZE, 15])
def test_shorter_side_and_central_square_equal_plain_pillow(sides: tuple[int, int], shorter: int) -> None:
    pixels = photo(3, *sides)
    width, height = sides
    if width <= height:
        right = Image.fromarray(pixels).resize((shorter, round(height * shorter / width)), Image.BICUBIC)
    else:
        right = Image.fromarray(pixels).resize((round(width * shorter / height), shorter), Image.BICUBIC)
    assert np.array_equal(stored_of(pixels, shorter, "jpeg"), np.asarray(right))
    top, left = (right.height - SIZE) // 2, (right.width - SIZE) // 2
    square = np.asarray(right)[top : top + SIZE, left : left + SIZE]
    assert np.array_equal(stored_of(pixels, shorter, "raw"), square)


def test_a_picture_of_the_right_size_is_stored_as_it_is(tmp_path: Path) -> None:
    for n in range(4):
        path = tmp_path / "in/train" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(n, SIZE, SIZE), "PNG"))
    made = prepare(open_source(tmp_path / "in", split=0), tmp_path / "store", size=SIZE)
    split = made.split("train")
    for i, key in enumerate(split.keys):
        assert np.array_equal(split.picture(i), photo(int(key[-5]), SIZE, SIZE))


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_each_stored_picture_is_that_of_its_file(source: Source, folder: Path, tmp_path: Path, encoding: str) -> None:
    made = prepare(source, tmp_path / "s", size=SIZE, shorter_side=14, encoding=encoding)
    labels = {entry.key: entry.label for entry in source.entries}
    for split in made.splits.values():
        for i, key in enumerate(split.keys):
            right = stored_of(decode((folder / key).read_bytes())[0], 14, encoding)
            if encoding == "jpeg":
                buffer = io.BytesIO()
                Image.fromarray(right).save(buffer, "JPEG", quality=95)
                right = np.asarray(Image.open(buffer))
                assert min(right.shape[:2]) == 14
            assert np.array_equal(split.picture(i), right)
            assert split.labels[i] == labels[key]
    assert sum(split.n for split in made.splits.values()) == 46


def test_training_pictures_are_mixed_and_always_in_the_same_order(source: Source, tmp_path: Path) -> None:
    one = prepare(source, tmp_path / "1", size=SIZE)
    two = prepare(source, tmp_path / "2", size=SIZE - 1, encoding="jpeg")
    keys = one.split("train").keys
    assert keys != sorted(keys)
    assert keys == two.split("train").keys
    assert one.split("val").keys == sorted(one.split("val").keys)
    n_changes = (np.diff(one.split("train").labels) != 0).sum()
    assert n_changes > 5


# statistics


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_statistics_equal_brute_force(source: Source, folder: Path, tmp_path: Path, encoding: str) -> None:
    made = prepare(source, tmp_path / "s", size=SIZE, encoding=encoding)
    split = made.split("train")
    squares = [stored_of(decode((folder / key).read_bytes())[0], SIZE, "raw") for key in split.keys]
    pixels = np.stack(squares).astype(np.float64)
    if encoding == "raw":
        assert np.array_equal(pixels, [split.picture(i) for i in range(split.n)])
    found = made.statistics
    assert found.n == 35
    assert np.allclose(made.mean_picture, pixels.mean(0), rtol=1e-6)
    assert made.mean_picture.dtype == np.float32
    flat = pixels.reshape(-1, 3)
    assert np.allclose(found.mean_rgb, flat.mean(0), rtol=1e-12)
    covariance = np.cov(flat.T, bias=True)
    assert np.allclose(found.covariance, covariance, rtol=1e-10)
    values, vectors = np.linalg.eigh(covariance)
    assert np.allclose(found.eigenvalues, values[::-1], rtol=1e-9)
    for j in range(3):
        mine, right = found.eigenvectors[:, j], vectors[:, 2 - j]
        assert np.allclose(mine, right, atol=1e-8) or np.allclose(mine, -right, atol=1e-8)
        assert np.allclose(found.covariance @ mine, found.eigenvalues[j] * mine, atol=1e-6)
        assert mine[np.abs(mine).argmax()] > 0


def test_sums_do_not_overflow() -> None:
    white = np.full((300, 300, 3), 255, np.uint8)
    assert white[..., 0].size > BLOCK
    assert (channel_products(white) == 300 * 300 * 255**2).all()
    sums = Sums.small(4)
    for _ in range(257):
        sums.count(white[:4, :4])
    assert (sums.pixels == 257 * 255).all()
    assert statistics(sums)["mean_rgb"] == [255.0] * 3
    assert statistics(sums)["covariance"] == [[0.0] * 3] * 3


# the same bytes, whatever happens


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_the_number_of_workers_does_not_matter(source: Source, tmp_path: Path, encoding: str) -> None:
    made = [made_of(source, tmp_path / str(n), workers=n, encoding=encoding) for n in (1, 2, 5)]
    assert made[0] == made[1] == made[2]
    assert len([name for name in made[0] if name.endswith(".tar")]) == 4
    assert not any(name.startswith(".") for name in made[0])


class Stop(Silent):
    """Raises at the n-th report."""

    def __init__(self, n: int) -> None:
        self.left = n

    def update(self, done: int, **values: str) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("n", [1, 4, 7, 15, 16])
def test_interrupted_and_run_again(source: Source, tmp_path: Path, n: int) -> None:
    right = made_of(source, tmp_path / "right")
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "s", size=SIZE, workers=2, progress=Stop(n))
    with pytest.raises(UsageError, match="is not a store"):
        Store(tmp_path / "s")
    assert made_of(source, tmp_path / "s") == right


def test_a_resumed_run_says_what_was_done(source: Source, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "s", size=SIZE, workers=1, progress=Stop(10))
    began: list[tuple[int, int]] = []

    class Told(Silent):
        def start(self, what: str, total: int, done: int = 0) -> None:
            began.append((total, done))

    prepare(source, tmp_path / "s", size=SIZE, progress=Told())
    assert began == [(24, 0), (47, 24)], "what is finished is checked first"


EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}


def killed(folder: str, place: str, *numbers: str) -> None:
    """Prints how preparations ended that were killed at a file operation; in a young process, as forks need it."""
    preparing.SHARD_BYTES, n_kills = map(int, numbers)
    records.CHUNK = 3
    source, out = open_source(folder), Path(place)

    def made(path: Path, workers: int, kill_at: int) -> int:
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1]
        count = [0]

        def hook(event: str, details: object) -> None:
            if event in EVENTS:
                count[0] += 1
                if count[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            prepare(source, path, size=SIZE, workers=workers)
            (path.parent / "count").write_text(str(count[0]), encoding="ascii")
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)

    assert made(out / "counted", 1, 0) == 0
    n_events = int((out / "count").read_text(encoding="ascii"))
    choice, hits = random.Random(0), []
    moments = sorted(choice.sample(range(1, n_events + 1), min(n_kills, n_events)))
    for number, moment in enumerate([*moments, n_events - 1]):
        path = out / f"{number:03d}"
        hits.append([made(path, 1 + number % 2, moment), made(path, 1, choice.randrange(1, n_events))])
        assert made(path, 2, 0) == 0
    print(json.dumps({"events": n_events, "hits": hits}))


def check_kills(folder: Path, tmp_path: Path, n_kills: int) -> None:
    """Each preparation is killed at a file operation, its successor at another; the third ends in the right bytes."""
    (tmp_path / "out").mkdir()
    words = [str(word) for word in (folder, tmp_path / "out", preparing.SHARD_BYTES, n_kills)]
    (done,) = run("test_prepare:killed", [(1, words)])
    assert done.codes == [0], done.stderr
    told = json.loads(done.stdout)
    first, second = (sum(hit[k] == 9 for hit in told["hits"]) for k in range(2))
    assert first >= 0.8 * len(told["hits"]), "most first kills fire before the end"
    assert second >= 1
    right = made_of(open_source(folder), tmp_path / "right")
    stores = [path for path in sorted((tmp_path / "out").iterdir()) if path.is_dir()]
    assert len(stores) == len(told["hits"]) + 1
    for path in stores:
        assert content(path) == right, path
    print(f"{first} + {second} kills of {2 * len(told['hits'])} before the end, {told['events']} events")


def test_killed_twice_and_run_again(folder: Path, tmp_path: Path) -> None:
    check_kills(folder, tmp_path, 24)


@pytest.mark.large
def test_killed_at_every_file_operation(folder: Path, tmp_path: Path) -> None:
    check_kills(folder, tmp_path, 10_000)


class FullDisk:
    """Counts what is written, and fails at the n-th time, once."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int) -> None:
        self.left, self.fired = fail_at, False
        real_open = open
        for name in ("fsync", "replace", "pwrite"):
            patch.setattr(os, name, self.failing(getattr(os, name)))

        def opened(path: Path, mode: str = "r", **more: Any) -> object:
            if not set(mode) & set("wxa"):
                return real_open(path, mode, **more)
            return FullFile(self.failing(real_open)(path, mode, **more), self)

        patch.setattr(atomic, "open", opened, raising=False)

    def failing(self, work):
        def step(*args: object, **options: object) -> object:
            self.left -= 1
            if self.left == 0:
                self.fired = True
                raise OSError(errno.ENOSPC, "No space left on device")
            return work(*args, **options)

        return step


class FullFile:
    """A file whose writes count."""

    def __init__(self, file: io.BufferedWriter, disk: FullDisk) -> None:
        self.file, self.disk = file, disk
        self.write = disk.failing(file.write)
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self) -> "FullFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def out_of_disk(source: Source, path: Path, fail_at: int) -> tuple[DiskError | None, bool]:
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, fail_at)
        try:
            prepare(source, path, size=SIZE, workers=1)
        except DiskError as error:
            return error, disk.fired
        return None, disk.fired


def test_a_full_disk_at_every_write(source: Source, tmp_path: Path) -> None:
    right = made_of(source, tmp_path / "right")
    n_fired, fail_at = 0, 1
    while True:
        path = tmp_path / f"{fail_at}"
        error, fired = out_of_disk(source, path, fail_at)
        assert (error is not None) == fired, "no failure is passed over in silence"
        if error is None:
            break
        assert str(error).startswith(str(path))
        assert "disk full; free some space and run the same command again" in str(error)
        n_fired += 1
        if fail_at % 4 == 0 or n_fired > 100:  # the end of the run has the small files
            assert made_of(source, path) == right
        shutil.rmtree(path, ignore_errors=True)
        fail_at += 1
    assert n_fired > 40


# refusals


def test_two_at_once_are_refused(source: Source, tmp_path: Path) -> None:
    texts: list[str] = []

    class Second(Silent):
        def update(self, done: int, **values: str) -> None:
            with pytest.raises(UsageError) as caught:
                prepare(source, tmp_path / "s", size=SIZE)
            texts.append(str(caught.value))

    prepare(source, tmp_path / "s", size=SIZE, progress=Second())
    assert f"{tmp_path / 's'} is in use by process {os.getpid()} (preparing)" in texts[0]
    assert check_store(tmp_path / "s").ok


def test_a_finished_store_is_left_alone(folder: Path, source: Source, tmp_path: Path) -> None:
    notes: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    right = made_of(source, tmp_path / "s")
    assert made_of(source, tmp_path / "s", progress=Told()) == right
    assert notes == [f"{tmp_path / 's'} is already prepared from these pictures: nothing to do"]
    text = "holds a store made from other pictures or settings; remove the folder, or choose another"
    with pytest.raises(UsageError, match=text):
        prepare(source, tmp_path / "s", size=SIZE + 1)
    shutil.copytree(folder, tmp_path / "more")
    (tmp_path / "more/val/a/new.png").write_bytes(encoded(photo(99), "PNG"))
    with pytest.raises(UsageError, match=text):
        prepare(open_source(tmp_path / "more"), tmp_path / "s", size=SIZE)
    assert content(tmp_path / "s") == right


def test_what_a_killed_process_left_beside_a_finished_store_goes(source: Source, tmp_path: Path) -> None:
    right = made_of(source, tmp_path / "s")
    (tmp_path / "s/.work").mkdir()
    (tmp_path / "s/.work/plan").write_text("old")
    (tmp_path / "s/.lock").write_text("process 1")
    assert made_of(source, tmp_path / "s") == right


@pytest.mark.parametrize("name", ["photo.jpg", "other-00001.tar", "train-00000.tar", "mean.npy"])
def test_files_that_are_not_its_own_are_never_touched(source: Source, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(UsageError, match=rf"is not empty \(it holds '{name}'\); choose a new folder for the store"):
        prepare(source, tmp_path, size=SIZE)
    assert content(tmp_path) == {name: b"precious"}


def test_other_settings_begin_anew_and_leave_no_trace(source: Source, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "s", size=SIZE - 3, encoding="jpeg", progress=Stop(14))
    assert list((tmp_path / "s").glob("*.tar"))
    assert made_of(source, tmp_path / "s") == made_of(source, tmp_path / "right")


def test_a_file_that_changed_in_between_begins_anew(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        prepare(open_source(tmp_path / "in"), tmp_path / "s", size=SIZE, progress=Stop(10))
    for path in (tmp_path / "in/train").rglob("*.png"):
        path.write_bytes(encoded(photo(500), "PNG"))
    assert made_of(open_source(tmp_path / "in"), tmp_path / "s") == made_of(
        open_source(tmp_path / "in"), tmp_path / "right"
    )


def test_a_compressed_tar_is_prepared_like_its_folder(folder: Path, source: Source, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "set"), "gztar", folder)
    unpacked = open_source(tmp_path / "set.tar.gz", work=tmp_path / "s/.work")
    made = prepare(unpacked, tmp_path / "s", size=SIZE)
    assert made.header["counts"]["used"] == 46
    other = prepare(source, tmp_path / "o", size=SIZE)
    assert sorted(made.split("val").keys) == sorted(other.split("val").keys)
    assert not (tmp_path / "s/.work").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "--size 0: must be 1 to 4096 pixels"),
        ({"size": 5000}, "--size 5000: must be 1 to 4096 pixels"),
        ({"size": 10, "shorter_side": 9}, r"--shorter-side 9: must be 10 \(the size\) to 8192 pixels"),
        ({"size": 10, "shorter_side": 9000}, "to 8192 pixels"),
        ({"encoding": "png"}, "--encoding png: must be raw or jpeg"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
    ],
)
def test_settings_out_of_range(source: Source, tmp_path: Path, options: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        prepare(source, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a/1.png", "a/2.png"], "all pictures are of one class, 'a'"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "class 'c' is in val, but not in train"),
        (["a/1.png", "b/empty.png"], "class 'b' has no picture that can be used; failed: 'b/empty.png': empty file"),
        (["a/empty.png", "b/empty.png"], r"class 'a' has no picture that can be used \(and 1 more; convnet check"),
    ],
)
def test_classes_that_are_unfit_stop_check_and_prepare_alike(tmp_path: Path, names: list[str], text: str) -> None:
    for n, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"" if "empty" in name else encoded(photo(n, SIZE, SIZE), "PNG"))
    source = open_source(tmp_path / "in", split=0)
    assert check_folder(source, workers=1).unfit
    with pytest.raises(DataError, match=text):
        prepare(source, tmp_path / "s", size=SIZE)
    assert (tmp_path / "s/store.json").exists() == ("b/empty.png: empty" in text.replace("'", ""))
    with pytest.raises(DataError, match=text):
        prepare(source, tmp_path / "s", size=SIZE)  # a store that was made is no fitter the second time


@pytest.mark.data
def test_200_photos_of_imagenette(tmp_path: Path) -> None:
    if "CONVNET_DATA" not in os.environ:
        pytest.skip("CONVNET_DATA is not set")
    root = Path(os.environ["CONVNET_DATA"]) / "imagenette"
    for split, n in (("train", 15), ("val", 5)):
        for folder in sorted((root / split).iterdir()):
            (tmp_path / "in" / split / folder.name).mkdir(parents=True)
            for photo_file in sorted(folder.iterdir())[:n]:
                (tmp_path / "in" / split / folder.name / photo_file.name).symlink_to(photo_file)
    made = prepare(open_source(tmp_path / "in"), tmp_path / "s", size=256)
    counts = {"seen": 200, "used": 200, "skipped": 0, "failed": 0}
    assert counts.items() <= made.header["counts"].items()
    assert made.header["splits"]["train"]["per_class"] == [15] * 10
    assert check_store(tmp_path / "s").ok
    split = made.split("val")
    with Image.open(tmp_path / "in" / split.keys[7]) as image:
        image = image.convert("RGB")
        shorter = min(image.size)
        image = image.resize(tuple(round(side * 256 / shorter) for side in image.size), Image.BICUBIC)
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        assert np.array_equal(split.picture(7), np.asarray(image.crop((left, top, left + 256, top + 256))))
    assert (np.abs(made.statistics.mean_rgb - 120) < 40).all()


def test_paths_may_be_text(tmp_path: Path) -> None:
    made = prepare("digits", str(tmp_path / "store"), size=8)
    assert Store(str(made.path)).identity == made.identity
    for wrong in (lambda: Store(3), lambda: prepare(None, tmp_path / "a"), lambda: prepare("digits", 3)):
        with pytest.raises(UsageError, match="it must be a path"):
            wrong()


def test_a_link_in_the_works_place_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "train-00000.tar").write_bytes(b"mine")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / WORK).symlink_to(outside)
    with pytest.raises(DataError, match="is a link, through which nothing is written; remove it"):
        prepare("digits", tmp_path / "store", size=8)
    assert [path.name for path in outside.iterdir()] == ["train-00000.tar"]
