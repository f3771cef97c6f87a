"""What does a file that we exported say of itself? Its net, whose names its tensors have, preprocessing and classes.

A `.safetensors` has it in its metadata, as `export/named.py` writes them (docs/weights.md lists them). They're a
stranger's words: each is held against its rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from convnet.data import preprocess
from convnet.data.preprocess import Preprocessing
from convnet.errors import DataError, UsageError
from convnet.io import atomic, safetensors, strict_json
from convnet.recipe import Option
from convnet.weights import archives
from convnet.weights.pictures import mean_of, recipe_of

Names = Literal["convnet", "torchvision", "caffe"]
KEYS = ("convnet", "net", "net_options", "names", "preprocessing", "classes")
MAX_LEVEL = 1e6  # grey levels: no mean is larger
MAX_STD = 1e3


@dataclass(frozen=True)
class Own:
    """What one of our files says of itself.

    net, options   the net, by name, and its options
    names          whose names the tensors have
    classes        their names, in the order of the net's outputs
    preprocessing  as it was exported; a mean picture is missing in it
    mean_picture   the file beside that holds the mean picture, float32 (3, size, size), BGR; None where there is none
    order          of the colours that the first layer reads, "rgb" or "bgr"
    mean_sha256    of that file; None in a file of an earlier version
    is_sealed      whether all of the file is under a sha256, as from this version on
    std            R, G, B of torchvision's Normalize, which are in the first convolution's weights; None by other names
    """

    net: str
    options: Mapping[str, Option]
    names: Names
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    mean_picture: str | None
    mean_sha256: str | None
    is_sealed: bool
    order: str
    std: tuple[float, float, float] | None

    def factors(self) -> tuple[float, ...] | None:
        """What the input channels of the first convolution are to be divided by; None for nothing."""
        return None if self.std is None else tuple(255 * std * self.preprocessing.scale for std in self.std)


def own_of(path: Path) -> Own | None:
    """What a file says of itself; None for a file that isn't ours. Raises: DataError naming what is wrong."""
    if path.suffix.lower() != ".safetensors":
        return None
    told = archives.read_metadata(path)
    if "convnet" not in told and len(told.keys() & set(KEYS)) < 4:  # else a bit of that name may have been hit
        return None
    digest = told.get(safetensors.SEAL)
    is_hit = digest is None and any(len(name) == len(safetensors.SEAL) and len(told[name]) == 64 for name in told)
    if is_hit or (digest is not None and not archives.is_as_sealed(path, digest)):
        raise DataError(f"{path} is not as it was exported: its sha256 does not match; export it again")
    try:
        return _own(told)
    except (DataError, UsageError, ValueError) as error:
        raise DataError(f"{path}: its metadata: {' '.join(str(error).split())}") from error


def mean_picture_of(own: Own, path: Path) -> NDArray[np.float32]:
    """The mean picture (size, size, 3) that lies beside `path`. Raises: DataError when it isn't there."""
    assert own.mean_picture is not None
    beside = path.with_name(own.mean_picture)
    if not beside.exists():
        raise DataError(f"{path}: its mean picture {beside.name} isn't beside it; put it there, or give --mean")
    if own.mean_sha256 is not None and atomic.sha256_file(beside) != own.mean_sha256:
        raise DataError(f"{beside} is not as it was exported: its sha256 does not match; export again, or give --mean")
    return mean_of(beside, own.preprocessing.size)


def _own(told: Mapping[str, str]) -> Own:
    for key in KEYS:
        if key not in told:
            raise DataError(f"{key} is missing")
    if told["names"] not in get_args(Names):
        raise DataError(f"names is {told['names'][:50]!r}; it must be {', '.join(get_args(Names))}")
    values = strict_json.parse(told["preprocessing"])
    normalize, mean = values.pop("normalize", None), values.get("mean")
    sha256 = values.pop("mean_sha256", None)
    order = "bgr" if values.get("channels") == "bgr" else "rgb"
    if order == "bgr":  # the first convolution's order, which is turned back
        values["channels"] = "rgb"
    colour = None if mean is None or isinstance(mean, str) else np.asarray(_three("mean", mean, MAX_LEVEL), np.float32)
    done = preprocess.from_dict({**values, "mean": colour is not None}, colour)
    options = strict_json.parse(told["net_options"])
    recipe_of(told["net"], options, done)  # holds the net's name, its options and the scale against their rules
    is_torchvisions = told["names"] == "torchvision"
    return Own(
        net=told["net"],
        options=options,
        names=cast(Names, told["names"]),
        classes=_classes(strict_json.value(told["classes"])),
        preprocessing=done,
        order=order,
        mean_sha256=None if sha256 is None else str(sha256),
        is_sealed=safetensors.SEAL in told,
        mean_picture=_file_name(mean) if isinstance(mean, str) else None,
        std=_three("normalize", _std(normalize), MAX_STD, least=1e-6) if is_torchvisions else None,
    )


def _three(name: str, numbers: Any, most: float, least: float = -MAX_LEVEL) -> tuple[float, float, float]:
    if not isinstance(numbers, list) or len(numbers) != 3:
        raise DataError(f"{name} is no list of three numbers")
    if not all(type(each) in (int, float) and least <= each <= most for each in numbers):
        raise DataError(f"{name} holds what is no number from {least:g} to {most:g}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _std(normalize: Any) -> Any:
    return normalize.get("std") if isinstance(normalize, dict) else None


def _classes(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError("classes is no list of names")
    return tuple(names)


def _file_name(text: str) -> str:
    if not text.endswith(".npy") or not text.isprintable() or Path(text).name != text:
        raise DataError(f"mean is {text[:50]!r}; it must be the name of a .npy file beside this one")
    return text
