"""How do a net's weights begin? Gaussians as the papers draw them, or uniform by the number of inputs.

A layer is named by the first part of its parameters' names: `conv2` holds `conv2.0.weight` and `conv2.1.weight`. The
draws are a function of the generator alone, in the order of the net's parameters.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from convnet.errors import UsageError, unknown
from convnet.nets.layers import Net

PIXEL_STD = 65.0  # of mean-subtracted photographs on the scale 0..255
NONE: Mapping[str, float] = MappingProxyType({})


def check_init(net: Net, init: str) -> None:
    """Raises: UsageError if the net does not know the init."""
    if init not in net.inits:
        raise UsageError(unknown("init", init, net.inits))


def gaussian(
    net: nn.Module, generator: torch.Generator, std: Mapping[str, float] = NONE, bias: Mapping[str, float] = NONE
) -> None:
    """Weights N(0, std of their layer), 0.01 where none is given; biases as given for their layer, else 0."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            layer = name.partition(".")[0]
            if name.endswith("bias"):
                parameter.fill_(bias.get(layer, 0.0))
            else:
                parameter.normal_(0, std.get(layer, 0.01), generator=generator)


def uniform_by_fan_in(net: Net, generator: torch.Generator) -> None:
    """Uniform of standard deviation sqrt(1 / (3 fan-in)), conv1's divided by the pixels' 65; the last layer N(0, 0.01).

    Biases are 0. For small sets, on which N(0, 0.01) does not start to learn (docs/log.md).
    """
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            layer = name.partition(".")[0]
            if name.endswith("bias"):
                parameter.fill_(0.0)
            elif layer == net.last:
                parameter.normal_(0, 0.01, generator=generator)
            else:
                bound = math.sqrt(1 / parameter[0].numel()) / (PIXEL_STD if layer == "conv1" else 1)
                parameter.uniform_(-bound, bound, generator=generator)
