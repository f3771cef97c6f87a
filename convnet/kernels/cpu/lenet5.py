"""LeNet-5 from the pictures to F6 in one pass on the CPU, with its gradients (lenet5.c): the net is bound by calls.

Plain form: `plain_lenet5` of plain.py. Times: docs/log.md, LeNet-5's convolutions.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function

SHAPES = ((6,), (6,), (6,), (16,), (16,), (16,), (120, 16, 5, 5), (120,), (84, 120), (84,))  # of C1's bias and so on,
# but for C3's kernels
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
    if images.device.type != "cpu" or images.requires_grad or not len(images) or not compiled.available():
        return False
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if torch.is_autocast_enabled("cpu"):  # who wants bfloat16
        return False
    if images.shape[2:] != (SIDE, SIDE) or any(each.dtype != torch.float32 or not each.is_cpu for each in weights):
        return False
    c1, *biases, c3 = *weights[:4], weights[4]
    known = c1.shape == (6, images.shape[1], 5, 5) and (*(each.shape for each in (*biases, *weights[5:])),) == SHAPES
    if not known or c3.shape != (len(outputs), 5, 5) or images.dtype != torch.float32:
        return False
    pair = (outputs, inputs)
    if len(inputs) != len(outputs) or not all(each.is_contiguous() and each.dtype == torch.int64 for each in pair):
        return False
    return bool(function("lenet5_takes")(ctypes.byref(_shape(images, weights, *pair))))


def forward(images: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """`plain_lenet5`, float32 (N, 84), and what `backward` needs of the stages."""
    images, weights = images.contiguous(), [_dense(each) for each in weights]
    shape = _shape(images, weights, outputs, inputs)
    n_floats = function("lenet5_floats")
    n_floats.restype = ctypes.c_int64
    kept, features = images.new_empty(n_floats(ctypes.byref(shape))), images.new_empty(len(images), F6)
    _run("lenet5_forward", shape, _place(images), _places(weights), _place(kept), _place(features))
    return features, kept


def backward(
    images: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor, kept: Tensor, g: Tensor
) -> list[Tensor]:
    """The weights' gradients from that of `forward`'s features."""
    g, weights = g.contiguous(), [_dense(each) for each in weights]
    if kept.data_ptr() % ALIGNED:  # who keeps tensors elsewhere meanwhile may give back a part of a larger one
        kept = kept.clone()
    gradients = [torch.zeros_like(each) for each in weights]
    shape = _shape(images, weights, outputs, inputs)
    _run("lenet5_backward", shape, _places(weights), _place(kept), _place(g), _places(gradients))
    return gradients


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
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))


def _run(name: str, shape: _Shape, *places: object) -> None:
    if function(name)(ctypes.byref(shape), *places):
        raise MemoryError("no memory for LeNet-5's stages")
