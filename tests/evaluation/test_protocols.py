"""The papers' test protocols against a brute force: one picture at a time, crop by crop, written from the papers' text.

The brute force knows nothing of `evaluation.views` and `evaluation.inference`: it decodes, scales and cuts with Pillow
and numpy, subtracts the mean from the whole square before it cuts, and slides the last layers window by window.
"""

import copy
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from conftest import square, trained_net
from convnet import device
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources import open_source
from convnet.data.store import Split, Store
from convnet.errors import UsageError
from convnet.evaluation.inference import infer
from convnet.evaluation.pictures import at_scales, read, seen
from convnet.evaluation.views import Look, protocol, square_at
from convnet.nets import create_model
from convnet.nets.layers import Net, connected, record, sliding
from thin import new_thin_net, shapes_of, thin_net

CPU = device.choose("fp32", "cpu")
COLOUR = np.array([123, 117, 104], np.float32)
CLASSES = ("angular", "round")
# wide, high
SHAPES = [(1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (1.02, 1), (1, 1.02), (3, 1), (1, 3)]


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
    """22 test pictures whose shorter side has 80 pixels: of each shape one of each class."""
    return store_of_photos(tmp_path_factory.mktemp("frames"), 36, 80, 22)


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
    last = "fc3"

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


def sharp(net: Net, images: Tensor | None = None) -> Net:
    """The net in eval mode, its last layer changed so that logits differ from picture to picture, by about 3."""
    net.eval()
    random, side = np.random.default_rng(3), net.input_size
    if images is None:
        pictures = np.stack([np.asarray(photo(random, side, side, i % 2), np.float32) for i in range(8)]) - COLOUR
        images = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())[:, : net.in_channels]
    last = net.get_submodule(net.last)
    with torch.no_grad():
        logits = net(images)
        last.weight *= 3 / (logits - logits.mean(0)).std()
        last.bias -= net(images).mean(0).reshape(last.bias.shape)
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
        images are averaged"; here the last layers are applied to windows that are cut out of the map below them."""
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
        windows = [
            maps[:, top : top + side, left : left + side].flatten()
            for top in range(maps.shape[1] - side + 1)
            for left in range(maps.shape[2] - side + 1)
        ]
        x = torch.stack(windows)
        with torch.no_grad():
            for k, layer in enumerate(layers):
                x = F.linear(F.relu(x) if k else x, layer.weight, layer.bias)
        return self.finished(x).mean(0)

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
        rows.append(asked.mean(infer(net, pictures, asked.looks, pre, CPU, batch)))
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
    assert found.std(0).max() > 0.02
    assert found.max() > 0.5


Truth = dict[tuple[str, str | None], np.ndarray]


def expected_of_all(brute: Brute, split: Split) -> Truth:
    """The brute force's posteriors (N, K) of all that is asked; each protocol is computed once at each scale."""
    looks = dict.fromkeys((name, scale) for parts in ASKED.values() for name, scales in parts for scale in scales)
    found = {look: expected(brute, split, [(look[0], [look[1]])]) for look in looks}
    return {
        asked: np.mean([np.mean([found[name, s] for s in scales], axis=0) for name, scales in parts], axis=0)
        for asked, parts in ASKED.items()
    }


@pytest.fixture(scope="module")
def truth(frames: Store) -> Truth:
    return expected_of_all(Brute(small_net(), PICTURE), frames.split("test"))


@pytest.mark.parametrize("asked", ASKED)
def test_every_protocol_equals_the_brute_force(frames: Store, truth: Truth, asked: tuple[str, str | None]) -> None:
    found = ours(small_net(), frames.split("test"), PICTURE, *asked)
    assert found.shape == (22, 5)
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
        found = ours(small_net(), frames.split("test"), PICTURE, *asked, batch=batch, n=8)
        np.testing.assert_allclose(found, truth[asked][:8], rtol=0, atol=1e-5)


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
    scores = trained_net(small_net(), PICTURE).evaluate(split, views="multi-crop+dense", scales="40, 60, 80", batch=11)
    assert scores.predicted.tolist() == found.argmax(1).tolist()
    assert scores.top1 == np.mean(found.argmax(1) != split.labels) > 0
    assert scores.loss == pytest.approx(-np.log(found[np.arange(22), split.labels]).mean(), abs=1e-4)


