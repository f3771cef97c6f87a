"""The nets, by name: make one, list them, look inside one."""

import fnmatch
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convnet.errors import UsageError, unknown
from convnet.nets.alexnet import AlexNet
from convnet.nets.layers import Net
from convnet.nets.lenet5 import LeNet5

MODELS: dict[str, Callable[..., Net]] = {
    "lenet5": LeNet5,
    "alexnet": AlexNet,
}


def create_model(
    name: str, *, num_classes: int | None = None, init: str = "paper", seed: int | None = None, **options: Any
) -> Net:
    """A net with fresh weights, on the CPU, in training mode.

    num_classes: None is the paper's. init: one of the net's `inits`; "paper" is every net's. seed: the weights are a
    function of it; None draws one from torch's global generator. options: the net's own, as `output="linear"`.

    Raises: UsageError for a name, an init or an option that isn't known, or that doesn't fit the others.
    """
    if name not in MODELS:
        raise UsageError(unknown("net", name, MODELS))
    known = [option for option in inspect.signature(MODELS[name]).parameters if option != "num_classes"]
    for option in options:
        if option not in known:
            text = unknown("option", option, known) if known else f"unknown option '{option}': it has none"
            raise UsageError(f"{name}: {text}")
    if num_classes is not None:
        if num_classes < 1:
            raise UsageError(f"num_classes is {num_classes}; it must be at least 1")
        options["num_classes"] = num_classes
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[]):  # torch's own initial values are drawn and thrown away
        net = MODELS[name](**options)
    net.initialize(init, torch.Generator().manual_seed(seed))
    return net


def list_models(pattern: str = "*") -> list[str]:
    """The names of the nets that match a shell pattern, in alphabetical order.

    >>> list_models("alex*")
    ['alexnet']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def trace(net: Net, images: Tensor) -> dict[str, Tensor]:
    """{stage: activation} of each stage, in order, in eval mode and without gradients; the net is left as it was."""
    modes = [(module, module.training) for module in net.modules()]
    stages: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            net.eval()(images, stages)
    finally:
        for module, training in modes:
            module.training = training
    return stages
