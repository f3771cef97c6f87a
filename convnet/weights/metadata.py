"""What a file that we exported says of itself: its net, whose names its tensors have, preprocessing and classes.

A `.safetensors` has it in its metadata, as `export/named.py` writes them (docs/weights.md lists them). They're a
stranger's words: each is held against its rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from convnet.data import preprocess
from convnet.data.preprocess import Preprocessing
from convnet.data.resize import Fit
from convnet.errors import DataError, UsageError
from convnet.io import atomic, safetensors, strict_json
from convnet.io.fields import Option
from convnet.nets.layers import Net
from convnet.weights import archives
from convnet.weights.preprocessing import Mean, mean_of, recipe_of

Writer = Literal["convnet", "torchvision", "timm", "caffe"]
WRITERS: tuple[Writer, ...] = get_args(Writer)
KEYS = ("convnet", "net", "net_options", "names", "preprocessing", "classes")
MAX_LEVEL = 1e6  # grey levels: no mean is larger
MAX_STD = 1e3


@dataclass(frozen=True)
class Metadata:
    """What one of our files says of itself.

    net, options   the net, by name, and its options
    writer         whose names the tensors have
    classes        their names, in the order of the net's outputs
    preprocessing  as it was exported; a mean picture is missing in it
    mean_picture   the file beside that holds the mean picture, float32 (3, size, size), BGR; None where there is none
    mean_sha256    of that file; None in a file of an earlier version
    channels       the order of colours that the first layer reads, "rgb" or "bgr"
    is_sealed      whether all of the file is under a sha256, as from this version on
    factors        what the first convolution's input channels were multiplied by for torchvision's Normalize, or None
    """

    net: str
    options: Mapping[str, Option]
    writer: Writer
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    mean_picture: str | None
    mean_sha256: str | None
    channels: str
    is_sealed: bool
    factors: tuple[float, ...] | None


def read_metadata(path: Path) -> Metadata | None:
    """What a file says of itself; None for a file that isn't ours. Raises: DataError naming what is wrong."""
    if path.suffix.lower() != ".safetensors":
        return None
    texts = archives.read_metadata(path)
    if "convnet" not in texts and len(texts.keys() & set(KEYS)) < 4:  # else a bit of that name may have been hit
        return None
    digest = texts.get(safetensors.SEAL)
    is_hit = digest is None and any(len(name) == len(safetensors.SEAL) and len(texts[name]) == 64 for name in texts)
    if is_hit or (digest is not None and not safetensors.is_as_sealed(archives.mapped(path), digest)):
        raise DataError(f"{path} is not as it was exported: its sha256 does not match; export it again")
    try:
        return _parse(texts)
    except (DataError, UsageError, ValueError) as error:
        raise invalid(path, error) from error


def invalid(path: Path, error: Exception, net: str = "") -> DataError:
    """The error for metadata that break a rule."""
    return DataError(f"{path}: its metadata: {net and f'net {net}: '}{' '.join(str(error).split())}")


def preprocessing_of(
    metadata: Metadata, path: Path, net: Net, mean: Mean | None, pixels: str | None, fit: Fit | None
) -> Preprocessing:
    """As the file at `path` says, but for a mean and a fit that are given; a mean picture lies beside it.

    Raises: DataError when the mean picture isn't there or is damaged, or the net can't take such crops; UsageError for
    a scaling of pixels, which the file says itself.
    """
    if pixels is not None:
        raise UsageError(f"{path} says itself how its pixels were scaled; leave --pixels out")
    done = replace(metadata.preprocessing, fit=fit or metadata.preprocessing.fit)
    if isinstance(mean, Path):
        done = replace(done, mean=mean_of(mean, done.size))
    elif metadata.mean_picture is not None:
        beside = path.with_name(metadata.mean_picture)
        if not beside.exists():
            raise DataError(f"{path}: its mean picture {beside.name} isn't beside it; put it there, or give --mean")
        if metadata.mean_sha256 is not None and atomic.sha256_file(beside) != metadata.mean_sha256:
            raise DataError(
                f"{beside} is not as it was exported: its sha256 does not match; export again, or give --mean"
            )
        done = replace(done, mean=mean_of(beside, done.size))
    try:
        with torch.no_grad():
            net.eval()(torch.empty(1, 1 if done.channels == "grey" else 3, done.crop, done.crop, device="meta"))
    except (UsageError, RuntimeError) as error:
        raise invalid(path, error) from error
    return done


def _parse(texts: Mapping[str, str]) -> Metadata:
    for key in KEYS:
        if key not in texts:
            raise DataError(f"{key} is missing")
    writer = next((each for each in WRITERS if each == texts["names"]), None)
    if writer is None:
        raise DataError(f"names is {texts['names'][:50]!r}; it must be {', '.join(WRITERS)}")
    values = strict_json.parse(texts["preprocessing"])
    normalize, mean, sha256 = values.pop("normalize", None), values.get("mean"), values.pop("mean_sha256", None)
    channels = "bgr" if values.get("channels") == "bgr" else "rgb"
    if channels == "bgr":  # the first convolution's order, which is turned back
        values["channels"] = "rgb"
    colour = None if mean is None or isinstance(mean, str) else np.asarray(_three("mean", mean, MAX_LEVEL), np.float32)
    done = preprocess.from_dict({**values, "mean": colour is not None}, colour)
    options = strict_json.parse(texts["net_options"])
    recipe_of(texts["net"], options, done)  # holds the net's name, its options and the scale against their rules
    factors = None
    if writer == "torchvision":
        std = normalize.get("std") if isinstance(normalize, dict) else None
        factors = tuple(255 * each * done.scale for each in _three("normalize", std, MAX_STD, least=1e-6))
    return Metadata(
        net=texts["net"],
        options=options,
        writer=writer,
        classes=_classes(strict_json.value(texts["classes"])),
        preprocessing=done,
        mean_picture=_file_name(mean) if isinstance(mean, str) else None,
        mean_sha256=None if sha256 is None else str(sha256),
        channels=channels,
        is_sealed=safetensors.SEAL in texts,
        factors=factors,
    )


def _three(name: str, numbers: object, most: float, least: float = -MAX_LEVEL) -> tuple[float, ...]:
    if not isinstance(numbers, list) or len(numbers) != 3:
        raise DataError(f"{name} is no list of three numbers")
    if not all(type(each) in (int, float) and least <= each <= most for each in numbers):
        raise DataError(f"{name} holds what is no number from {least:g} to {most:g}")
    return tuple(map(float, numbers))


def _classes(names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError("classes is no list of names")
    return tuple(names)


def _file_name(text: str) -> str:
    if not text.endswith(".npy") or not text.isprintable() or Path(text).name != text:
        raise DataError(f"mean is {text[:50]!r}; it must be the name of a .npy file beside this one")
    return text
