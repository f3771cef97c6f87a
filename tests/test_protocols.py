"""The papers' test protocols against a brute force: one picture at a time, crop by crop, written from the papers' text.

The brute force knows nothing of `convnet.views` and `convnet.posteriors`: it decodes, scales and cuts with Pillow and
numpy, subtracts the mean from the whole square before it cuts, and slides the last layers window by window.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from thin import new_thin_net, thin_net
from torch import Tensor, nn

from convnet import device
from convnet.errors import UsageError
from convnet.evaluate import evaluate, read
from convnet.nets import create_model, trace
from convnet.nets.layers import Net, connected, record, sliding
from convnet.posteriors import at_scales, posterior, posteriors
from convnet.preprocess import Preprocessing
from convnet.prepare import prepare
from convnet.sources import open_source
from convnet.store import Split, Store
from convnet.views import Look, protocol

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = device.choose("fp32", "cpu")
COLOUR = np.array([123, 117, 104], np.float32)
CLASSES = ("angular", "round")
SHAPES = [(1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (1.02, 1), (1, 1.02), (3, 1), (1, 3)]  # width, height


# the pictures


def photo(random: np.random.Generator, width: int, height: int, label: int) -> Image.Image:
    """Smooth colours, a grid or rings whose place and size are random, and noise: no two regions are alike."""
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    y, x = np.mgrid[:height, :width] / min(width, height)
    y, x, size = y - random.uniform(0, 1), x - random.uniform(0, width / height), random.uniform(8, 30)
    wave = np.sin(size * np.hypot(x, y)) if label else np.sign(np.sin(size * x) * np.sin(size * y))
    pixels = pixels + 60 * wave[..., None] * random.uniform(-1, 1, 3) + random.normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def store_of_photos(folder: Path, size: int, shorter_side: int, n: int) -> Store:
    """A jpeg store with n test pictures of many shapes and sizes, most larger than the store's, a few enlarged."""
    random = np.random.default_rng(1)
    for split, n_pictures in {"train": 4, "test": n}.items():
        for i in range(n_pictures):
            wide, high = SHAPES[i % len(SHAPES)]
            shorter = shorter_side * random.uniform(0.8, 1.6)
            width, height = (round(side * shorter / min(wide, high)) for side in (wide, high))
            path = folder / "source" / split / CLASSES[i % 2] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(random, width, height, i % 2).save(path, compress_level=1)
    source = open_source(folder / "source")
    return prepare(source, folder / "store", size=size, shorter_side=shorter_side, encoding="jpeg")


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """50 test pictures whose shorter side has 80 pixels."""
    return store_of_photos(tmp_path_factory.mktemp("frames"), 36, 80, 50)


def decoded(split: Split, i: int) -> Image.Image:
    """A stored frame, by the bytes that docs/store.md states."""
    row = split.rows[i]
    data = (split.store.path / f"{split.name}-{row['shard']:05d}.tar").read_bytes()
    start = int(row["offset"]) + 512
    return Image.open(io.BytesIO(data[start : start + int(row["payload"])]))


# the nets


class SmallNet(Net):
    """Pictures of 32 x 32: a convolution, a pooling, two fully connected layers."""

    num_classes = 5
    input_size = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels = channels
        self.conv1 = nn.Conv2d(channels, 8, 7, stride=3, padding=1)
        self.fc2 = nn.Linear(8 * 4 * 4, 16)
        self.fc3 = nn.Linear(16, 5)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        assert self.slides or images.shape[2:] == (32, 32)
        x = record(stages, "pool1", F.max_pool2d(F.relu(self.conv1(images)), 3, 2))
        return record(stages, "fc3", connected(self.fc3, F.relu(connected(self.fc2, x))))


def sharp(net: Net, scale: float = 60.0) -> Net:
    """The net with a last layer whose logits differ by about 2 from picture to picture: its posteriors say something."""
    net = net.eval()
    random = torch.Generator().manual_seed(3)
    shape = (6, net.in_channels, net.input_size, net.input_size)
    images = scale * (torch.randn(shape, generator=random) + torch.randn(6, net.in_channels, 1, 1, generator=random))
    last = net.get_submodule(net.last) if hasattr(net, "last") else net.fc3
    with torch.no_grad():
        logits = net(images)
        last.weight *= 3 / (logits - logits.mean(0)).std()
        last.bias -= net(images).mean(0)
    return net


