"""Copies that were cut or labelled are told from pictures that are only alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from conftest import Run
from convnet import load
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store_header import shard_name
from convnet.errors import UsageError
from convnet.retrieval import copies
from convnet.retrieval.copies import LIKE, likeness

SIDE = 200  # pixels


def picture(seed: int, ground: bool = False) -> Image.Image:
    """Blobs of all grey levels. ground: before a bright sky and dark earth, as all such pictures have them."""
    noise = np.random.default_rng([seed, ground]).integers(0, 256, (SIDE, SIDE), np.uint8)
    blobs = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6)), np.float64)
    pixels = (blobs - blobs.mean()) * 35 / blobs.std() + 128
    if ground:
        pixels = pixels * 0.3 + np.where(np.arange(SIDE) < SIDE // 2, 140, 0)[:, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")


def cut(image: Image.Image, part: float) -> Image.Image:
    margin = round(part * SIDE)
    return image.crop((margin, margin, SIDE - margin, SIDE - margin))


def labelled(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).rectangle((90, 150, 189, 189), "white")
    return image


CHANGES = {
    "cut": lambda image: cut(image, 0.05),
    "cut by an odd part": lambda image: cut(image, 0.065),
    "on one side": lambda image: image.crop((20, 0, SIDE, SIDE)),
    "labelled": labelled,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "small": lambda image: image.resize((90, 90)),
    "dark": lambda image: image.point(lambda value: value // 2 + 10),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_like_its_original_and_no_other(change: str) -> None:
    """Nor are pictures that have their large outlines in common, and these correlate by more than 0.8."""
    every = [copies._grey(np.asarray(picture(seed, ground))) for ground in (False, True) for seed in range(4)]
    for ground in (False, True):
        changed = copies._grey(np.asarray(CHANGES[change](picture(0, ground))))
        both = [max(likeness(one, changed[None])[0], likeness(changed, one[None])[0]) for one in every]
        assert both.pop(4 * ground) > LIKE
        assert max(both) < LIKE - 0.2
    flat = [each.reshape(-1) - each.mean() for each in every[4:]]
    assert flat[0] @ flat[1] > 0.8 * np.linalg.norm(flat[0]) * np.linalg.norm(flat[1])


def test_pictures_without_detail_are_like_none() -> None:
    flat = np.full((2, copies.SIDE, copies.SIDE), 90, np.uint8)
    flat[:, 32:] = 200
    assert likeness(flat[0], flat).tolist() == [0, 0]


def test_windows_are_means_of_their_pixels() -> None:
    """Of pixels twelve times as fine, of which each number of a window has a whole number."""
    grey = np.random.default_rng(0).integers(0, 256, (copies.SIDE, copies.SIDE), np.uint8)
    fine, windows, n = grey.repeat(12, 0).repeat(12, 1), copies._windows(grey), copies.SMALL
    edges = [
        (24 * begin, 24 * (begin + side)) for side in range(32, copies.LEAST - 1, -1) for begin in range(33 - side)
    ]
    assert len(windows) == len(edges) ** 2
    for i, j in ((0, 0), (5, 0), (3, 20), (len(edges) - 1, 7)):
        (top, bottom), (left, right) = edges[i], edges[j]
        window = fine[top:bottom, left:right].reshape(n, (bottom - top) // n, n, (right - left) // n).mean((1, 3))
        assert np.allclose(windows[i * len(edges) + j], window, atol=1e-3)


def test_those_nearest_are_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "NEAREST", 3)
    monkeypatch.setattr(copies, "HELD", 40)
    rows = copies.unit(np.random.default_rng(0).standard_normal((17, 5)))
    nearest = [sorted(set(range(17)) - {i}, key=lambda j: -float(rows[i] @ rows[j]))[:3] for i in range(17)]
    pairs = {(i, j) for i in range(17) for j in nearest[i]}
    assert list(map(tuple, copies._proposed(rows).tolist())) == sorted(pairs | {(j, i) for i, j in pairs})
    assert len(copies._proposed(rows[:1])) == 0


def test_check_tells_near_copies(untrained: Path, run: Run, tmp_path: Path) -> None:
    """A copy that is exact is told as before, and only so; of a damaged store the damage is told."""
    folder = tmp_path / "pictures"
    for place, image in {
        "train/a/0.png": picture(0),
        "train/a/1.png": picture(1),
        "train/b/2.png": picture(2),
        "train/b/3.png": picture(3),
        "train/b/mine.png": cut(picture(1), 0.05),
        "test/b/saved.png": labelled(picture(2)),
        "test/b/cut.png": cut(picture(2), 0.05),
        "test/a/same.png": picture(0),
    }.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / place)
    (folder / "train/b/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    near = [
        ("warning", "labels", {"train/a/1.png", "train/b/mine.png"}),
        ("warning", "leak", {"train/b/2.png", "test/b/saved.png", "test/b/cut.png"}),
    ]
    code, told, _ = run("check", folder, "--duplicates", untrained, "--json", "-q")
    report = json.loads(told)
    assert code == 0
    assert report["counts"]["near_pairs"] == 5
    problems = [(each["severity"], each["kind"], set(each["keys"])) for each in report["problems"]]
    kinds = ("labels", "leak", "duplicate")
    assert [each for each in problems if each[1] in kinds] == [
        ("error", "leak", {"train/a/0.png", "test/a/same.png"}),
        *near,
    ]

    store = prepare(open_source(folder), tmp_path / "store", size=28)
    code, told, _ = run("check", store.path, "--duplicates", untrained, "-q")
    assert code == 0
    assert "warning: nearly the same picture in train and test: 'train/a/0.png', 'test/a/same.png'" in told
    shard = store.path / shard_name("test", 0)
    shard.write_bytes(shard.read_bytes()[:-100])
    code, told, _ = run("check", store.path, "--duplicates", untrained, "-q")
    assert code == 3
    assert "near-copies were not looked for, as the store is damaged" in told


def test_a_net_without_maps_is_refused(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "shapes_of", lambda *_: {"fc": (10,), "global_pool": (8, 1, 1)})
    with pytest.raises(UsageError, match=r"net\.ckpt has no stage with maps, by which pictures could be compared"):
        copies.near_copies(load(untrained, device="cpu"), [])
