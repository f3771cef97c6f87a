"""Damaged pictures: of those whose damage is seen, at most 2 % may pass without a word; no real photo is refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from convnet.data import lzw
from convnet.data.decode import decode
from convnet.kernels.cpu.codes import jpeg_scan as jpeg_scan_cpu
from convnet.kernels.cpu.codes import lzw as lzw_cpu
from damaged import FORMATS, judged, lines, wrong_part
from pictures import encoded, photo


def unnoticed(table: dict[tuple[str, ...], int], kind: str | None = None) -> float:
    """The part of the damaged pictures that pass with more than 5 % of their pixels wrong, small damage aside."""
    counts = {
        v: sum(n for key, n in table.items() if key[-1] == v and kind in (None, key[0]))
        for v in ("noticed", "unnoticed")
    }
    return counts["unnoticed"] / sum(counts.values())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damage_is_noticed(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """84 damaged pictures of each format. GIF, WebP and a TIFF's JPEG have no sum over data: docs/pictures.md."""
    table = judged([kind], 12)
    capfd.readouterr()  # libtiff says its own on stderr
    assert sum(table.values()) == 84
    assert table[kind, "cut and closed", "unnoticed"] == 0
    assert unnoticed(table) <= (0.06 if kind in ("GIF", "WEBP", "TIFF") else 0)


@pytest.mark.skipif(not jpeg_scan_cpu.available(), reason="no C compiler: a JPEG's scan is judged by libjpeg alone")
def test_damage_in_a_jpegs_scan_is_noticed() -> None:
    """libjpeg alone lets 22 % pass; a bit of a DC coefficient that is changed for another can't be found at all."""
    table = judged(["JPEG"], 18)
    assert table["JPEG", "cut and closed", "unnoticed"] == 0
    assert unnoticed(table) <= 0.1


def test_a_jpegs_scan_that_breaks_off_is_failed_without_a_compiler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_scan_cpu, "available", lambda: False)
    assert judged(["JPEG"], 6)["JPEG", "cut and closed", "unnoticed"] == 0


@pytest.mark.skipif(not lzw_cpu.available(), reason="no C compiler")
def test_lzw_is_counted_alike_in_c() -> None:
    noise = np.random.default_rng(2)
    for bits in (2, 3, 8, 11):
        for high_first in (False, True):
            for n in (0, 1, 5, 300, 9000):
                data = noise.integers(0, 256 if n % 2 else 40, n, np.uint8).tobytes()
                plain = lzw.plain_symbols(data, bits, high_first, 10**5)
                assert lzw_cpu.symbols(data, bits, high_first, 10**5) == plain


def test_lzw_of_whole_pictures_is_whole_in_the_plain_form_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lzw_cpu, "available", lambda: False)
    for number, kind in ((1, "GIF"), (2, "TIFF")):
        data = encoded(photo(number, 200, 150), kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
        assert wrong_part(data, decode(data)[0]) == 0


@pytest.mark.parametrize("quality", [5, 50, 95, 100])
def test_whole_pictures_are_whole(quality: int) -> None:
    """Smooth, noisy, flat and black and white; odd sizes; every subsampling, progressive or with restart markers."""
    noise = np.random.default_rng(quality)
    pictures = [photo(1, 50, 33), noise.integers(0, 256, (17, 40, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)]
    pictures.append(((noise.random((40, 40, 1)) > 0.5) * np.full(3, 255)).astype(np.uint8))
    for picture in pictures:
        for options in ({"subsampling": 0}, {"subsampling": 1}, {"optimize": True}, {"progressive": True},
                        {"restart_marker_blocks": 3}, {"restart_marker_rows": 1, "subsampling": 2}):  # fmt: skip
            assert decode(encoded(picture, "JPEG", quality=quality, **options))[1] == ()
        for method in (0, 4, 6):
            assert decode(encoded(picture, "WEBP", quality=quality, method=method))[1] == ()
            assert decode(encoded(picture, "WEBP", lossless=True, quality=quality, method=method))[1] == ()
        assert decode(encoded(picture, "GIF"))[1] == ()


def real_photos(step: int) -> list[Path]:
    if "CONVNET_DATA" not in os.environ:
        pytest.skip("CONVNET_DATA is not set")
    return sorted((Path(os.environ["CONVNET_DATA"]) / "imagenette").rglob("*.JPEG"))[::step]


@pytest.mark.data
@pytest.mark.parametrize("step", [25, pytest.param(1, marks=pytest.mark.large)])
def test_no_real_photo_is_refused_or_noted(step: int) -> None:
    photos = real_photos(step)
    assert len(photos) == 5000 // step
    assert [path.name for path in photos if decode(path.read_bytes())[1]] == []


@pytest.mark.large
def test_six_thousand_damaged_pictures(capfd: pytest.CaptureFixture[str]) -> None:
    """Prints the table of docs/pictures.md; run with -s to see it."""
    table = judged(list(FORMATS), 144)
    capfd.readouterr()
    print("\n".join(lines(table)))
    assert unnoticed(table) <= 0.02
    assert all(unnoticed(table, kind) <= 0.08 for kind in FORMATS)