def small_net(channels: int = 3) -> Net:
    torch.manual_seed(0)
    return sharp(SmallNet(channels))


# the brute force


class Brute:
    """What the papers' text says, for one net and its preprocessing."""

    def __init__(self, net: Net, pre: Preprocessing, below: str = "pool1") -> None:
        self.net, self.pre, self.below = net, pre, below
        self.S = pre.shorter_side

    def posterior(self, frame: Image.Image, name: str, scale: int) -> np.ndarray:
        """A protocol's posteriors of one picture at one scale, (K,)."""
        picture = self.rescaled(frame, scale)
        if name == "dense":
            return self.dense(picture)
        crops = {
            "single": self.single,
            "ten-crop": self.ten_crop,
            "nine": self.nine,
            "multi-crop": self.multi_crop,
            "144-crop": self.crops_144,
        }[name]
        outputs = [self.softmax(self.logits(crop)) for crop in crops(picture, scale)]
        assert len(outputs) == {"single": 1, "ten-crop": 10, "nine": 9, "multi-crop": 50, "144-crop": 36}[name]
        return np.mean(outputs, axis=0)

    @staticmethod
    def rescaled(frame: Image.Image, scale: int) -> Image.Image:
        """VGG 3.2: "isotropically rescaled to a pre-defined smallest image side, denoted as Q"."""
        width, height = frame.size
        if min(width, height) == scale:
            return frame
        width, height = (round(side * scale / min(frame.size)) for side in frame.size)
        return frame.resize((width, height), Image.Resampling.BICUBIC)

    # AlexNet section 4.1, and cuda-convnet: crops of the central square

    def square(self, picture: Image.Image, scale: int) -> np.ndarray:
        """The central square, (C, H, W), its mean subtracted, in a border of black (of 0 around a mean picture)."""
        side = round(self.pre.size * scale / self.S)
        width, height = picture.size
        left, top = (width - side) // 2, (height - side) // 2
        region = picture.crop((left, top, left + side, top + side))
        mean, pad = self.pre.mean, self.pre.pad
        around = ((0, 0), (pad, pad), (pad, pad))
        if mean is not None and mean.ndim == 3:
            mean = mean if scale == self.S else mean.mean((0, 1))
            return np.pad(self.values(region, mean), around)
        bordered = Image.new("RGB", (side + 2 * pad, side + 2 * pad))
        bordered.paste(region, (pad, pad))
        return self.values(bordered, mean)

    def single(self, picture: Image.Image, scale: int) -> list[np.ndarray]:
        square = self.square(picture, scale)
        room = square.shape[1] - self.pre.crop
        return [self.part(square, room // 2, room // 2)]

    def ten_crop(self, picture: Image.Image, scale: int) -> list[np.ndarray]:
        """ "the four corner patches and the center patch [...] as well as their horizontal reflections"."""
        square = self.square(picture, scale)
        room = square.shape[1] - self.pre.crop
        patches = [self.part(square, y, x) for y in (0, room) for x in (0, room)]
        patches.append(self.part(square, room // 2, room // 2))
        return patches + [patch[:, :, ::-1] for patch in patches]

    def nine(self, picture: Image.Image, scale: int) -> list[np.ndarray]:
        """cuda-convnet: offsets 0, 4 and 8 in a border of 4 pixels, without mirrors."""
        square = self.square(picture, scale)
        room = square.shape[1] - self.pre.crop
        return [self.part(square, y, x) for y in (0, room // 2, room) for x in (0, room // 2, room)]

    # VGG section 3.2 and GoogLeNet section 7: crops of the whole picture; a mean picture has no place there

    def multi_crop(self, picture: Image.Image, scale: int) -> list[np.ndarray]:
        """ "50 crops per scale (5x5 regular grid with 2 flips)"."""
        pixels = self.values(picture, self.colour())
        crop = self.pre.crop
        rows, columns = ([int(k * (side - crop) / 4) for k in range(5)] for side in pixels.shape[1:])
        patches = [self.part(pixels, y, x) for y in rows for x in columns]
        return patches + [patch[:, :, ::-1] for patch in patches]

    def crops_144(self, picture: Image.Image, scale: int) -> list[np.ndarray]:
        """ "the left, center and right square of these resized images (in the case of portrait images, we take the top,
        center and bottom squares). For each square, we then take the 4 corners and the center 224x224 crop as well as
        the square resized to 224x224, and their mirrored versions"."""
        (width, height), side, crop = picture.size, min(picture.size), self.pre.crop
        if width >= height:
            lefts, tops = [0, (width - side) // 2, width - side], [0, 0, 0]
        else:
            lefts, tops = [0, 0, 0], [0, (height - side) // 2, height - side]
        patches = []
        for left, top in zip(lefts, tops, strict=True):
            square = picture.crop((left, top, left + side, top + side))
            pixels = self.values(square, self.colour())
            room = side - crop
            patches += [self.part(pixels, y, x) for y in (0, room) for x in (0, room)]
            patches.append(self.part(pixels, room // 2, room // 2))
            patches.append(self.values(square.resize((crop, crop), Image.Resampling.BICUBIC), self.colour()))
        return patches + [patch[:, :, ::-1] for patch in patches]

    def dense(self, picture: Image.Image) -> np.ndarray:
        """ "The class score map is spatially averaged [...] the softmax class posteriors of the original and flipped
        images are averaged"; here the last layers are applied to one window of the map below them after the other."""
        pad, colour = self.pre.pad, self.colour()
        if colour is None or self.pre.mean.ndim == 1:
            bordered = Image.new("RGB", (picture.width + 2 * pad, picture.height + 2 * pad))
            bordered.paste(picture, (pad, pad))
            pixels = self.values(bordered, colour)
        else:
            pixels = np.pad(self.values(picture, colour), ((0, 0), (pad, pad), (pad, pad)))
        return np.mean([self.softmax(self.mean_score(look)) for look in (pixels, pixels[:, :, ::-1])], axis=0)

    def mean_score(self, pixels: np.ndarray) -> np.ndarray:
        maps = self.trace(pixels)
        layers = [layer for layer in self.net.children() if isinstance(layer, nn.Linear)]
        side = round((layers[0].in_features / maps.shape[0]) ** 0.5)
        scores = []
        for top in range(maps.shape[1] - side + 1):
            for left in range(maps.shape[2] - side + 1):
                x = maps[:, top : top + side, left : left + side].flatten()
                for k, layer in enumerate(layers):
                    x = F.linear(F.relu(x) if k else x, layer.weight, layer.bias)
                scores.append(self.finished(x))
        return np.mean(scores, axis=0)

    def trace(self, pixels: np.ndarray) -> Tensor:
        """The maps under the first fully connected layer, (C, h, w)."""
        stages: dict[str, Tensor] = {}
        with torch.no_grad():
            sliding(self.net)(self.tensor(pixels), stages)
        return stages[self.below][0]

    # what all need

    def values(self, picture: Image.Image, mean: np.ndarray | None) -> np.ndarray:
        """float32 (C, H, W): grey or RGB, minus the mean: (3,), or (H, W, 3)."""
        if self.pre.channels == "grey":
            pixels = np.asarray(picture.convert("L"), np.float32)[..., None]
            mean = None if mean is None else (mean @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
        else:
            pixels = np.asarray(picture, np.float32)
        return (pixels if mean is None else pixels - mean).transpose(2, 0, 1)

    def colour(self) -> np.ndarray | None:
        mean = self.pre.mean
        return mean if mean is None or mean.ndim == 1 else mean.mean((0, 1))

    def part(self, pixels: np.ndarray, top: int, left: int) -> np.ndarray:
        return pixels[:, top : top + self.pre.crop, left : left + self.pre.crop]

    def tensor(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(pixels * self.pre.scale + self.pre.offset, np.float32))[None]

    def logits(self, crop: np.ndarray) -> np.ndarray:
        assert crop.shape[1:] == (self.pre.crop, self.pre.crop)
        with torch.no_grad():
            return self.finished(self.net(self.tensor(crop))[0])

    @staticmethod
    def finished(logits: Tensor) -> np.ndarray:
        return logits.detach().double().numpy()

    @staticmethod
    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()


class GlobalBrute(Brute):
    """For nets that average globally: they take the whole picture as it is."""

    def mean_score(self, pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.finished(sliding(self.net)(self.tensor(pixels))[0])


# the comparison

MEAN = np.random.default_rng(0).uniform(60, 190, (36, 36, 3)).astype(np.float32)
PICTURE = Preprocessing(36, 0, 32, "rgb", MEAN, 1.0, 0.0, shorter_side=40)
KINDS = {
    "mean picture": PICTURE,
    "mean colour": replace(PICTURE, mean=COLOUR, scale=0.9, offset=3.0),
    "no mean": replace(PICTURE, mean=None, scale=0.5, offset=-60.0),
    "grey": replace(PICTURE, channels="grey"),
    "grey, mean colour": replace(PICTURE, channels="grey", mean=COLOUR),
    "border": Preprocessing(32, 4, 32, "rgb", MEAN[:32, :32], 1.0, 0.0, shorter_side=36),
    "border, mean colour": Preprocessing(32, 4, 32, "rgb", COLOUR, 1.0, 5.0, shorter_side=32),
    "border, grey": Preprocessing(34, 1, 32, "grey", MEAN[:34, :34], 1.0, -7.0, shorter_side=40),
}
ASKED = {  # what `--views` and `--scales` say: [the protocol, its scales for S = 40], whose means are averaged
    ("single", None): [("single", [40])],
    ("ten-crop", None): [("ten-crop", [40])],
    ("nine", None): [("nine", [40])],
    ("multi-crop", None): [("multi-crop", [40])],
    ("144-crop", None): [("144-crop", [37, 41, 46, 50])],
    ("dense", None): [("dense", [40])],
    ("dense", "vgg-jittered"): [("dense", [40, 60, 80])],
    ("ten-crop", "36,40,57"): [("ten-crop", [36, 40, 57])],
    ("multi-crop", "vgg-jittered"): [("multi-crop", [40, 60, 80])],
    ("multi-crop+dense", "40, 60, 80"): [("multi-crop", [40, 60, 80]), ("dense", [40, 60, 80])],
    ("ten-crop+144-crop", None): [("ten-crop", [40]), ("144-crop", [37, 41, 46, 50])],
}


def ours(
    net: Net, split: Split, pre: Preprocessing, name: str, scales: str | None, batch: int = 32, n: int | None = None
) -> np.ndarray:
    """The posteriors (N, K) of the path under test."""
    asked = protocol(name, pre, scales)
    rows = []
    for _, pictures in read(split, np.arange(split.n if n is None else n), asked.looks):
        rows.append(asked.mean(posteriors(net, pictures, asked.looks, pre, CPU, batch)))
    return np.concatenate(rows)


def expected(brute: Brute, split: Split, parts: list[tuple[str, list[int]]], n: int | None = None) -> np.ndarray:
    """The posteriors (N, K) of the brute force."""
    rows = []
    for i in range(split.n if n is None else n):
        frame = decoded(split, i)
        means = [np.mean([brute.posterior(frame, name, scale) for scale in scales], axis=0) for name, scales in parts]
        rows.append(np.mean(means, axis=0))
    return np.array(rows)


def assert_tells_pictures_apart(found: np.ndarray) -> None:
    """Posteriors that are all alike would equal anything."""
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert found.std(0).max() > 0.05
    assert found.max() > 0.5


@pytest.fixture(scope="module")
def truth(frames: Store) -> dict[tuple[str, str | None], np.ndarray]:
    """The brute force's posteriors of the 50 pictures; each protocol is computed once at each scale."""
    brute = Brute(small_net(), PICTURE)
    split = frames.split("test")
    looks = dict.fromkeys((name, scale) for parts in ASKED.values() for name, scales in parts for scale in scales)
    found = {look: expected(brute, split, [(look[0], [look[1]])]) for look in looks}
    return {
        asked: np.mean([np.mean([found[name, s] for s in scales], axis=0) for name, scales in parts], axis=0)
        for asked, parts in ASKED.items()
    }


Truth = dict[tuple[str, str | None], np.ndarray]


@pytest.mark.parametrize("asked", ASKED)
def test_every_protocol_equals_the_brute_force_on_50_pictures(
    frames: Store, truth: Truth, asked: tuple[str, str | None]
) -> None:
    found = ours(small_net(), frames.split("test"), PICTURE, *asked)
    assert found.shape == (50, 5)
    assert_tells_pictures_apart(found)
    np.testing.assert_allclose(found, truth[asked], rtol=0, atol=1e-5)


def test_protocols_differ_by_more_than_what_is_allowed(truth: Truth) -> None:
    """So a protocol that was taken for another one would be found."""
    asked = list(truth)
    for i, one in enumerate(asked):
        for other in asked[:i]:
            assert np.abs(truth[one] - truth[other]).max() > 0.01, (one, other)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_size_of_a_batch_changes_nothing(frames: Store, truth: Truth, batch: int) -> None:
    for asked in [("ten-crop", None), ("144-crop", None), ("multi-crop+dense", "40, 60, 80")]:
        found = ours(small_net(), frames.split("test"), PICTURE, *asked, batch=batch, n=20)
        np.testing.assert_allclose(found, truth[asked][:20], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_preprocessing_equals_the_brute_force(frames: Store, kind: str) -> None:
    pre, split, n = KINDS[kind], frames.split("test"), 11  # one picture of each shape
    net = small_net(1 if pre.channels == "grey" else 3)
    brute = Brute(net, pre)
    for name in ("single", "ten-crop", "nine", "multi-crop", "144-crop", "dense"):
        scales = [pre.shorter_side, 50]
        found = ours(net, split, pre, name, ",".join(map(str, scales)), n=n)
        assert_tells_pictures_apart(found)
        np.testing.assert_allclose(found, expected(brute, split, [(name, scales)], n), rtol=0, atol=1e-5, err_msg=name)


def test_scores_are_those_of_the_averaged_posteriors(frames: Store, truth: Truth) -> None:
    found = truth["multi-crop+dense", "40, 60, 80"]
    split = frames.split("test")
    scores = evaluate(small_net(), split, PICTURE, CPU, views_name="multi-crop+dense", scales="40, 60, 80", batch=11)
    assert scores.predicted.tolist() == found.argmax(1).tolist()
    assert scores.top1 == np.mean(found.argmax(1) != split.labels) > 0
    assert scores.loss == pytest.approx(-np.log(found[np.arange(50), split.labels]).mean(), abs=1e-4)


# real nets


def real_case(name: str, **options: object) -> tuple[Net, Preprocessing, type[Brute] | partial[Brute]]:
    """A thin net, a preprocessing with its crop in a slightly larger square, and its brute force."""
    net = sharp(new_thin_net(name, **options))
    size = round(net.input_size * 8 / 7)
    mean = np.random.default_rng(0).uniform(60, 190, (size, size, 3)).astype(np.float32)
    pre = Preprocessing(size, 0, net.input_size, "rgb", mean, 1.0, 0.0, shorter_side=size)
    averages = name.startswith(("googlenet", "nin"))
    return net, pre, GlobalBrute if averages else partial(Brute, below="pool5")


@pytest.mark.parametrize("name", ["vgg_a"])
def test_thin_nets_of_the_papers_equal_the_brute_force(frames: Store, name: str) -> None:
    net, pre, brute = real_case(name, input_size=64)
    assert pre.size == 73
    split = frames.split("test")
    for views in ("ten-crop", "multi-crop", "144-crop", "dense"):
        found = ours(net, split, pre, views, "73, 80", n=5)
        assert np.ptp(found, axis=0).max() > 0.05
        np.testing.assert_allclose(
            found, expected(brute(net, pre), split, [(views, [73, 80])], 5), rtol=0, atol=1e-5, err_msg=views
        )