# real nets


def real_case(name: str, net: Net) -> tuple[Net, Preprocessing, Brute]:
    """The net, a preprocessing with its crop in a somewhat larger square (256 for 224), and its brute force."""
    size = round(net.input_size * 8 / 7)
    mean = np.random.default_rng(0).uniform(60, 190, (size, size, 3)).astype(np.float32)
    pre = Preprocessing(size, 0, net.input_size, "rgb", mean, 1.0, 0.0, shorter_side=size)
    averages = name.startswith(("googlenet", "nin"))
    return net, pre, GlobalBrute(net, pre) if averages else Brute(net, pre, below="pool5")


def full_net(name: str) -> Net:
    """With initial values that don't make all pictures look alike."""
    inits = shapes_of(name).inits
    return create_model(name, init=next(init for init in ("fan-in", "glorot", "paper") if init in inits), seed=0)


def compare(name: str, net: Net, split: Split, counts: dict[tuple[str, str | None], int]) -> None:
    """counts: {(views, scales): how many pictures}."""
    net, pre, brute = real_case(name, sharp(net))
    for (views, scales), n in counts.items():
        found = ours(net, split, pre, views, scales, n=n)
        parts = [(look[0].name, [each.scale for each in look]) for look in protocol(views, pre, scales).parts]
        np.testing.assert_allclose(found, expected(brute, split, parts, n), rtol=0, atol=1e-5, err_msg=views)
        assert np.ptp(found, axis=0).max() > 0.05


def test_a_thin_vgg_equals_the_brute_force(frames: Store) -> None:
    net = new_thin_net("vgg_a", input_size=64)
    counts = {("ten-crop", None): 5, ("multi-crop+dense", "73, 80"): 4, ("144-crop", "73, 80"): 4}
    compare("vgg_a", net, frames.split("test"), counts)


