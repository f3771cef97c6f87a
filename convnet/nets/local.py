"""What stands in a convolution's place: a layer that shares no weights, and a perceptron slid over the picture."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.nets.layers import record


class LocallyConnected2d(nn.Module):
    """A convolution that shares nothing: each place has its own kernels and its own biases. Stride 1.

    (N, maps_in, side, side) -> (N, maps_out, side', side') with side' = side + 2 padding - size + 1.
    weight: (side', side', maps_out, maps_in, size, size); bias: (maps_out, side', side'). Both begin as torch's
    convolutions do, uniform within 1 / sqrt(fan-in).

    Raises: UsageError when the kernel is larger than the padded picture.
    """

    def __init__(self, maps_in: int, maps_out: int, side: int, size: int, padding: int = 0) -> None:
        super().__init__()
        out = side + 2 * padding - size + 1
        if out < 1:
            raise UsageError(f"a kernel of {size} x {size} doesn't fit {side} x {side} pixels with padding {padding}")
        self.side, self.size, self.padding = side, size, padding
        bound = 1 / math.sqrt(maps_in * size**2)
        self.weight = nn.Parameter(torch.empty(out, out, maps_out, maps_in, size, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(maps_out, out, out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.side, self.side):
            size = f"{x.shape[2]} x {x.shape[3]}"
            raise UsageError(
                f"this locally connected layer has weights for {self.side} x {self.side} pixels, got {size}"
            )
        patches = F.unfold(x, self.size, padding=self.padding)  # (N, maps_in size size, places)
        y = torch.einsum("nip,poi->nop", patches, self.weight.flatten(3).flatten(0, 1))
        return y.view(-1, *self.bias.shape) + self.bias.to(y.dtype)


def mlpconv(x: Tensor, layers: Mapping[str, nn.Module], stages: dict[str, Tensor] | None = None) -> Tensor:
    """Each layer in turn and its ReLU, noted in `stages` under the layer's name. Paper: Network in Network 3.1."""
    for name, layer in layers.items():
        x = record(stages, name, F.relu(layer(x)))
    return x


class MLPConv(nn.ModuleDict):
    """A small perceptron slid over the picture: a convolution, then 1x1 convolutions, each followed by a ReLU.

    (N, maps_in, H, W) -> (N, maps[-1], H', W'). maps: the units of each layer, the convolution's first. The layers are
    `conv`, `cccp1`, `cccp2`: "cascaded cross-channel parametric pooling" is the paper's word for a 1x1 convolution.
    """

    def __init__(self, maps_in: int, maps: Sequence[int], size: int, stride: int = 1, padding: int = 0) -> None:
        layers = {"conv": nn.Conv2d(maps_in, maps[0], size, stride, padding)}
        for i, (before, after) in enumerate(pairwise(maps), 1):
            layers[f"cccp{i}"] = nn.Conv2d(before, after, 1)
        super().__init__(layers)

    def forward(self, x: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        return mlpconv(x, dict(self.items()), stages)
