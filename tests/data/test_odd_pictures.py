"""Sixty kinds of bad and odd pictures among 200 good ones: each is named with its reason, the good are untouched."""

import errno
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnet.data.check import check_folder
from convnet.data.prepare import prepare
from convnet.data.sources import listing, open_source
from convnet.data.store import Store
from pictures import encoded, photo, png, write_photos

SIZE = 16
GOOD = {"train/cat": 80, "train/dog": 70, "val/cat": 30, "val/dog": 20}
PICTURE = photo(1000, SIZE, SIZE)
GREY = PICTURE[:, :, 0]
DEEP = np.random.default_rng(7).integers(0, 65536, (SIZE, SIZE, 3), dtype=np.uint16)
LONG = "long-" + "x" * 240 + ".png"


@dataclass(frozen=True)
class Odd:
    """An odd file: how it is made at a path, what is to become of it, and the reason (a pattern) or the pixels."""

    name: str | bytes
    make: bytes | Callable[[Path], object]
    status: str  # used, note, failed, skipped
    reason: str = ""
    pixels: np.ndarray | None = None
    jpeg: bool = True  # whether a used one fits into a JPEG

    def among(self, store: Store) -> "Odd":
        """What is to become of it in this store."""
        if self.jpeg or store.encoding == "raw":
            return self
        return Odd(self.name, self.make, "failed", "too elongated to resize")


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def deep_png(values: np.ndarray, colour: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(SIZE, SIZE, 16, colour, rows)


def with_exif(orientation: int) -> bytes:
    tag = Image.Exif()
    tag[274] = orientation
    return encoded(PICTURE, "PNG", exif=tag)


def broken_exif() -> bytes:
    plain, body = encoded(PICTURE, "JPEG"), b"Exif\0\0II*\0\xff\xff\xff\xff"
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + plain[2:]


def wrong_crc() -> bytes:
    data = bytearray(encoded(PICTURE, "PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    return bytes(data)


def ycck() -> bytes:
    data = bytearray(encoded(Image.frombytes("CMYK", (SIZE, SIZE), bytes((175, 127, 127, 20)) * SIZE**2), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def frames(kind: str) -> bytes:
    rest = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    first = Image.new("RGB", (SIZE, SIZE), (200, 0, 0))
    return encoded(first, kind, save_all=True, append_images=rest, **options)


def with_alpha() -> tuple[bytes, np.ndarray]:
    """Half clear, half opaque."""
    alpha = np.full((SIZE, SIZE), 255, np.uint8)
    alpha[: SIZE // 2] = 0
    right = PICTURE.copy()
    right[: SIZE // 2] = 255
    return encoded(np.dstack([PICTURE, alpha]), "PNG"), right


def grey_alpha() -> bytes:
    return encoded(Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (SIZE, SIZE), 255))), "PNG")


def palette(**options: object) -> tuple[bytes, np.ndarray]:
    picture = Image.fromarray(PICTURE).quantize(8)
    right = np.array(picture.convert("RGB"))
    if "transparency" in options:
        right[np.array(picture) == options["transparency"]] = 255
    return encoded(picture, "PNG", **options), right


def turned(orientation: int) -> np.ndarray:
    """What EXIF says, in words of numpy: mirrors and quarter turns."""
    upright = {1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1]}
    across = PICTURE.transpose(1, 0, 2)
    upright |= {5: across, 6: np.rot90(PICTURE, -1), 7: across[::-1, ::-1], 8: np.rot90(PICTURE)}
    return upright[orientation]


def in_a_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside.png").write_bytes(encoded(PICTURE, "PNG"))


def odd_files() -> list[Odd]:
    whole = encoded(photo(5, 40, 30), "JPEG")
    cuts = [1, 2, 3, 10, 100, 300, len(whole) // 2, len(whole) - 50, len(whole) - 2, len(whole) - 1]
    bit = np.array(Image.fromarray(GREY).convert("1").convert("RGB"))
    good = encoded(PICTURE, "PNG")
    odd = [Odd(f"cut{k}.jpg", whole[:k], "failed", "truncated JPEG|not a picture") for k in cuts[:-2]]
    odd += [Odd(f"cut{k}.jpg", whole[:k], "note", "its end marker is missing") for k in cuts[-2:]]
    odd += [Odd(f"exif{k}.png", with_exif(k), "used", pixels=turned(k)) for k in range(1, 9)]
    odd += [Odd(f"frames.{kind.lower()}", frames(kind), "note", "first frame of 3") for kind in ("GIF", "PNG", "WEBP")]
    return [
        *odd,
        Odd("empty.jpg", b"", "failed", "empty file"),
        Odd("text.jpg", b"This is no picture.\n", "failed", "not a picture: begins with 'This is no picture"),
        Odd("page.jpg", b"<html><body>404 Not Found", "failed", "not a picture: begins with '<html'"),
        Odd("zeros.png", bytes(5000), "failed", "begins with zeros"),
        Odd("report.png", b"%PDF-1.7 ...", "failed", "a PDF"),
        Odd("crc.png", wrong_crc(), "failed", "wrong CRC in IDAT"),
        Odd("bomb.png", png(1 << 16, 1 << 16, 8, 2, b""), "failed", "decompression bomb"),
        Odd("numbers.tif", encoded(Image.fromarray(GREY).convert("F"), "TIFF"), "failed", "floating-point"),
        Odd("is_a_png.JPEG", good, "used", pixels=PICTURE),
        Odd("noextension", good, "used", pixels=PICTURE),
        Odd("cmyk.jpg", encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"), "used"),
        Odd("ycck.jpg", ycck(), "used"),
        Odd("grey.png", encoded(GREY, "PNG"), "used", pixels=grey(GREY)),
        Odd("deep_grey.png", encoded(Image.fromarray(DEEP[..., 0]), "PNG"), "used", pixels=grey(DEEP[..., 0] >> 8)),
        Odd("deep_grey.tif", encoded(Image.fromarray(DEEP[..., 1]), "TIFF"), "used", pixels=grey(DEEP[..., 1] >> 8)),
        Odd("deep_colour.png", deep_png(DEEP, 2), "used", pixels=(DEEP >> 8).astype(np.uint8)),
        Odd("palette.png", palette()[0], "used", pixels=palette()[1]),
        Odd("clear_palette.png", palette(transparency=3)[0], "used", pixels=palette(transparency=3)[1]),
        Odd("bits.png", encoded(Image.fromarray(GREY).convert("1"), "PNG"), "used", pixels=bit),
        Odd("la.png", grey_alpha(), "used", pixels=grey(GREY)),
        Odd("rgba.png", with_alpha()[0], "used", pixels=with_alpha()[1]),
        Odd("progressive.jpg", encoded(PICTURE, "JPEG", progressive=True), "used"),
        Odd("exif_broken.jpg", broken_exif(), "note", "broken EXIF ignored"),
        Odd("icc_broken.jpg", encoded(PICTURE, "JPEG", icc_profile=b"nonsense" * 30), "note", "broken ICC profile"),
        Odd("1x1.png", encoded(PICTURE[:1, :1], "PNG"), "used", pixels=np.broadcast_to(PICTURE[0, 0], (SIZE, SIZE, 3))),
        Odd("1xn.png", encoded(PICTURE[:, :1], "PNG"), "used"),
        Odd("wide.png", encoded(Image.new("RGB", (60000, 1), (1, 2, 3)), "PNG"), "used", jpeg=False),
        Odd("wider.bmp", encoded(Image.new("1", (900_000, 1)), "BMP"), "failed", "too elongated to resize"),
        Odd("dangling.png", lambda path: path.symlink_to("nowhere.png"), "failed", "dangling link"),
        Odd("loop.png", lambda path: path.symlink_to(path), "failed", "symlink loop"),
        Odd("up", lambda path: path.symlink_to(path.parent), "failed", "symlink loop"),
        Odd("pipe.png", os.mkfifo, "failed", "not a regular file but a fifo"),
        Odd("pipe", os.mkfifo, "skipped", "not a regular file but a fifo"),
        Odd(".hidden.png", good, "skipped", "hidden"),
        Odd("notes.txt", b"notes", "skipped", "not a picture"),
        Odd("folder.jpg", in_a_folder, "used"),
        Odd("new\nline.png", good, "used", pixels=PICTURE),
        Odd("quo\"te's.png", good, "used", pixels=PICTURE),
        Odd("\x1b[31mred.png", b"", "failed", "empty file"),
        Odd("<script>alert(1)<.png", b"", "failed", "empty file"),
        Odd("=cmd().png", good, "used", pixels=PICTURE),
        Odd(b"\xff\xfe.png", good, "used", pixels=PICTURE),
        Odd(LONG, good, "used", pixels=PICTURE),
        Odd("vanished.png", good, "failed", "vanished"),
        Odd("rewritten.png", good, "failed", "changed while it was read"),
        Odd("changing.png", good, "failed", "changed while it was read"),
        Odd("forbidden.png", good, "failed", "no permission"),
    ]


def key_of(odd: Odd) -> str:
    name = odd.name if isinstance(odd.name, bytes) else odd.name.encode()
    key = "train/dog/" + name.decode("utf-8", "backslashreplace")
    return key + "/inside.png" if odd.name == "folder.jpg" else key


def scatter(root: Path, odd_ones: list[Odd]) -> None:
    for odd in odd_ones:
        name = odd.name if isinstance(odd.name, str) else os.fsdecode(odd.name)
        path = root / "train/dog" / name
        if isinstance(odd.make, bytes):
            path.write_bytes(odd.make)
        else:
            odd.make(path)


def disturb(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """After the listing: one file goes, one is rewritten, one changes while it is read, one may not be opened."""
    (folder / "vanished.png").unlink()
    (folder / "rewritten.png").write_bytes(encoded(photo(1), "PNG"))
    changing = (folder / "changing.png").stat().st_ino
    really_open, really_read = os.open, listing.pread

    def refuse(path: str | Path, *arguments: object, **options: object) -> int:
        if str(path).endswith("forbidden.png"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return really_open(path, *arguments, **options)

    def read(handle: int, length: int, offset: int) -> bytes:
        data = really_read(handle, length, offset)
        if os.fstat(handle).st_ino == changing:
            os.utime(folder / "changing.png", ns=(1, 1))
        return data

    patch.setattr(os, "open", refuse)
    patch.setattr(listing, "pread", read)


@pytest.fixture(scope="module")
def odd_ones() -> list[Odd]:
    return odd_files()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("good"), GOOD)


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def stores(
    request: pytest.FixtureRequest, photos: Path, odd_ones: list[Odd], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Store]:
    """Without and with the odd ones."""
    root = tmp_path_factory.mktemp("stores")
    write_photos(root / "in", GOOD)
    scatter(root / "in", odd_ones)
    clean = prepare(open_source(photos), root / "clean", size=SIZE, encoding=request.param)
    source = open_source(root / "in")
    with pytest.MonkeyPatch.context() as patch:
        disturb(root / "in/train/dog", patch)
        return clean, prepare(source, root / "mixed", size=SIZE, encoding=request.param)


def left_out(store: Store) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for line in store.read_file("left_out.jsonl").splitlines():
        row = json.loads(line)
        found.setdefault(row["key"], []).append((row["status"], row["reason"]))
    return found


def test_the_count_adds_up(stores: tuple[Store, Store], odd_ones: list[Odd]) -> None:
    counts, odd_ones = stores[1].header["counts"], [odd.among(stores[1]) for odd in odd_ones]
    assert len(odd_ones) >= 60
    assert counts["seen"] == 200 + len(odd_ones) == counts["used"] + counts["skipped"] + counts["failed"]
    for status in ("failed", "skipped"):
        assert counts[status] == sum(odd.status == status for odd in odd_ones)
    assert stores[0].header["counts"]["used"] == 200


def test_each_is_named_with_its_reason(stores: tuple[Store, Store], odd_ones: list[Odd]) -> None:
    found = left_out(stores[1])
    keys = set(stores[1].split("train").keys)
    for odd in (odd.among(stores[1]) for odd in odd_ones):
        rows = found.pop(key_of(odd), [])
        assert (key_of(odd) in keys) == (odd.status in ("used", "note")), odd.name
        if odd.status == "used":
            assert rows == [], odd.name
        else:
            assert [status for status, _ in rows] == [odd.status], odd.name
            assert re.search(odd.reason, rows[0][1]), (odd.name, rows)
    assert found == {}, "nothing else was left out"


def test_the_good_ones_are_bitwise_the_same(stores: tuple[Store, Store]) -> None:
    clean, mixed = stores
    for split in ("train", "val"):
        before, after = clean.split(split), mixed.split(split)
        places = {key: i for i, key in enumerate(after.keys)}
        for i, key in enumerate(before.keys):
            assert before.payload(i).tobytes() == after.payload(places[key]).tobytes(), key
            assert before.labels[i] == after.labels[places[key]]
    assert clean.split("val").n == mixed.split("val").n == 50


def test_odd_ones_have_the_right_pixels(stores: tuple[Store, Store], odd_ones: list[Odd]) -> None:
    split = stores[1].split("train")
    n_seen = 0
    for odd in odd_ones:
        if odd.pixels is not None and stores[1].encoding == "raw":
            assert np.array_equal(split.picture(split.keys.index(key_of(odd))), odd.pixels), odd.name
            n_seen += 1
    assert n_seen >= 25 or stores[1].encoding == "jpeg"


def test_the_check_of_the_folder_says_the_same(photos: Path, odd_ones: list[Odd], tmp_path: Path) -> None:
    write_photos(tmp_path, GOOD)
    scatter(tmp_path, odd_ones)
    source = open_source(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        disturb(tmp_path / "train/dog", patch)
        report = check_folder(source, workers=2)
    # whether the resized picture would fit into memory is prepare's question
    bad = {key_of(odd) for odd in odd_ones if odd.status == "failed" and odd.name != "wider.bmp"}
    assert {problem.keys[0] for problem in report.problems if problem.kind == "unreadable"} == bad
    assert report.counts["seen"] == 200 + len(odd_ones)
    assert report.counts["seen"] == sum(report.counts[name] for name in ("good", "skipped", "unreadable"))
    assert not report.ok
    json.dumps(report.to_dict())
    assert not any("\x1b" in line or "\n" in line for line in report.lines())
