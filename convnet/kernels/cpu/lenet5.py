"""LeNet-5 from the pictures to F6 in one pass on the CPU, with its gradients (lenet5.c): the net is bound by calls.

Plain form: `plain_lenet5` of plain.py. Times: docs/log.md, LeNet-5's convolutions.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function

SHAPES = ((6,), (6,), (6,), (16,), (16,), (16,), (120, 16, 5, 5), (120,), (84, 120), (84,))  # of C1's bias and so on,
# but for C3's kernels
CLASSES = 256
SIDE, F6, ALIGNED = 32, 84, 64  # ALIGNED: bytes, as torch places a tensor and vectors want it


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "maps", "by_map", "by_pixel", "connections")),
        ("outputs", ctypes.c_void_p),
        ("inputs", ctypes.c_void_p),
    )


def available(images: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor) -> bool:
    """Whether `forward` takes these: float32 on the CPU in the paper's sizes, a compiler at hand, and nobody who wants
    to see the operations one by one, or the pictures' gradient."""
    n, maps, *sides = images.shape
    if not images.is_cpu or images.requires_grad or not n or sides != [SIDE, SIDE] or not compiled.available():
        return False
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if torch.is_autocast_enabled("cpu"):  # who wants bfloat16
        return False
    if {each.dtype for each in (images, *weights)} != {torch.float32} or not all(each.is_cpu for each in weights):
        return False
    connections = outputs.shape[0]
    if [each.shape for each in weights] != [(6, maps, 5, 5), *SHAPES[:3], (connections, 5, 5), *SHAPES[3:]]:
        return False
    pair = (outputs, inputs)
    if inputs.shape[0] != connections or not all(each.is_contiguous() and each.dtype == torch.int64 for each in pair):
        return False
    return bool(function("lenet5_takes")(ctypes.byref(_shape(images, weights, *pair))))


class Told(NamedTuple):
    """What C is told but for the pictures: sizes; the weights, dense, and their places; and the table, held as long."""

    shape: _Shape
    weights: list[Tensor]
    places: ctypes.Array[ctypes.c_void_p]
    table: tuple[Tensor, Tensor]


def told(images: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor) -> Told:
    dense = [_dense(each) for each in weights]
    return Told(_shape(images, dense, outputs, inputs), dense, _places(dense), (outputs, inputs))


def forward(images: Tensor, known: Told) -> tuple[Tensor, Tensor]:
    """`plain_lenet5`, float32 (N, 84), and what `backward` needs of the stages."""
    n_floats = function("lenet5_floats")
    n_floats.restype = ctypes.c_int64
    images = images.contiguous()
    kept, features = images.new_empty(n_floats(ctypes.byref(known.shape))), images.new_empty(known.shape.n, F6)
    _run("lenet5_forward", known.shape, _place(images), known.places, _place(kept), _place(features))
    return features, kept


def backward(known: Told, kept: Tensor, g: Tensor) -> list[Tensor]:
    """The weights' gradients from that of `forward`'s features."""
    g = g.contiguous()
    if kept.data_ptr() % ALIGNED:  # who keeps tensors elsewhere meanwhile may give back a part of a larger one
        kept = kept.clone()
    gradients = [torch.zeros_like(each) for each in known.weights]
    _run("lenet5_backward", known.shape, known.places, _place(kept), _place(g), _places(gradients))
    return gradients


def loss(features: Tensor, codes: Tensor, labels: Tensor, j: float) -> tuple[Tensor, Tensor, Tensor]:
    """`rbf_loss` of features (N, 84) by codes (K, 84), at most `CLASSES`, and int64 labels (N,): the mean, float32 (),
    how many are wrong, int64 (), and the loss's gradient by the features.

    Raises: IndexError for a label that is none, as torch does."""
    features, codes, labels = features.contiguous(), codes.contiguous(), labels.contiguous()
    mean, wrong, slope = features.new_empty(()), labels.new_empty(()), torch.empty_like(features)
    sizes = ctypes.c_int64(len(labels)), ctypes.c_int64(len(codes)), ctypes.c_float(j)
    if function("lenet5_loss")(*sizes, *map(_place, (features, codes, labels, slope, mean, wrong))):
        raise IndexError(f"labels must be 0 to {len(codes) - 1}, got {int(labels.min())} to {int(labels.max())}")
    return mean, wrong, slope


def _dense(weight: Tensor) -> Tensor:
    """C5's kernels may lie channels-last, as S4's maps then do too."""
    if weight.is_contiguous() or (
        weight.shape == SHAPES[6] and weight.is_contiguous(memory_format=torch.channels_last)
    ):
        return weight
    return weight.contiguous()


def _shape(images: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor) -> _Shape:
    by_map, by_pixel = (25, 1) if weights[8].is_contiguous() else (1, 16)
    return _Shape(*images.shape[:2], by_map, by_pixel, len(outputs), outputs.data_ptr(), inputs.data_ptr())


def _place(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _places(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[each.data_ptr() for each in tensors])


def _run(name: str, shape: _Shape, *places: object) -> None:
    if function(name)(ctypes.byref(shape), *places):
        raise MemoryError("no memory for LeNet-5's stages")
