"""The net as ONNX, from pixels to probabilities, the preprocessing inside.

input   pixels         uint8 (N, crop, crop, 3), RGB; or float32 in the same grey levels
        or a whole picture, or its file: `onnx_pictures.py`; N is 1 then
output  probabilities  float32 (N, K)

N is free. The metadata say how pictures are prepared: fit, shorter side, size, pad, crop, and the names of the classes.
"""

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnet import __version__, hardware
from convnet.checkpoint import Checkpoint
from convnet.data import preprocess
from convnet.data.augment import LUMA, to_input
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.errors import ConvnetError, UsageError
from convnet.evaluation.views import centre
from convnet.export import onnx_int8, onnx_pictures
from convnet.export.onnx_int8 import Cost
from convnet.export.onnx_pictures import Takes
from convnet.export.onnx_session import Feed, Session
from convnet.io import atomic
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress

TOLERANCE = 1e-5  # of the largest logit
BATCHES = (1, 3)  # pictures: the file is tried with both
LEAF_SPEC = r"`isinstance\(treespec, LeafSpec\)` is deprecated"  # what torch 2.13 says of its own code


class FromPixels(nn.Module):
    """RGB pixels (N, crop, crop, 3), uint8 or float32 in grey levels, to logits: `augment.to_input` of the centre crop.

    The mean is that under the centre crop. The order is the same: grey, minus the mean, scale, offset.
    """

    mean: Tensor

    def __init__(self, net: Net, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.net = net
        self.grey = preprocessing.channels == "grey"
        self.scale, self.offset = preprocessing.scale, preprocessing.offset
        self.register_buffer("mean", _mean_under_centre(preprocessing))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if self.grey:  # whole numbers below 2^24, which float32 holds exactly; the mean of three colours is rounded
            red, green, blue = (x[:, c : c + 1] * LUMA[c] for c in range(3))
            x = torch.floor((red + green + blue + 32768) / 65536)
        x = (x - self.mean) * self.scale + self.offset
        logits: Tensor = self.net(x)
        return logits.float()


class Posterior(nn.Module):
    """The probabilities of a net's logits."""

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.logits(pixels)
        return y.softmax(1)


def write(
    net: Net,
    checkpoint: Checkpoint,
    path: Path,
    floats: bool,
    takes: Takes,
    int8: Store | None = None,
    progress: Progress = SILENT,
) -> tuple[float, Cost | None]:
    """Writes the net, which takes crops, whole pictures or files; returns by how much a probability differs in
    onnxruntime from torch at most, and what int8 costs.

    int8: the store whose pictures calibrate and test; the difference is then the net's in fp32, which int8 is made of.

    Raises: UsageError without the packages, or for a store that doesn't fit; ConvnetError, and no file, when torch
    can't say the net in ONNX or the results differ.
    """
    _check_packages(takes)
    done = checkpoint.preprocessing
    pictures = onnx_int8.pictures_of(int8, checkpoint) if int8 is not None else None
    module = FromPixels(net, done).eval()
    data, cost = _program(module, checkpoint, path, floats), None
    expected = partial(_by_torch, module)
    batches = [_pictures(n, done.crop, floats) for n in BATCHES]
    feeds: list[Feed] = [{"pixels": pixels.numpy()} for pixels in batches]
    if pictures is not None:
        difference = _difference(path, expected, batches, Session(data, path).each(feeds))
        data, cost = onnx_int8.quantised(data, checkpoint, pictures, floats, path, progress)
        expected = partial(_by_session, Session(data, path))
    if takes != "crop":
        data, preparation = onnx_pictures.with_pictures(data, done, takes)
        feeds, batches = _prepared(preparation, path, done, takes)
    with atomic.atomic(path) as file:
        file.write(data)
        file.flush()
        found = Session(Path(file.name), path, takes == "file").each(feeds)
        differs = _difference(path, expected, batches, found)
        return (differs if cost is None else difference), cost


def _prepared(preparation: bytes, path: Path, done: Preprocessing, takes: Takes) -> tuple[list[Feed], list[Tensor]]:
    """(random pictures as the file takes them, their crops in onnxruntime). Raises: ConvnetError for other crops than
    ours."""
    trials = onnx_pictures.trials(takes, done)
    feeds: list[Feed] = [{takes: given} for given, _ in trials]
    crops = Session(preparation, path, takes == "file").each(feeds, "pixels")
    for crop, (_, expected) in zip(crops, trials, strict=True):
        if not onnx_pictures.is_near(crop[0], expected):
            needed = "; install onnxruntime-extensions 0.13" if takes == "file" else ""
            raise ConvnetError(f"{path}: not written: a {takes}'s crop in onnxruntime isn't preparation's{needed}")
    return feeds, [torch.from_numpy(crop) for crop in crops]


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What the file says of itself; each value is JSON, but for the version and the net."""
    pictures = preprocess.to_dict(checkpoint.preprocessing)
    prepared = {name: pictures[name] for name in ("shorter_side", "size", "pad", "crop", "channels")}
    prepared["fit"] = checkpoint.preprocessing.fit
    return {
        "convnet": __version__,
        "net": checkpoint.recipe.net,
        "pictures": json.dumps(prepared),
        "classes": json.dumps(list(checkpoint.classes)),
    }


def _check_packages(takes: Takes) -> None:
    install = f'pip install "{hardware.DISTRIBUTION}[onnx]", in a checkout pip install -e ".[onnx]"'
    try:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            importlib.import_module(package)
        if takes == "file":
            install = f'pip install "{hardware.DISTRIBUTION}[onnx-files]", in a checkout pip install -e ".[onnx-files]"'
            importlib.import_module("onnxruntime_extensions")
    except ImportError as error:
        raise UsageError(f"to write ONNX, {error.name} is missing: {install}") from error


def _mean_under_centre(preprocessing: Preprocessing) -> Tensor:
    """float32 (1, C, crop, crop), or (1, C, 1, 1) where it's one colour or none: what is left of a black picture."""
    crop = preprocessing.crop
    black = np.zeros((1, crop, crop, 3), np.uint8)
    left = to_input(black, centre(preprocessing, 1), replace(preprocessing, scale=1.0, offset=0.0), torch.device("cpu"))
    is_picture = preprocessing.mean is not None and preprocessing.mean.ndim == 3
    return -(left if is_picture else left[:, :, :1, :1]).contiguous()


def _pictures(n: int, crop: int, floats: bool) -> Tensor:
    pixels = np.random.default_rng(n).integers(0, 256, (n, crop, crop, 3), np.uint8)
    return torch.from_numpy(pixels).to(torch.float32 if floats else torch.uint8)


def _program(module: FromPixels, checkpoint: Checkpoint, path: Path, floats: bool) -> bytes:
    """The bytes of the file."""
    pixels = _pictures(2, checkpoint.preprocessing.crop, floats)
    try:
        with _quiet():
            program = torch.onnx.export(
                Posterior(module).eval(),
                (pixels,),
                dynamo=True,
                verbose=False,
                input_names=["pixels"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().split("\n")[0]
        raise ConvnetError(f"{path}: torch can't say {checkpoint.recipe.net} in ONNX: {reason}") from error
    assert program is not None
    program.model.metadata_props.update(metadata(checkpoint))
    return bytes(program.model_proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own code, and of a torchvision that isn't needed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", LEAF_SPEC, FutureWarning)
            yield
    finally:
        logger.setLevel(level)


Expected = tuple[NDArray[np.float32], float, str]  # (N, K); by how much others may differ from them; whose they are


def _by_torch(module: FromPixels, pixels: Tensor) -> Expected:
    """Allowed is what logits that differ by `TOLERANCE` of the largest can do to a probability: a half of that, and
    `TOLERANCE` itself where logits are small."""
    with torch.inference_mode():
        logits = module(pixels)
    return logits.softmax(1).numpy(), TOLERANCE * max(1.0, float(logits.abs().max()) / 2), "torch's"


def _by_session(session: Session, pixels: Tensor) -> Expected:
    """Of the same layers in the same arithmetic."""
    return session.run({"pixels": pixels.numpy()}), TOLERANCE, "the net's in int8"


def _difference(
    path: Path,
    expected: Callable[[Tensor], Expected],
    batches: list[Tensor],
    found: list[NDArray[np.float32]],
) -> float:
    """The largest difference of a probability that was found for the crops, a batch at a time, from what is expected.

    Raises: ConvnetError when it's more than is allowed.
    """
    largest = 0.0
    for pixels, probabilities in zip(batches, found, strict=True):
        right, allowed, whose = expected(pixels)
        difference = float(np.abs(probabilities - right).max())
        if not difference <= allowed:
            raise ConvnetError(
                f"{path}: not written: a probability differs by {difference:.3g} in onnxruntime from {whose}, at most "
                f"{allowed:.3g} is allowed ({len(pixels)} random pictures)"
            )
        largest = max(largest, difference)
    return largest
