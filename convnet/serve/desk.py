"""What does a net say of the pictures that were sent to it? Everything as JSON can hold it; asked by one thread alone.

A picture is known by the sha256 of its bytes, as long as it is among the last ones; then it must be sent again.
"""

import base64
import hashlib
import io
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import Colormap
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from convnet.data.decode import BadPicture, open_picture
from convnet.data.resize import fitted
from convnet.data.store import Pixels
from convnet.device import Device
from convnet.errors import ConvnetError, UsageError, unknown
from convnet.evaluation.seen import Seen, centre_crop
from convnet.evaluation.trained_net import TrainedNet
from convnet.evaluation.views import protocol
from convnet.io.strict_json import Json
from convnet.progress import Progress
from convnet.report.findings import shot
from convnet.report.sheet import pictures_by_name
from convnet.retrieval.activations import shapes_of
from convnet.retrieval.index import Index
from convnet.retrieval.search import search
from convnet.serve.arithmetic import PICTURE, Walk, arithmetic, pixel, walk
from convnet.visualize import plot
from convnet.visualize.cam import cam
from convnet.visualize.deconv import deconv, peaks
from convnet.visualize.labels import class_names, first_names, printable
from convnet.visualize.occlusion import occlusion
from convnet.visualize.receptive_fields import Fields, receptive_fields

TOP = 5  # classes: AlexNet's figure 4
MOST_PIXELS = 50_000_000  # of a picture that is sent: any camera's
LONGEST = 100  # times its shorter side: the resized picture's pixels are bounded too
PICTURES = 64  # that are remembered, 150 kB each for AlexNet
UNITS = 6  # the strongest ones of a stage
PATCH = 96  # pixels of what a unit sees
BOXES, STRIDES = 7, 28  # squares side by side, and their steps, along a picture: 32 and 8 pixels of 224 (occlusion.py)
NEAREST = 6
LEVELS = 256


class Gone(ConvnetError):  # noqa: N818 - the state of the picture
    """A picture, run or job that isn't known, or no more."""


