"""Weights out: a checkpoint -> a file that other programs read, by the ending of its name.

.onnx         the net with its preprocessing inside, run in onnxruntime and held against torch before it's there
.safetensors  tensors under our names, torchvision's or Caffe's; preprocessing and classes in the metadata
.caffemodel   for the nets whose layers Caffe has; NAME.prototxt describes them
.npz          arrays under our names

Nothing is written over. What doesn't fit in lies beside, under the file's whole name, so that files of one stem don't
meet: a mean picture in FILE.mean.npy, as Caffe's; of the last two the classes' names in FILE.classes.txt, a line each.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnet.checkpoint import Checkpoint, rebuild
from convnet.errors import UsageError, unknown
from convnet.export import caffe, named, onnx

ENDINGS = (".onnx", ".safetensors", ".caffemodel", ".npz")
NAMES = ("convnet", "torchvision", "caffe")


@dataclass(frozen=True)
class Exported:
    """What was written.

    files       the file, a .caffemodel's .prototxt, the classes' names and the mean picture's where it can't hold them
    notes       what its reader must know
    difference  of an .onnx: the largest difference of a probability from torch's
    """

    files: tuple[Path, ...]
    notes: list[str] = field(default_factory=list)
    difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"files": [str(path) for path in self.files], "notes": self.notes, "difference": self.difference}


def export(kept: Checkpoint, path: Path, *, names: str = "convnet", floats: bool = False) -> Exported:
    """Writes a checkpoint's net to `path`.

    names   of a .safetensors: "convnet", "torchvision" or "caffe"
    floats  an .onnx takes float32 pictures instead of uint8, in the same grey levels 0 to 255

    Raises: UsageError for a file that exists, an unknown ending, a missing package, a net that the kind of file can't
    hold; DataError when weights and net don't fit; DiskError; ConvnetError when an .onnx differs from torch.
    """
    ending = path.suffix.lower()
    _check_arguments(path, ending, names, floats)
    has_mean = ending != ".onnx" and named.has_mean_picture(kept.preprocessing)
    mean = path.with_name(f"{path.name}.mean.npy") if has_mean else None
    text = path.with_suffix(".prototxt") if ending == ".caffemodel" else None
    classes = path.with_name(f"{path.name}.classes.txt") if ending in (".caffemodel", ".npz") else None
    written = tuple(each for each in (path, text, classes, mean) if each is not None)
    if path.exists():
        raise UsageError(f"{path} exists; choose another name, or remove it")
    net, new = rebuild(kept), [each for each in written if not each.exists()]
    difference, notes = None, list[str]()
    try:
        if mean is not None:
            order = net.caffe_channels if ending == ".caffemodel" else "bgr"
            named.write_mean(kept.preprocessing, mean, order)
        if classes is not None:
            named.write_classes(kept.classes, classes)
        if ending == ".onnx":
            difference = onnx.write(net, kept, path, floats)
        elif text is not None:  # the file itself is the last: until it's there, the same export may be tried again
            notes = caffe.write(net, kept, path, text)
        elif ending == ".safetensors":
            notes = named.write_safetensors(net, kept, path, names, mean)
        else:
            notes = named.write_npz(kept, path)
        if mean is not None:
            notes.append(f"{mean.name} is the mean picture, (3, H, W) and {order.upper()} as Caffe's")
        notes.append(_classes_in(classes.name if classes is not None else "its metadata", kept))
    except BaseException:
        for each in new:  # all of them, or none
            with suppress(OSError):
                each.unlink(missing_ok=True)
        raise
    return Exported(written, notes, difference)


def _classes_in(place: str, kept: Checkpoint) -> str:
    first, last, n = kept.classes[0], kept.classes[-1], len(kept.classes)
    return f"{place} names the classes in the order of the outputs: 0 is {first!r}, {n - 1} is {last!r}"


def _check_arguments(path: Path, ending: str, names: str, floats: bool) -> None:
    if ending not in ENDINGS:
        raise UsageError(f"{path}: its name must end in {', '.join(ENDINGS)}")
    if names not in NAMES:
        raise UsageError(unknown("names", names, NAMES))
    if names != "convnet" and ending != ".safetensors":
        raise UsageError(f"--names {names} is for .safetensors; a {ending} has one kind of names")
    if floats and ending != ".onnx":
        raise UsageError(f"--float is for .onnx; a {ending} holds weights only")
