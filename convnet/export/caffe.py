"""A .caffemodel of V2 layers: name, type, blobs. `weights/caffe.py` has the format.

Caffe takes the weights of a .caffemodel by the layers' names into the net that a .prototxt describes (`prototxt.py`).
Columns become one layer with `group`; the first convolution reads BGR, that of CIFAR's nets RGB, as Caffe's models do.
"""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from convnet.checkpoint import Checkpoint
from convnet.export import prototxt
from convnet.export.named import in_caffes
from convnet.io import atomic
from convnet.nets.layers import Net

NAME, LAYER = 1, 100  # fields of NetParameter
LAYER_NAME, LAYER_TYPE, LAYER_BLOBS = 1, 2, 7  # of LayerParameter
DATA, SHAPE, DIM = 5, 7, 1  # of BlobProto and BlobShape
BYTES = 2  # wire type
WHOLE = {"pad": "padded to a square", "squash": "squashed to a square"}


def write(net: Net, checkpoint: Checkpoint, path: Path, text: Path) -> list[str]:
    """Writes the layers that have weights to `path`, the net's description to `text`; what the reader must know.

    Raises: UsageError for a net that Caffe can't run, or not at its crop.
    """
    name, pixels = checkpoint.recipe.net, _input(net, checkpoint)
    about = [f"{name}, {net.paper}; its weights are in {path.name}. Blobs have the names of convnet's stages.", pixels]
    layers = prototxt.deploy(net, name, checkpoint.preprocessing.crop, about)
    atomic.write_new(text, layers.encode())
    atomic.write_atomic(path, pieces(name, in_caffes(net, checkpoint.weights)))
    return [pixels]


def pieces(net_name: str, blobs: dict[str, Tensor]) -> Iterator[bytes]:
    """The bytes of the file, a layer at a time."""
    yield _message(NAME, net_name.encode())
    layers: dict[str, list[Tensor]] = {}
    for source, tensor in blobs.items():
        layers.setdefault(source.rpartition(".")[0], []).append(tensor)
    for name, own in layers.items():
        kind = b"Convolution" if own[0].ndim == 4 else b"InnerProduct"
        start = _message(LAYER_NAME, name.encode()) + _message(LAYER_TYPE, kind)
        yield _message(LAYER, start + b"".join(_message(LAYER_BLOBS, _blob(tensor)) for tensor in own))


def _input(net: Net, checkpoint: Checkpoint) -> str:
    done, order = checkpoint.preprocessing, net.caffe_channels
    colours = order.upper() if done.channels == "rgb" else "grey"
    text = f"Its input: {colours}, crops of {done.crop} pixels"
    if done.fit != "crop":
        text += f" of whole pictures {WHOLE[done.fit]} of {done.shorter_side}"
    if done.mean is not None:
        levels = ["the mean picture"] if done.mean.ndim == 3 else [f"{level:.6g}" for level in done.mean]
        text += f", less {', '.join(levels[::-1] if order == 'bgr' else levels)}"
    return text + (f", times {done.scale:.6g}, plus {done.offset:.6g}" if (done.scale, done.offset) != (1, 0) else "")


def _blob(tensor: Tensor) -> bytes:
    sides = b"".join(_varint(side) for side in tensor.shape)
    numbers = tensor.detach().contiguous().numpy().astype("<f4", copy=False)
    return _message(SHAPE, _message(DIM, sides)) + _message(DATA, numbers.tobytes())


def _message(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