class Desk:
    """A net, perhaps an index of pictures for it, and the pictures that were sent last."""

    def __init__(self, net: TrainedNet, name: str, classes: Sequence[str], index: Index | None = None) -> None:
        """classes: their names for people."""
        self.net, self.name, self.classes, self.index = net, name, classes, index
        self._kept = OrderedDict[str, Seen]()
        self._walked: tuple[str, Walk] | None = None
        self._fields = _fields(net)
        self._by_name = pictures_by_name(net.preprocessing)

    def about(self) -> Json:
        """The net: its name, classes, input, and each stage's shape."""
        net, shapes = self.net.net, shapes_of(self.net, None)
        stages = [{"name": name, "shape": list(shape), "layer": self._layer(name)} for name, shape in shapes.items()]
        return {
            "name": self.name,
            "net": net.name,
            "paper": net.paper,
            "parameters": sum(each.numel() for each in net.parameters()),
            "classes": list(self.classes),
            "side": self.net.preprocessing.crop,
            "columns": net.columns,
            "index": None if self.index is None else self.index.contents.n,
            "stages": stages,
        }

    def predict(self, data: bytes, top: int = TOP) -> Json:
        """The `top` most probable classes of a picture, best first. Raises: BadPicture with the reason why not."""
        name = hashlib.sha256(data).hexdigest()[:20]
        frame, notes, size = self._frame(data)
        (found,) = self.net.predict([frame], top)
        if found.failed is not None:
            raise UsageError(found.failed)
        pairs = zip((self.net.classes.index(each) for each in found.classes), found.probabilities, strict=True)
        best = [{"class": self.classes[label], "label": label, "probability": p} for label, p in pairs]
        self._kept[name] = Seen(name, centre_crop(frame, self.net.preprocessing))
        self._kept.move_to_end(name)
        while len(self._kept) > PICTURES:
            self._kept.popitem(last=False)
        return {"id": name, "width": size[0], "height": size[1], "notes": list(notes), "classes": best}

    def several(self, pictures: Sequence[bytes], top: int = TOP) -> list[Json]:
        """`predict` of each; where one can't be read, the reason."""
        rows: list[Json] = []
        for data in pictures:
            try:
                rows.append({"failed": None, **self.predict(data, top)})
            except ConvnetError as error:
                rows.append({"failed": str(error)})
        return rows

    def picture(self, name: str) -> bytes:
        """What the net sees of a picture, as a PNG."""
        return png(self._seen(name).pixels)

    def look(self, name: str, label: int | None) -> Json:
        """Which places speak for a class (None: the most probable one): a map, by CAM or Grad-CAM."""
        labels = None if label is None else (self._label(label),)
        (shown,) = cam(self.net, self._seen(name), labels=labels, top=1)
        told = {"kind": shown.kind, "stage": shown.layer, "label": shown.label, "class": self.classes[shown.label]}
        return told | {"map": numbers(shown.map)}

    def occlude(self, name: str, label: int | None, progress: Progress) -> Json:
        """What a grey square costs a class (None: the most probable one), place by place."""
        seen, side = self._seen(name), self.net.preprocessing.crop
        box, stride = max(1, side // BOXES), max(1, side // STRIDES)
        chosen = None if label is None else self._label(label)
        shown = occlusion(self.net, seen, label=chosen, box=box, stride=stride, progress=progress)
        told = {"label": shown.label, "class": self.classes[shown.label], "whole": shown.whole_probability, "box": box}
        return told | {"corners": shown.corners.tolist(), "map": numbers(shown.probability)}

    def units(self, name: str, stage: str) -> Json:
        """The strongest units of a stage's strongest maps: where they are, what they see, and their deconvnet."""
        seen = self._seen(name)
        activation = self._activation(name, stage)
        maps = activation[0] if activation.ndim == 4 else activation[0][:, None, None]
        channels = maps.amax((1, 2)).argsort(descending=True, stable=True)[:UNITS].tolist()
        chosen = [peaks(activation, [channel])[0] for channel in channels]
        images = self.net.images([seen]).repeat(len(chosen), 1, 1, 1)
        found, rows = deconv(self.net.net, images, stage, chosen), []
        for unit, value, signal in zip(chosen, found.activations.tolist(), found.pixels, strict=True):
            row, column = unit.row or 0, unit.column or 0
            box = self._box(stage, row, column)
            place = {"place": [unit.map, row, column], "value": value, "field": box}
            rows.append(place | {"sees": source(_cut(seen.pixels, box)), "deconv": source(_cut(_shown(signal), box))})
        return {"stage": stage, "units": rows}

    def neighbours(self, name: str, top: int = NEAREST) -> Json:
        """The nearest pictures of the index."""
        if self.index is None:
            raise UsageError("there is no index; start with convnet serve ... --index INDEX, as convnet index makes it")
        stage = self.index.contents.stage
        features = self._activation(name, stage).float().flatten(1).cpu().numpy()
        places, distances = search(self.index, features, top)
        rows = []
        for i, distance in zip(places[0].tolist(), distances[0].tolist(), strict=True):
            key = self.index.contents.names[i]
            picture = self._by_name(key)
            src = None if isinstance(picture, str) else shot(picture, PATCH)["src"]
            row = {"name": printable(key), "label": printable(self.index.label(i)), "distance": distance}
            rows.append(row | {"src": src, "why": picture if isinstance(picture, str) else None})
        return {"stage": stage, "n": self.index.contents.n, "nearest": rows}

    def stages(self, name: str) -> Json:
        """Of each stage: its shape, its range, how much of it is 0, and the stage that it reads."""
        walked, rows = self._walk(name), []
        for stage, activation in walked.stages.items():
            values = activation.float()
            rows.append({
                "name": stage, "shape": list(activation.shape[1:]), "layer": self._layer(stage),
                "source": walked.sources.get(stage), "low": float(values.min()), "high": float(values.max()),
                "zeros": float((values == 0).float().mean()),
            })  # fmt: skip
        return {"columns": self.net.net.columns, "stages": rows}

    def sheet(self, name: str, stage: str) -> bytes:
        """All maps of a stage as one PNG, `across` of them in a row: ceil(sqrt(C)); features as one map."""
        maps = self._activation(name, stage)[0].float().cpu().numpy()
        maps = maps if maps.ndim == 3 else maps[:, None, None]
        high = float(np.quantile(np.abs(maps), 0.998)) or float(np.abs(maps).max()) or 1.0
        low = -high if maps.min() < 0 else 0.0
        n, height, width = maps.shape
        across = math.ceil(math.sqrt(n))
        sheet = np.full((math.ceil(n / across) * across, height, width), low, np.float32)
        sheet[:n] = maps
        tiled = sheet.reshape(-1, across, height, width).swapaxes(1, 2).reshape(-1, across * width)
        levels = ((tiled - low) / (high - low) * (LEVELS - 1)).clip(0, LEVELS - 1).round().astype(np.uint8)
        return png(levels, plot.signed() if low < 0 else colormaps[plot.AMOUNT])

    def unit(self, name: str, stage: str, place: tuple[int, int, int]) -> Json:
        """How a unit gets its value, what it sees of the picture."""
        if stage == PICTURE:
            return pixel(self.net, self._seen(name), place) | {"field": [*place[1:], 1, 1]}
        told = arithmetic(self._walk(name), stage, place)
        return told | {"field": self._box(stage, *place[1:])}

    # what is kept

    def _frame(self, data: bytes) -> tuple[Pixels, tuple[str, ...], tuple[int, int]]:
        """The picture in some bytes, fitted as in preparation; notes; its size. Raises: BadPicture."""
        how = self.net.preprocessing
        with open_picture(data, MOST_PIXELS) as (pixels, notes):
            height, width, _ = pixels.shape
            if max(width, height) > LONGEST * min(width, height):
                raise BadPicture(f"its {width} x {height} pixels are too elongated: more than {LONGEST} times as long")
            return fitted(pixels, protocol("single", how).looks[0].scale, how.fit), notes, (width, height)

    def _seen(self, name: str) -> Seen:
        if name not in self._kept:
            raise Gone("this picture is not kept any more, or was never sent; send it again")
        return self._kept[name]

    def _walk(self, name: str) -> Walk:
        if self._walked is None or self._walked[0] != name:
            self._walked = None  # its memory first
            with self.net.device.autocast():
                self._walked = name, walk(self.net.net, self.net.images([self._seen(name)]))
        return self._walked[1]

    def _activation(self, name: str, stage: str) -> torch.Tensor:
        walked = self._walk(name)
        if stage not in walked.stages:
            raise UsageError(unknown("stage", stage, walked.stages))
        return walked.stages[stage]

    def _box(self, stage: str, row: int, column: int) -> list[int] | None:
        """What a unit sees of the picture: top, left, height, width; None where that isn't known."""
        return list(self._fields[stage].of(row, column)) if stage in self._fields else None

    def _label(self, label: int) -> int:
        if not 0 <= label < len(self.classes):
            raise UsageError(f"class {label}: the net has the classes 0 to {len(self.classes) - 1}")
        return label

    def _layer(self, stage: str) -> str:
        """What a stage is, as torch says it."""
        module = dict(self.net.net.named_modules()).get(stage)
        if isinstance(module, nn.ModuleList):  # a net's columns
            return f"{len(module)} x {module[0]}"
        return "" if module is None else f"{type(module).__name__}({module.extra_repr()})"


def desk_of(checkpoint: Path, name: str, device: Device, index: Index | None = None, names: Path | None = None) -> Desk:
    """The desk of a checkpoint. names: a file with classes' names for people.

    Raises: UsageError, also when the index is another net's; DataError.
    """
    if index is not None:
        index.check_checkpoint(checkpoint)
    net = TrainedNet.load(checkpoint, device)
    return Desk(net, name, first_names(class_names(net.classes, names)), index)


def _fields(net: TrainedNet) -> dict[str, Fields]:
    """What the units of each stage see; nothing where that isn't known."""
    try:
        return receptive_fields(net.net, net.preprocessing.crop)
    except UsageError:
        return {}


def png(pixels: Pixels, colours: Colormap | None = None) -> bytes:
    """uint8 (H, W, 3), or (H, W) levels with their colours, as a PNG."""
    image, out = Image.fromarray(pixels), io.BytesIO()
    if colours is not None:
        palette = np.round(colours(np.arange(LEVELS) / (LEVELS - 1))[:, :3] * 255).astype(np.uint8)
        image.putpalette(palette.tobytes())
    image.save(out, "png")
    return out.getvalue()


def source(pixels: Pixels) -> str:
    """A picture as a URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def numbers(values: NDArray[np.floating]) -> list[list[float]]:
    """A map as JSON can hold it."""
    return np.round(values.astype(np.float64), 6).tolist()  # type: ignore[no-any-return]


def _cut(pixels: Pixels, box: Sequence[int] | None) -> Pixels:
    """What a unit sees; a large part is made smaller."""
    top, left, height, width = box or (0, 0, *pixels.shape[:2])
    part = pixels[top : top + height, left : left + width] if height and width else pixels
    image = Image.fromarray(np.ascontiguousarray(part))
    image.thumbnail((PATCH, PATCH))
    return np.asarray(image)


def _shown(signal: NDArray[np.float32]) -> Pixels:
    """A signed signal (H, W, C) as a picture: 0 is mid-grey."""
    most = float(np.abs(signal).max()) or 1.0
    grey = np.round(127.5 + 127.5 * signal / most).astype(np.uint8)
    return np.repeat(grey, 3, 2) if grey.shape[2] == 1 else grey
