"""Small forms of the nets for tests: without weights, or with a part of the maps and units."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from convnet.nets import MODELS, create_model
from convnet.nets.layers import Net

SMALL = 3_000_000  # parameters: a net that has no more stays as it is
THIN = 8
THINNER = 32  # for nets of more than LARGE parameters
LARGE = 100_000_000
AT_NIGHT = (  # of each file's nets those that are put together as another one
    *("alexnet_caffe", "alexnet_half", "alexnet_no_conv3", "alexnet_no_conv4", "alexnet_no_conv5"),
    *("alexnet_half_2012", "alexnet_no_lrn_2012", "alexnet_pool2_2012", "alexnet_no_exchange_2012"),
    *("vgg_b", "vgg_b_shallow", "vgg_c", "vgg_d", "vgg_a_bn", "vgg_b_bn", "vgg_d_bn"),
)


def of_each_kind(names: Sequence[str]) -> list[Any]:
    """The nets for a test's parameters: those that are put together as another one are tried at night."""
    return [pytest.param(name, marks=pytest.mark.large) if name in AT_NIGHT else name for name in names]


@cache
def shapes_of(name: str) -> Net:
    """The net without its weights: shapes and counts only."""
    with torch.device("meta"):
        return MODELS[name]()


@cache
def thin_net(name: str) -> Net:
    """`new_thin_net`, made once: a test that changes it takes a copy."""
    return new_thin_net(name)


def new_thin_net(name: str, **options: Any) -> Net:
    """The net with a part of its maps and units, four classes and initial values with which it starts to learn."""
    total = sum(parameter.numel() for parameter in shapes_of(name).parameters())
    if total <= SMALL:
        return create_model(name, seed=0, **options)
    inits = shapes_of(name).inits
    init = next(init for init in ("fan-in", "glorot", "paper") if init in inits)
    with thinned(THIN if total <= LARGE else THINNER):
        return create_model(name, num_classes=4, init=init, seed=0, **options)


@contextmanager
def thinned(part: int) -> Iterator[None]:
    """Nets that are made within have one map or unit for each `part` of them, where their number can be divided."""
    with ExitStack() as stack:
        for cls, n_counts in ((nn.Conv2d, 2), (nn.Linear, 2), (nn.BatchNorm2d, 1), (nn.BatchNorm1d, 1)):
            stack.enter_context(mock.patch.object(cls, "__init__", _thin(cls, n_counts, part)))
        yield


def _thin(cls, n_counts, part):
    whole = cls.__init__

    def start(self, *counts, **others):
        fewer = [n if n % part else n // part for n in counts[:n_counts]]
        whole(self, *fewer, *counts[n_counts:], **others)

    return start


def images_for(net: Net, n: int = 2) -> Tensor:
    """Noise with the standard deviation of photographs, or 1 for grey ones."""
    shape = (n, net.in_channels, net.input_size, net.input_size)
    scale = 65 if net.in_channels == 3 else 1
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def empty_for(net: Net) -> Tensor:
    return torch.empty(1, net.in_channels, net.input_size, net.input_size, device="meta")