@pytest.fixture(scope="module")
def large_frames(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """50 test pictures whose shorter side has 512 pixels."""
    return store_of_photos(tmp_path_factory.mktemp("large"), 256, 512, 50)


@pytest.mark.large
def test_alexnet_equals_the_brute_force_on_50_pictures(large_frames: Store) -> None:
    counts = {
        ("ten-crop", None): 50,
        ("multi-crop", None): 6,
        ("144-crop", None): 3,
        ("dense", None): 50,
        ("dense", "vgg-jittered"): 7,
    }
    compare("alexnet", full_net("alexnet"), large_frames.split("test"), counts)


@pytest.mark.large
@pytest.mark.parametrize("name", ["vgg_a", "googlenet", "nin_imagenet"])
def test_nets_of_full_size_equal_the_brute_force(large_frames: Store, name: str) -> None:
    counts = {("ten-crop", None): 4, ("144-crop", None): 2, ("dense", "256, 384"): 4}
    compare(name, full_net(name), large_frames.split("test"), counts)


@pytest.mark.data
@pytest.mark.parametrize("n", [12, pytest.param(50, marks=pytest.mark.large)])
def test_every_protocol_equals_the_brute_force_on_photos(tmp_path: Path, n: int) -> None:
    """Photos of ImageNet; of two in three a part is cut off, so that they aren't square."""
    if not (root := os.environ.get("CONVNET_DATA")):
        pytest.skip("CONVNET_DATA is not set")
    paths = sorted(Path(root, "imagenette").glob("val/*/*.JPEG"))[:: 900 // n][: n + 4]
    for i, path in enumerate(paths):
        box = [(0, 0, 224, 224), (0, 30, 224, 190), (50, 0, 200, 224)][i % 3]
        to = tmp_path / "source" / ("test" if i < n else "train") / CLASSES[i % 2] / f"{i}.png"
        to.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").crop(box).save(to)
    store = prepare(open_source(tmp_path / "source"), tmp_path / "store", size=36, shorter_side=80, encoding="jpeg")
    split, net = store.split("test"), small_net()
    assert split.n == n
    pre = replace(PICTURE, mean=MEAN / 2 + store.mean_picture / 2)
    for asked, truth in expected_of_all(Brute(net, pre), split).items():
        found = ours(net, split, pre, *asked)
        assert_tells_pictures_apart(found)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5, err_msg=asked[0])


# dense on the net's own size

OWN_SIZE = ("alexnet", "zfnet", "alexnet_owt", "alexnet_bn", "vgg_a", "vgg_d", "nin_imagenet", "googlenet")


def assert_dense_is_the_net_itself(name: str, net: Net) -> None:
    net, side = sharp(net), net.input_size
    pre = Preprocessing(side, 0, side, "rgb", COLOUR, 1.0, 0.0)
    random = np.random.default_rng(2)
    pictures = [np.asarray(photo(random, side, side, label)) for label in (0, 1)]
    images = torch.from_numpy(np.stack(pictures) - COLOUR).permute(0, 3, 1, 2)
    with torch.no_grad():
        plain, mirrored = net(images), net(images.flip(3))
        torch.testing.assert_close(sliding(net)(images), plain, rtol=0, atol=1e-5)
    mean = (plain.softmax(1) + mirrored.softmax(1)) / 2
    look = Look("dense", side)
    found = infer(net, [{side: each} for each in pictures], [look], pre, CPU)[look]
    np.testing.assert_allclose(found, mean.numpy(), rtol=0, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01, name


@pytest.mark.parametrize("name", OWN_SIZE)
def test_dense_on_the_nets_own_size_is_the_net_itself(name: str) -> None:
    assert_dense_is_the_net_itself(name, copy.deepcopy(thin_net(name)))


@pytest.mark.large
@pytest.mark.parametrize("name", [*OWN_SIZE, "vgg_e", "googlenet_bn"])
def test_dense_on_the_nets_own_size_is_the_net_itself_for_full_nets(name: str) -> None:
    assert_dense_is_the_net_itself(name, full_net(name))


def test_dense_sees_the_border_that_training_had(digits: Store) -> None:
    """LeNet-5's 28 x 28 in a border of 2: the whole picture is the net's input."""
    pre = Preprocessing(28, 2, 32, "grey", None, 1.275 / 255, -0.1)
    pixels = torch.from_numpy(np.stack([square(digits, "test", i)[None, ..., 0] for i in range(20)])).float()
    images = F.pad(pixels, (2, 2, 2, 2)) * pre.scale + pre.offset
    net = sharp(create_model("lenet5", output="linear", seed=0), images)
    with torch.no_grad():
        mean = (net(images).softmax(1) + net(images.flip(3)).softmax(1)) / 2
    found = ours(net, digits.split("test"), pre, "dense", None, n=20)
    np.testing.assert_allclose(found, mean.numpy(), rtol=0, atol=1e-5)
    assert_tells_pictures_apart(found)


# what a pass holds


class CountingNet(SmallNet):
    """Notes how many pixels each pass was given."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.pixels: list[int] = []

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        self.pixels.append(images.shape[0] * images.shape[2] * images.shape[3])
        return super().forward(images, stages)


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_no_pass_holds_more_than_the_batch_or_one_picture(frames: Store, batch: int) -> None:
    net, split = CountingNet(3).eval(), frames.split("test")
    for views in ("single", "nine", "ten-crop", "multi-crop", "144-crop"):
        ours(net, split, PICTURE, views, None, batch, n=6)
        assert max(net.pixels) <= batch * 32 * 32
        net.pixels.clear()
    sizes = [np.prod(decoded(split, i).size) for i in range(22)]
    ours(net, split, PICTURE, "dense", "80", batch, n=22)
    assert max(net.pixels) <= max(batch * 32 * 32, *sizes)
    assert sum(net.pixels) == 2 * sum(sizes)


def test_pictures_of_one_shape_share_a_pass(frames: Store) -> None:
    net, split = CountingNet(3).eval(), frames.split("test")
    ours(net, split, PICTURE, "dense", None, batch=200)
    shapes = {Brute.rescaled(decoded(split, i), 40).size for i in range(split.n)}
    assert len(net.pixels) == len(shapes) < 2 * split.n / 3


def test_each_picture_is_decoded_once(frames: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    split, asked = frames.split("test"), []
    monkeypatch.setattr(Split, "picture", lambda self, i, whole=Split.picture: asked.append(i) or whole(self, i))
    ours(small_net(), split, PICTURE, "ten-crop+144-crop+dense", "40, 60, 80", n=7)
    assert asked == list(range(7))


def test_no_pictures_are_read_where_none_are_left(frames: Store) -> None:
    split = frames.split("test")
    assert list(read(split, np.arange(22, split.n), [Look("single", 40)])) == []


def test_in_bf16_the_protocols_are_the_same_but_for_rounding(frames: Store, truth: Truth) -> None:
    bf16 = replace(CPU, dtype=torch.bfloat16)
    split, name, scales = frames.split("test"), "multi-crop+dense", "40, 60, 80"
    asked = protocol(name, PICTURE, scales)
    pictures = [at_scales(split.picture(i), 80, asked.looks) for i in range(10)]
    found = asked.mean(infer(small_net(), pictures, asked.looks, PICTURE, bf16))
    assert 1e-6 < np.abs(found - truth[name, scales][:10]).max() < 0.03


# names, scales and errors

PAPERS = Preprocessing(256, 0, 224, "rgb", COLOUR, 1.0, 0.0, shorter_side=256)


@pytest.mark.parametrize(
    ("name", "scales", "text"),
    [
        ("single", None, "single at 256"),
        ("ten-crop", "train", "ten-crop at 256"),
        ("dense", "vgg-fixed", "dense at 224, 256, 288"),
        ("dense", "vgg-jittered", "dense at 256, 384, 512"),
        ("multi-crop+dense", "256,384, 512", "multi-crop+dense at 256, 384, 512"),
        ("144-crop", None, "144-crop at 256, 288, 320, 352"),
        ("ten-crop+144-crop", None, "ten-crop at 256 + 144-crop at 256, 288, 320, 352"),
    ],
)
def test_protocols_print_themselves(name: str, scales: str | None, text: str) -> None:
    assert str(protocol(name, PAPERS, scales)) == text


def test_views_are_as_many_as_the_papers_say() -> None:
    for name, scales, n in [
        ("single", None, 1),
        ("ten-crop", None, 10),
        ("nine", None, 9),
        ("144-crop", None, 144),
        ("multi-crop", "vgg-jittered", 150),
        ("dense", "vgg-jittered", 6),
    ]:
        assert sum(look.n_views() for look in protocol(name, PAPERS, scales).looks) == n, name


@pytest.mark.parametrize(
    ("name", "scales", "message"),
    [
        ("tencrop", None, "unknown views 'tencrop': did you mean 'ten-crop'?"),
        ("multi-crop+dens", None, "unknown views 'dens': did you mean 'dense'?"),
        ("", None, "unknown views ''"),
        ("dense+dense", None, "views dense+dense: the same protocol twice"),
        ("dense", "216", "dense at 216: a crop of 224 pixels does not fit; choose larger --scales"),
        ("ten-crop", "256, 192", "ten-crop at 192: a crop of 224 pixels does not fit; choose larger --scales"),
        ("dense", "256,three", "--scales 256,three: numbers of pixels from 1 to 8192, as 256,384,512, or train, vgg-f"),
        ("dense", "0", "--scales 0: numbers of pixels from 1 to 8192"),
        ("dense", "8193", "--scales 8193: numbers of pixels from 1 to 8192"),
        ("dense", "256,", "--scales 256,: numbers of pixels from 1 to 8192"),
        ("dense", "-256", "--scales -256: numbers of pixels from 1 to 8192"),
        ("dense", "٢٥٦", "--scales ٢٥٦: numbers of pixels from 1 to 8192"),
        ("dense", "vgg-fixd", "--scales vgg-fixd: numbers of pixels from 1 to 8192"),
        ("dense", "256, 0256", "--scales 256, 0256: the same scale twice"),
    ],
)
def test_names_and_scales_that_are_refused(name: str, scales: str | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        protocol(name, PAPERS, scales)
    assert str(caught.value).startswith(message)


def test_a_crop_can_fit_into_a_picture_but_not_into_its_central_square() -> None:
    pre = replace(PAPERS, size=224)  # the square is 7/8 of the shorter side
    protocol("multi-crop", pre, "240")
    with pytest.raises(UsageError, match=r"^ten-crop at 240: a crop of 224 pixels does not fit"):
        protocol("ten-crop", pre, "240")


def test_a_squares_side_is_rounded_to_the_nearest_pixel() -> None:
    pre = replace(PAPERS, size=224)
    assert [square_at(pre, scale) for scale in (256, 257, 258, 384)] == [224, 225, 226, 336]  # 224.875, 225.75


def two_classes(folder: Path, width: int, height: int) -> None:
    """A training picture in each of two classes."""
    for label, name in enumerate("ab"):
        (folder / "train" / name).mkdir(parents=True)
        photo(np.random.default_rng(label), width, height, label).save(folder / "train" / name / f"{name}.png")


def test_what_a_store_cannot_give_names_the_preparation_that_would_do(frames: Store, tmp_path: Path) -> None:
    two_classes(tmp_path / "source", 640, 520)
    raw = prepare(open_source(tmp_path / "source", split=0), tmp_path / "raw", size=256)
    net = small_net()
    with pytest.raises(UsageError) as caught:
        trained_net(net, PAPERS).evaluate(raw.split("train"), views="dense", scales="256, 512")
    assert str(caught.value) == (
        f"{raw.path} holds pictures of 256 pixels in a shorter side of 256, and dense at 512 needs 512 in 512: "
        "prepare the source with --encoding jpeg --size 256 --shorter-side 512"
    )
    jpeg = prepare(
        open_source(tmp_path / "source", split=0), tmp_path / "jpeg", size=256, shorter_side=512, encoding="jpeg"
    )
    trained_net(net, PAPERS).evaluate(jpeg.split("train"), views="dense", scales="256, 512")
    with pytest.raises(UsageError) as caught:
        trained_net(net, PICTURE).evaluate(frames.split("test"), views="dense", scales="96, 100")
    assert str(caught.value) == (
        f"{frames.path} holds pictures with a shorter side of 80 pixels, too small for dense at 96: "
        "prepare the source with --encoding jpeg --size 36 --shorter-side 100"
    )


def test_a_user_is_told_what_the_views_do_not_see(frames: Store, photos: Store) -> None:
    raw = seen(photos.split("test"), [Look("multi-crop", 32)])
    assert raw == f"{photos.path} holds central squares only: no view sees what was cut off (--encoding jpeg keeps all)"
    assert seen(photos.split("test"), [Look("ten-crop", 32)]) is None
    resized = seen(frames.split("test"), [Look("dense", 80), Look("dense", 60), Look("dense", 40)])
    assert resized == "pictures are resized from the store's shorter side of 80 pixels to 40, 60"
    assert seen(frames.split("test"), [Look("dense", 80)]) is None


def test_crops_that_are_larger_than_a_stored_square_are_refused(tmp_path: Path) -> None:
    """A raw store's squares with a border may hold a crop that the picture itself doesn't."""
    two_classes(tmp_path / "source", 60, 50)
    store = prepare(open_source(tmp_path / "source", split=0), tmp_path / "raw", size=30, shorter_side=36)
    pre = Preprocessing(30, 2, 32, "rgb", COLOUR, 1.0, 0.0, shorter_side=36)
    net = small_net()
    ours(net, store.split("train"), pre, "ten-crop", None)
    with pytest.raises(UsageError, match=r"^multi-crop: a crop of 32 pixels does not fit into a picture of 30 x 30$"):
        ours(net, store.split("train"), pre, "multi-crop", None)


def test_a_net_that_cannot_slide_says_so(photos: Store) -> None:
    pre = Preprocessing(32, 0, 24, "rgb", None, 1.0, 0.0)
    with pytest.raises(UsageError, match=r"the locally connected layers of cifar_11 .* choose crops with --views"):
        ours(create_model("cifar_11").eval(), photos.split("test"), pre, "dense", None)
