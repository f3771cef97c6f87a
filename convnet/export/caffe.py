"""How does Caffe get the weights? As a .caffemodel of V2 layers: name, type, blobs. `weights/caffe.py` has the format.

Caffe takes the weights of a .caffemodel by the layers' names into the net that a .prototxt describes. Columns become
one layer with `group`; the first convolution reads BGR.
"""

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from convnet import files
from convnet.checkpoint import Checkpoint
from convnet.errors import UsageError
from convnet.export.named import has_mean_picture, in_caffes
from convnet.nets.layers import Net
from convnet.nets.vgg import VGG

NAME, LAYER = 1, 100  # fields of NetParameter
LAYER_NAME, LAYER_TYPE, LAYER_BLOBS = 1, 2, 7  # of LayerParameter
DATA, SHAPE, DIM = 5, 7, 1  # of BlobProto and BlobShape
BYTES = 2  # wire type
PAPER_LRN = "lrn_param { local_size: 5 k: 2 alpha: 0.0005 beta: 0.75 }"  # Caffe divides alpha by the local size

# What a .prototxt must say. Other nets have layers that Caffe lacks, or others than it in details (pools, padding).
NETS = MappingProxyType(
    {
        "alexnet": f"as bvlc_alexnet's, but {PAPER_LRN}; feed 227 pixels: the crop of 224 less its mean, then 3 zeros "
        "at the right and bottom",
        "alexnet_caffe": "bvlc_alexnet's",
        "alexnet_owt": "one column and no LRN: 64, 192, 384, 256, 256 maps, conv1 with pad 2",
        "caffenet": "bvlc_reference_caffenet's",
        "zfnet": f"conv1 7x7 stride 2 pad 1, conv2 5x5 stride 2; {PAPER_LRN} after pool1 and pool2",
        "googlenet": f"bvlc_googlenet's, but {PAPER_LRN}",
        "nin_imagenet": "the authors'",
        "nin_cifar10": "the authors'",
        "vgg_a": "as VGG's",
        "vgg_a_lrn": f"as VGG's; {PAPER_LRN} after conv1_1's ReLU",
        "vgg_b": "as VGG's",
        "vgg_b_shallow": "as VGG's, 5x5 with pad 2",
        "vgg_c": "as VGG's",
        "vgg_d": "VGG_ILSVRC_16_layers'",
        "vgg_e": "VGG_ILSVRC_19_layers'",
    }
)


def write(net: Net, kept: Checkpoint, path: Path) -> list[str]:
    """Writes the layers that have weights; what the reader must know.

    Raises: UsageError for a net that Caffe can't run.
    """
    name = net.name if isinstance(net, VGG) else kept.recipe.net  # vgg16 is vgg_d
    if name not in NETS:
        raise UsageError(f"Caffe can't run {kept.recipe.net}; it has layers for {', '.join(NETS)}")
    files.write_atomic(path, pieces(kept.recipe.net, in_caffes(net, kept.weights)))
    return [f"a .prototxt is not written; the one to use: {NETS[name]}", _pictures(kept)]


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


def _pictures(kept: Checkpoint) -> str:
    done = kept.preprocessing
    colours = "BGR" if done.channels == "rgb" else "grey"
    text = f"its input: {colours}, crops of {done.crop} pixels"
    if has_mean_picture(done):
        text += ", less the mean picture"
    elif done.mean is not None:
        text += f", less {', '.join(f'{level:.6g}' for level in done.mean[::-1])}"
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
