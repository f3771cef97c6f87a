"""Whole pictures into an ONNX file: what preparation does to them, as operators before the net's input `pixels`.

picture  uint8 (H, W, 3), RGB, of any size. Standard operators: Resize is bicubic with antialiasing as Pillow's, a pixel
         in some thousands a grey level off
file     uint8 (bytes,), a JPEG or PNG, decoded by DecodeImage of onnxruntime-extensions 0.13, the last that decodes
         by OpenCV: later ones get grey JPEGs wrong, turn no picture by its EXIF, and end the process at other files
"""

import importlib
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnet.data.preprocess import Preprocessing
from convnet.data.resize import FILL, fitted
from convnet.data.store import Pixels
from convnet.evaluation.seen import centre_crop
from convnet.evaluation.views import centre

Takes = Literal["crop", "picture", "file"]
EXTENSIONS = "com.microsoft.extensions"  # the domain of DecodeImage
OFF = 4  # grey levels by which a resized value may differ from Pillow's; another resizing of noise differs by tens
RED_FIRST = (2, 1, 0)  # DecodeImage gives BGR


class _Nodes:
    """Operators one after the other, and the constants that they read."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str | list[int] | NDArray[Any], output: str = "", **attributes: Any) -> str:
        """The name of the operator's output. inputs: names, or constants; a list is int64."""
        from onnx import helper

        output = output or f"prepared_{len(self.nodes)}"
        names = [each if isinstance(each, str) else self._constant(np.asarray(each)) for each in inputs]
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def _constant(self, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name


def with_pictures(data: bytes, done: Preprocessing, takes: Takes) -> tuple[bytes, bytes]:
    """(an ONNX file that takes whole pictures, one that ends at the crop): made of one that takes crops, `pixels`."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(data)
    shape: list[str | int | None] = ["bytes"] if takes == "file" else ["height", "width", 3]
    taken = helper.make_tensor_value_info(takes, TensorProto.UINT8, shape)
    steps = _Nodes()
    _prepare(steps, _decode(steps, takes) if takes == "file" else takes, done)
    domains = [*model.opset_import, *([helper.make_opsetid(EXTENSIONS, 1)] if takes == "file" else [])]
    (pixels,) = model.graph.input
    first = helper.make_graph(steps.nodes, "pictures", [taken], [pixels], steps.constants)
    alone = helper.make_model(first, opset_imports=domains, ir_version=model.ir_version)
    nodes = [*steps.nodes, *model.graph.node]
    del model.graph.input[:], model.graph.node[:], model.opset_import[:]
    model.graph.input.append(taken)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(steps.constants)
    model.opset_import.extend(domains)
    return model.SerializeToString(), alone.SerializeToString()


def _decode(steps: _Nodes, file: str) -> str:
    decoded = steps.add("DecodeImage", file, domain=EXTENSIONS)
    coloured = steps.add("Expand", decoded, [1, 1, 3])  # a grey JPEG has one channel
    return steps.add("Gather", coloured, list(RED_FIRST), axis=2)


def _prepare(steps: _Nodes, picture: str, done: Preprocessing) -> None:
    """From a picture (H, W, 3) to `pixels` (1, crop, crop, 3): as `resize.fitted` and `seen.centre_crop` do it."""
    side = done.shorter_side or done.size
    sides = steps.add("Slice", steps.add("Shape", picture), [0], [2])
    sizes: str | list[int] = [side, side] if done.fit == "squash" else _scaled(steps, sides, side, done.fit == "crop")
    maps = steps.add("Unsqueeze", steps.add("Transpose", picture, perm=[2, 0, 1]), [0])
    x = steps.add(
        "Resize", maps, "", "", steps.add("Concat", [1, 3], sizes, axis=0), mode="cubic", cubic_coeff_a=-0.5,
        antialias=1, exclude_outside=1, coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    if done.fit == "pad":
        free = steps.add("Sub", [side, side], sizes)
        before = steps.add("Div", free, [2, 2])
        pads = steps.add("Concat", [0, 0], before, [0, 0], steps.add("Sub", free, before), axis=0)
        x, sizes = steps.add("Pad", x, pads, np.array(FILL[0], np.uint8)), [side, side]
    first = steps.add("Div", steps.add("Sub", sizes, [done.size] * 2), [2, 2])
    x = steps.add("Slice", x, first, steps.add("Add", first, [done.size] * 2), [2, 3])
    if done.pad:
        x = steps.add("Pad", x, [0, 0, done.pad, done.pad] * 2, np.array(0, np.uint8))
    top = int(centre(done, 1).tops[0]) + done.pad
    x = steps.add("Slice", x, [top, top], [top + done.crop] * 2, [2, 3])
    steps.add("Transpose", x, perm=[0, 2, 3, 1], output="pixels")


def _scaled(steps: _Nodes, sides: str, side: int, is_shorter: bool) -> str:
    """The picture's sides when its shorter, or its longer one, becomes `side`; rounded as Python does, at least 1."""
    from onnx import TensorProto

    now = steps.add("ReduceMin" if is_shorter else "ReduceMax", sides, keepdims=1)
    wide = [steps.add("Cast", each, to=TensorProto.DOUBLE) for each in (steps.add("Mul", sides, [side, side]), now)]
    rounded = steps.add("Cast", steps.add("Round", steps.add("Div", *wide)), to=TensorProto.INT64)
    return steps.add("Max", rounded, [1, 1])


def trials(takes: Takes, done: Preprocessing) -> list[tuple[Pixels, Pixels]]:
    """(what is given, its crop by our own preparation) of random pictures, smaller and larger than S; of files also a
    grey JPEG."""
    generator, side = np.random.default_rng(0), done.shorter_side or done.size
    given = []
    for height, width in ((side * 2 // 3 + 1, side), (side * 5 // 3, side * 3 // 2)):
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        given.append((np.asarray(picture), _file(picture, "PNG"), picture))
    if takes == "file":  # onnxruntime-extensions 0.14 and 0.15 don't get it right
        grey = _file(picture.convert("L"), "JPEG")
        given.append((np.empty(0, np.uint8), grey, Image.open(BytesIO(grey.tobytes())).convert("RGB")))
    return [
        (file if takes == "file" else pixels, centre_crop(fitted(np.asarray(picture), side, done.fit), done))
        for pixels, file, picture in given
    ]


def _file(picture: Image.Image, kind: str) -> Pixels:
    file = BytesIO()
    picture.save(file, kind)
    return np.frombuffer(file.getvalue(), np.uint8)


def is_near(crop: Pixels, expected: Pixels) -> bool:
    """Whether a crop is that of our own preparation, but for a grey level here and there."""
    return bool(np.abs(crop.astype(np.int64) - expected).max() <= OFF)


def library_path() -> str:
    """Where onnxruntime-extensions has its operators."""
    return str(importlib.import_module("onnxruntime_extensions").get_library_path())
