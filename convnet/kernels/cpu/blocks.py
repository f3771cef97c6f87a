"""Pictures as blocks of pixels on the CPU, in C (blocks.c). The plain form is `plain_to_blocks` of conv1.py."""

import ctypes

from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function
from convnet.kernels.cpu.parts import in_parts


def available(images: Tensor) -> bool:
    """Whether `blocks` takes these: (N, C, H, W), channels-last in memory, on the CPU."""
    fits = images.device.type == "cpu" and images.ndim == 4 and images.movedim(1, -1).is_contiguous()
    return fits and compiled.available()


def blocks(images: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    """`plain_to_blocks` of what `available` says yes to."""
    write_blocks = function("blocks")
    n, maps, height, width = images.shape
    out = images.new_empty(n, rows, columns, stride**2 * maps)
    sizes = (height, width, rows, columns, stride, maps * images.element_size())
    source, target = images.data_ptr(), out.data_ptr()
    of_picture, of_blocks = (each[:1].numel() * images.element_size() for each in (images, out))

    def part(first: int, last: int) -> None:
        at = (ctypes.c_void_p(source + first * of_picture), ctypes.c_void_p(target + first * of_blocks))
        write_blocks(*at, *map(ctypes.c_int64, (last - first, *sizes)))

    in_parts(n, part)
    return out.permute(0, 3, 1, 2)
