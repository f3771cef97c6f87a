"""What was done to pictures before a net of others saw them, and what are its classes called?"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convnet.data.preprocess import Preprocessing
from convnet.data.resize import Fit
from convnet.errors import DataError, UsageError, unknown
from convnet.io import atomic
from convnet.nets.layers import Net
from convnet.recipe import Option, Recipe
from convnet.weights import archives, caffe, download
from convnet.weights.report import Report

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
    net: Net,
    writer: str,
    mean: Path | tuple[float, float, float] | None,
    order: str,
    pixels: str | None,
    fit: Fit,
    report: Report,
) -> tuple[Preprocessing, tuple[float, ...] | None]:
    """What is done to pictures, and what the first convolution's input channels are to be divided by.

    order: of the colours in a mean's file, "rgb" or "bgr".
    """
    report.notes += [net.caffe_note] if writer == "caffe" and net.caffe_note else []
    scale, factors, levels = 1.0, None, None
    size = max(SIZE, net.input_size) if net.input_size > SIZE // 2 else net.input_size
    if pixels is not None:
        if mean is not None:
            raise UsageError(f"--mean is for Caffe's files; {writer}'s have their own mean")
        centre, std = PIXELS[pixels]
        scale = 1 / (255 * std[0]) if len(set(std)) == 1 else 1.0
        levels = np.asarray([255 * level for level in centre], np.float32)
        factors = tuple(1.0 if len(set(std)) == 1 else 255 * each for each in std)
        report.notes.append(
            f"{writer}'s pixels were (pixel / 255 - mean) / std, mean {centre}, std {std}; "
            "here they are pixel - 255 mean, "
            + (f"times {scale:.6g}" if scale != 1 else "and 255 std is in the first convolution's weights")
        )
    elif mean is not None:
        levels = mean_of(mean, size, order) if isinstance(mean, Path) else np.asarray(mean, np.float32)
    else:
        report.notes.append("no mean is subtracted: none was given (--mean), and the file has none")
    channels: Literal["rgb", "grey"] = "rgb" if net.in_channels == 3 else "grey"
    done = Preprocessing(
        size=size,
        shorter_side=size,
        fit=fit,
        pad=0,
        crop=net.input_size,
        channels=channels,
        mean=levels,
        scale=scale,
        offset=0.0,
    )
    return done, factors


def mean_of(path: Path, size: int, order: str = "bgr") -> NDArray[np.float32]:
    """Caffe's mean as ours: (3,) or (size, size, 3), RGB; `order` is that of the file's colours.

    Raises: DataError for a file that holds no such mean.
    """
    try:
        if path.suffix == ".binaryproto":
            found: NDArray[Any] = caffe.read_mean(path)
        elif path.suffix == ".npy":
            found = archives.read_npy(path)
        else:
            raise UsageError(f"{path}: a mean's name must end in .binaryproto or .npy")
        if found.shape not in ((3,), (3, size, size)):
            raise DataError(f"a mean of shape {found.shape}; it must be (3,) or (3, {size}, {size}), {order.upper()}")
        if not np.isfinite(found).all():
            raise DataError("a mean with values that are not finite")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}") from error
    colours = found[::-1] if order == "bgr" else found
    return np.ascontiguousarray(np.moveaxis(colours, 0, -1), np.float32)


def recipe_of(net_name: str, options: Mapping[str, Option], done: Preprocessing) -> Recipe:
    """A recipe of that net and these pictures; the rest of it is the default. Raises: UsageError."""
    mean: Literal["picture", "rgb", "none"] = (
        "none" if done.mean is None else "rgb" if done.mean.ndim == 1 else "picture"
    )
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
    return _told_apart(path, lines, report)


def _told_apart(path: Path, lines: list[str], report: Report) -> tuple[str, ...]:
    """The names; of those that stand there twice, as ImageNet's two cranes, each with its output's number behind it.

    None keeps the bare name, which would say one of them and mean either.
    """
    counts = Counter(lines)
    names = [f"{line} ({k})" if counts[line] > 1 else line for k, line in enumerate(lines)]
    for name, n in counts.items():
        if n > 1:
            numbers = [k for k, line in enumerate(lines) if line == name]
            places = " and ".join(str(k + 1) for k in numbers)
            called = ", ".join(repr(names[k]) for k in numbers)
            report.notes.append(
                f"{path.name}: {name!r} stands in lines {places}: called {called}, by the outputs' numbers"
            )
    if len(set(names)) < len(names):
        twice = next(name for name, n in Counter(names).items() if n > 1)
        raise DataError(f"{path}: two classes would be called {twice!r}; give each line a name of its own")
    return tuple(names)
