"""Initial weights: Gaussians as the papers sample them, or uniform by the number of inputs.

A layer is named by the first part of its parameters' names: `conv2` holds `conv2.0.weight` and `conv2.1.weight`. The
values are a function of the generator alone, in the order of the net's parameters. `Net.initialize` calls these.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import nn

from convnet.errors import UsageError

PIXEL_STD = 65.0  # of mean-subtracted photographs on the scale 0..255
NONE: Mapping[str, float] = MappingProxyType({})
M = TypeVar("M", bound=nn.Module)


def generator_of(seed: int | None) -> torch.Generator:
    """One whose numbers are a function of the seed; None draws a seed from torch's global generator."""
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))  # whatever the default device is
    return torch.Generator().manual_seed(seed)


def renew_layers(net: M, paths: Sequence[str], n_units: int, initialize: Callable[[M], None]) -> None:
    """Gives the layers at `paths` n_units units, with weights as `initialize` samples them for the whole net.

    Raises: UsageError for a layer whose units can't be another number, and for none.
    """
    if n_units < 1:
        raise UsageError(f"num_classes is {n_units}; it must be at least 1")
    fresh = deepcopy(net).cpu()
    for path in paths:
        layer = fresh.get_submodule(path)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise UsageError(f"the layer {path} is made for its own classes, it can't have {n_units}")
        for name, parameter in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(torch.empty(n_units, *parameter.shape[1:])))
    initialize(fresh)
    for path in paths:
        layer = net.get_submodule(path)
        setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", n_units)
        for name, old in list(layer.named_parameters(recurse=False)):
            new = fresh.get_parameter(f"{path}.{name}").detach().to(old)
            setattr(layer, name, nn.Parameter(new, requires_grad=old.requires_grad))


@contextmanager
def contiguous(net: nn.Module) -> Iterator[None]:
    """All weights lie contiguously meanwhile: torch fills memory in its own order, and other weights would come out."""
    others = [(weight, weight.data) for weight in net.parameters() if not weight.is_contiguous()]
    for weight, values in others:
        weight.data = values.contiguous()
    try:
        yield
    finally:
        for weight, values in others:
            weight.data = values.copy_(weight.data)


def gaussian(
    net: nn.Module, generator: torch.Generator, std: Mapping[str, float] = NONE, bias: Mapping[str, float] = NONE
) -> None:
    """Weights N(0, std of their layer), 0.01 where none is given; biases as given for their layer, else 0."""
    for name, parameter in net.named_parameters():
        layer = name.partition(".")[0]
        if name.endswith("bias"):
            parameter.fill_(bias.get(layer, 0.0))
        else:
            parameter.normal_(0, std.get(layer, 0.01), generator=generator)


def he_std(net: nn.Module) -> dict[str, float]:
    """{layer: sqrt(2 / fan-in)}, which keeps the signal's scale through ReLUs. He et al. 2015, eq. 10."""
    weights = {name.partition(".")[0]: weight for name, weight in net.named_parameters() if weight.ndim > 1}
    return {layer: math.sqrt(2 / weight[0].numel()) for layer, weight in weights.items()}


def uniform_by_fan_in(net: nn.Module, last: str, generator: torch.Generator) -> None:
    """Uniform of standard deviation sqrt(1 / (3 fan-in)), conv1's divided by the pixels' 65; the layer `last` N(0,
    0.01).

    Biases are 0. For small sets, on which N(0, 0.01) does not start to learn (docs/log.md).
    """
    for name, parameter in net.named_parameters():
        layer = name.partition(".")[0]
        if name.endswith("bias"):
            parameter.fill_(0.0)
        elif layer == last:
            parameter.normal_(0, 0.01, generator=generator)
        else:
            bound = math.sqrt(1 / parameter[0].numel()) / (PIXEL_STD if layer == "conv1" else 1)
            parameter.uniform_(-bound, bound, generator=generator)
