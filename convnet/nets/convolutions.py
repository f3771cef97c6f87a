"""Convolutions with forms of their own, and columns that don't see each other, of maps and of units: what the paper's
two GPUs hold."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.kernels import conv1, winograd
from convnet.kernels.conv1 import in_bf16
from convnet.kernels.ops import layer_by_layer
from convnet.nets.layers import by_winograd, connected, hooked


class Conv2d(nn.Conv2d):
    """torch's convolution, which is called as a layer among others, and computes `by_winograd`."""

    def forward(self, x: Tensor) -> Tensor:
        y = by_winograd(self, x)
        return super().forward(x) if y is None else y


class StridedConv2d(nn.Conv2d):
    """A convolution with a large stride over few maps: a net's first layer. It reads `edge` zeros past the right and
    bottom edges besides its padding. Training in bfloat16 it works block by block (kernels/conv1.py)."""

    def __init__(self, maps_in: int, maps_out: int, size: int, stride: int, padding: int = 0, edge: int = 0) -> None:
        super().__init__(maps_in, maps_out, size, stride, padding)
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        if not conv1.available(x):
            return super().forward(F.pad(x, (0, self.edge, 0, self.edge)) if self.edge else x)
        before = self.padding[0]
        assert isinstance(before, int)  # "same" and "valid" are for others
        x = F.pad(x, (before,) * 4) if before else x
        return conv1.conv1(x, self.weight, self.bias, self.stride[0], self.edge)


class Columns(nn.ModuleList):
    """One dense convolution for each column, which reads its own column's maps only: (N, C, H, W) -> (N, C', H', W').

    The maps of column 0 come first, then those of column 1. It's the function of a grouped convolution, as convolutions
    that every device runs fast. Paper: AlexNet 3.2.

    Raises: UsageError when the maps can't be split into n equal parts.
    """

    def __init__(self, n: int, maps_in: int, maps_out: int, size: int, padding: int = 0) -> None:
        if n < 1 or maps_in % n or maps_out % n:
            raise UsageError(f"{maps_in} maps in and {maps_out} out can't be split into {n} equal columns")
        super().__init__(nn.Conv2d(maps_in // n, maps_out // n, size, padding=padding) for _ in range(n))
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        if self._as_one(x):
            weight, bias = (torch.cat([getattr(conv, name) for conv in self]) for name in ("weight", "bias"))
            return F.conv2d(x, weight, bias, padding=self.padding, groups=len(self))
        parts = x.chunk(len(self), 1)
        return exchange([connected(conv, parts[i]) for i, conv in enumerate(self)])

    def _as_one(self, x: Tensor) -> bool:
        """Whether one grouped convolution is faster: on the CPU in bfloat16, where it saves the maps' copies. Not where
        someone looks at the columns one by one."""
        if layer_by_layer(x) or any(map(hooked, self)):
            return False
        if x.device.type != "cpu" or not in_bf16(x):
            return False
        first = self[0]
        assert isinstance(first, nn.Conv2d)
        return not winograd.serves(x[:, : first.in_channels], first.weight, self.padding)


class ConnectedColumns(nn.ModuleList):
    """One fully connected layer for each column, which reads its own column only: (N, D) or maps (N, C, H, W)
    -> (N, D').

    The units of column 0 come first, then those of column 1.

    Raises: UsageError when inputs or outputs can't be split into n equal parts.
    """

    def __init__(self, n: int, inputs: int, outputs: int) -> None:
        if n < 1 or inputs % n or outputs % n:
            raise UsageError(f"{inputs} inputs and {outputs} units can't be split into {n} equal columns")
        super().__init__(nn.Linear(inputs // n, outputs // n) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self), 1)
        return exchange([connected(layer, parts[i]) for i, layer in enumerate(self)])


def convolution(n: int, maps_in: int, maps_out: int, size: int, padding: int = 0) -> nn.Module:
    """A convolution of one column, which reads all maps, or of n (`Columns`)."""
    if n == 1:
        return nn.Conv2d(maps_in, maps_out, size, padding=padding)
    return Columns(n, maps_in, maps_out, size, padding)


def exchange(columns: list[Tensor]) -> Tensor:
    """The maps or units of all columns side by side: what the paper's GPUs send each other."""
    return torch.cat(columns, 1)
