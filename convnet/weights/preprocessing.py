"""What was done to pictures before a net of others saw them, and what are its classes called?"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convnet.data.preprocess import Preprocessing
from convnet.data.resize import Fit
from convnet.errors import DataError, UsageError, unknown
from convnet.io import atomic
from convnet.io.fields import Option
from convnet.nets.layers import Net
from convnet.nets.published import Colour
from convnet.recipe import Recipe
from convnet.weights import archives, caffe, download
from convnet.weights.report import Report

Mean = Path | Colour
# What others do to pixels of 0 to 255 before the net: (pixel / 255 - mean) / std, for R, G, B.
PIXELS = MappingProxyType(
    {
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }
)
SIZE = 256  # pixels: the shorter side, of which a square is cut out


def pixels_of(net: Net, writer: str, sha256: str, pixels: str | None) -> str | None:
    """How the pixels were scaled: as said, as is known of this very file, or by the one way that is in use.

    Raises: UsageError where that can't be known.
    """
    if writer not in ("torchvision", "timm"):
        if pixels is not None:
            raise UsageError(f"--pixels {pixels} is for torchvision's and timm's files; this one has {writer}'s names")
        return None
    if pixels is not None and pixels not in PIXELS:
        raise UsageError(unknown("scaling of pixels", pixels, PIXELS))
    if net.in_channels == 1 and pixels != "half":
        raise UsageError(
            "ImageNet's mean and std are of three colours, and this net sees one: give --pixels half if its pixels "
            "were scaled to -1..1"
        )
    if pixels is not None:
        return pixels
    if (file := download.known_by_digest(sha256)) is not None and file.pixels is not None:
        return file.pixels
    if net.pixels_note:
        raise UsageError(net.pixels_note)
    return "imagenet"


def preprocessing_of(
    net: Net, mean: Mean | None, channels: str, pixels: str | None, fit: Fit, report: Report
) -> tuple[Preprocessing, tuple[float, ...] | None]:
    """What is done to pictures, and what the first convolution's input channels are to be divided by.

    channels: the order of colours in a mean's file, "rgb" or "bgr".
    """
    if report.writer == "caffe" and net.caffe_note:
        report.notes.append(net.caffe_note)
    scale, factors, levels = 1.0, None, None
    size = max(SIZE, net.input_size) if net.input_size > SIZE // 2 else net.input_size
    if pixels is not None:
        if mean is not None:
            raise UsageError(f"--mean is for Caffe's files; {report.writer}'s have their own mean")
        centre, std = PIXELS[pixels]
        levels = np.asarray([255 * level for level in centre], np.float32)
        if len(set(std)) == 1:
            scale, what = 1 / (255 * std[0]), f"times {1 / (255 * std[0]):.6g}"
        else:
            factors = tuple(255 * each for each in std)
            what = "and 255 std is in the first convolution's weights"
        report.notes.append(
            f"{report.writer}'s pixels were (pixel / 255 - mean) / std, mean {centre}, std {std}; "
            f"here they are pixel - 255 mean, {what}"
        )
        report.notes.append(
            f"{report.writer} resizes test pictures bilinearly, rounds the longer side down, and cuts a pixel off the "
            "centre where the room is odd; here they are resized bicubic and cut in the centre: some answers can differ"
        )
    elif mean is not None:
        levels = mean_of(mean, size, channels) if isinstance(mean, Path) else np.asarray(mean, np.float32)
    else:
        report.notes.append("no mean is subtracted: none was given (--mean), and the file has none")
    done = Preprocessing(
        size=size,
        pad=0,
        crop=net.input_size,
        channels="rgb" if net.in_channels == 3 else "grey",
        mean=levels,
        scale=scale,
        offset=0.0,
        fit=fit,
    )
    return done, factors


def mean_of(path: Path, size: int, channels: str = "bgr") -> NDArray[np.float32]:
    """Caffe's mean as ours: (3,) or (size, size, 3), RGB; `channels` is the order of the file's colours.

    Raises: DataError for a file that holds no such mean.
    """
    if path.suffix not in (".binaryproto", ".npy"):
        raise UsageError(f"{path}: a mean's name must end in .binaryproto or .npy")
    with archives.reading(path):
        mean = caffe.read_mean(path) if path.suffix == ".binaryproto" else archives.read_npy(path)
        if mean.shape not in ((3,), (3, size, size)):
            raise DataError(f"a mean of shape {mean.shape}; it must be (3,) or (3, {size}, {size}), {channels.upper()}")
        if not np.isfinite(mean).all():
            raise DataError("a mean with values that are not finite")
    colours = mean[::-1] if channels == "bgr" else mean
    return np.ascontiguousarray(np.moveaxis(colours, 0, -1), np.float32)


def recipe_of(net_name: str, options: Mapping[str, Option], done: Preprocessing) -> Recipe:
    """A recipe of that net and these pictures; the rest of it is the default. Raises: UsageError."""
    mean: Literal["picture", "rgb", "none"] = "none"
    if done.mean is not None:
        mean = "rgb" if done.mean.ndim == 1 else "picture"
    return Recipe(
        name=net_name,
        net=net_name,
        net_options=options,
        size=done.size,
        pad=done.pad,
        crop=done.crop,
        channels=done.channels,
        mean=mean,
        scale=done.scale,
        offset=done.offset,
        colour_std=0.0,
    )


def classes_of(path: Path | None, n: int, own: tuple[str, ...] | None, report: Report) -> tuple[str, ...]:
    """The names in a file, or `own`, those that the weights came with, or "0" to "n - 1".

    Raises: DataError for a file that can't be read or doesn't hold n names.
    """
    if path is None and own is not None and len(own) == n:
        return own
    if path is None:
        report.notes.append(f'the classes are called "0" to "{n - 1}": no file with their names was given (--classes)')
        return tuple(str(k) for k in range(n))
    try:
        text = atomic.read(path, atomic.TEXT).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if all(len(line) > 9 and line[0] == "n" and line[1:9].isdecimal() and line[9] in " \t" for line in lines):
        lines = [line[:9] for line in lines]
        report.notes.append(f"{path.name} is read as synset_words.txt: the classes are called by the first words")
    if len(lines) != n:
        raise DataError(f"{path}: {len(lines)} names; the net has {n} classes, and needs one name a line for each")
    return _numbered(path, lines, report)


def _numbered(path: Path, lines: list[str], report: Report) -> tuple[str, ...]:
    """The names; of those that stand there twice, as ImageNet's two cranes, each with its output's number behind it.

    None keeps the bare name, which would say one of them and mean either.
    """
    outputs: dict[str, list[int]] = defaultdict(list)
    for k, line in enumerate(lines):
        outputs[line].append(k)
    names = [f"{line} ({k})" if len(outputs[line]) > 1 else line for k, line in enumerate(lines)]
    for line, numbers in outputs.items():
        if len(numbers) > 1:
            places = " and ".join(str(k + 1) for k in numbers)
            called = ", ".join(repr(names[k]) for k in numbers)
            report.notes.append(
                f"{path.name}: {line!r} stands in lines {places}: called {called}, by the outputs' numbers"
            )
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: two classes would be called {name!r}; give each line a name of its own")
    return tuple(names)
