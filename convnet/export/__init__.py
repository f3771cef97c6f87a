"""Weights out: a checkpoint -> a file that other programs read, by the ending of its name.

.onnx         the net with its preprocessing inside, run in onnxruntime and held against torch before it's there
.safetensors  tensors under our names, torchvision's, timm's or Caffe's; preprocessing and classes in the metadata
.caffemodel   for the nets whose layers Caffe has; NAME.prototxt describes them
.npz          arrays under our names
.html         a page that classifies in the browser: the .onnx for whole pictures and onnxruntime-web inside

Nothing is written over. What doesn't fit in lies beside, under the file's whole name, so that files of one stem don't
meet: a mean picture in FILE.mean.npy, as Caffe's; of the last two the classes' names in FILE.classes.txt, a line each.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

from convnet.checkpoint import Checkpoint, rebuild
from convnet.data.store import Store
from convnet.errors import UsageError, unknown
from convnet.export import caffe, named, onnx, page
from convnet.export.onnx_int8 import Cost
from convnet.export.onnx_pictures import Takes
from convnet.io.strict_json import Json
from convnet.progress import SILENT, Progress

ENDINGS = (".onnx", ".safetensors", ".caffemodel", ".npz", ".html")
COMPLETE = (".onnx", ".html")  # with preprocessing and classes inside
NAMES = ("convnet", "torchvision", "timm", "caffe")


@dataclass(frozen=True)
class Exported:
    """What was written.

    files       the file, a .caffemodel's .prototxt, the classes' names and the mean picture's where it can't hold them
    notes       what its reader must know
    difference  of an .onnx: the largest difference of a probability from torch's; of one in int8 before that
    int8        of an .onnx in int8: what that costs in right answers
    """

    files: tuple[Path, ...]
    notes: list[str] = field(default_factory=list)
    difference: float | None = None
    int8: Cost | None = None

    def to_dict(self) -> Json:
        cost = None if self.int8 is None else self.int8.to_dict()
        files = [str(path) for path in self.files]
        return {"files": files, "notes": self.notes, "difference": self.difference, "int8": cost}


def export(
    checkpoint: Checkpoint,
    path: Path,
    *,
    names: str = "convnet",
    floats: bool = False,
    takes: str = "crop",
    runtime: Path | None = None,
    int8: Store | None = None,
    progress: Progress = SILENT,
) -> Exported:
    """Writes a checkpoint's net to `path`.

    names   of a .safetensors: "convnet", "torchvision", "timm" or "caffe"
    floats  an .onnx takes float32 pictures instead of uint8, in the same grey levels 0 to 255
    takes   what an .onnx takes: "crop", "picture" or "file" (`onnx_pictures.py`)
    runtime  of an .html: the folder with onnxruntime-web's files
    int8    an .onnx in int8: calibrated and tested on this store's pictures (`onnx_int8.py`)

    Raises: UsageError for a file that exists, an unknown ending, a missing package, a net that the kind of file can't
    hold; DataError when weights and net don't fit; DiskError; ConvnetError when an .onnx differs from torch.
    """
    ending = path.suffix.lower()
    _check_arguments(path, ending, names, floats, takes, runtime, int8 is not None)
    files, mean = [path], None
    prototxt, classes = path.with_suffix(".prototxt"), path.with_name(f"{path.name}.classes.txt")
    if ending == ".caffemodel":
        files.append(prototxt)
    if ending in (".caffemodel", ".npz"):
        files.append(classes)
    if ending not in COMPLETE and checkpoint.preprocessing.mean is not None and checkpoint.preprocessing.mean.ndim == 3:
        mean = path.with_name(f"{path.name}.mean.npy")
        files.append(mean)
    net, new = rebuild(checkpoint), [file for file in files if not file.exists()]
    difference, cost, notes, order = None, None, list[str](), net.caffe_channels if ending == ".caffemodel" else "bgr"
    try:
        if mean is not None:
            named.write_mean(checkpoint.preprocessing, mean, order)
        if classes in files:
            named.write_classes(checkpoint.classes, classes)
        if ending == ".onnx":
            difference, cost = onnx.write(net, checkpoint, path, floats, cast(Takes, takes), int8, progress)
        elif ending == ".html":
            difference = page.write(net, checkpoint, path, runtime)
        elif ending == ".caffemodel":  # the file itself is the last: until then the same export may be tried again
            notes = caffe.write(net, checkpoint, path, prototxt)
        elif ending == ".safetensors":
            notes = named.write_safetensors(net, checkpoint, path, names, mean)
        else:
            notes = named.write_npz(checkpoint, path)
    except BaseException:
        for file in new:  # all of them, or none
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise
    if mean is not None:
        notes.append(f"{mean.name} is the mean picture, (3, H, W) and {order.upper()} as Caffe's")
    notes.append(_order(classes.name if classes in files else "its metadata", checkpoint.classes))
    return Exported(tuple(files), notes, difference, cost)


def _order(holder: str, classes: tuple[str, ...]) -> str:
    ends = f"0 is {classes[0]!r}, {len(classes) - 1} is {classes[-1]!r}"
    return f"{holder} names the classes in the order of the outputs: {ends}"


def _check_arguments(
    path: Path, ending: str, names: str, floats: bool, takes: str, runtime: Path | None, int8: bool
) -> None:
    if ending not in ENDINGS:
        raise UsageError(f"{path}: its name must end in {', '.join(ENDINGS)}")
    if names not in NAMES:
        raise UsageError(unknown("names", names, NAMES))
    if runtime is not None and ending != ".html":
        raise UsageError(f"--runtime is for .html; a {ending} runs nothing")
    if names != "convnet" and ending != ".safetensors":
        raise UsageError(f"--names {names} is for .safetensors; a {ending} has one kind of names")
    if takes not in get_args(Takes):
        raise UsageError(unknown("input", takes, get_args(Takes)))
    if takes != "crop" and (floats or ending != ".onnx"):
        raise UsageError(f"--input {takes} is for .onnx, without --float: it takes bytes")
    if floats and ending != ".onnx":
        raise UsageError(f"--float is for .onnx; a {ending} holds weights only")
    if int8 and ending != ".onnx":
        raise UsageError(f"--int8 is for .onnx; a {ending} has float32 weights")
    if path.exists():
        raise UsageError(f"{path} exists; choose another name, or remove it")
