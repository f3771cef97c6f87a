"""The nets, by name: make one, list them, look inside one."""

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convnet.errors import UsageError, unknown
from convnet.nets.alexnet import AlexNet, AlexNetConv6
from convnet.nets.alexnet_released import AlexNet2012, AlexNetBN, AlexNetCaffe, AlexNetOWT, CaffeNet
from convnet.nets.alexnet_variants import (
    AlexNet1Col,
    AlexNet4Col,
    AlexNetHalf,
    AlexNetHalf2012,
    AlexNetNoConv2,
    AlexNetNoConv3,
    AlexNetNoConv4,
    AlexNetNoConv5,
    AlexNetNoExchange,
    AlexNetNoExchange2012,
    AlexNetNoLRN,
    AlexNetNoLRN2012,
    AlexNetPool2,
    AlexNetPool2_2012,
    AlexNetTanh,
)
from convnet.nets.cifar import Cifar11, Cifar13, Cifar18, Cifar26, CifarReLU, CifarTanh
from convnet.nets.googlenet import GoogLeNetBN, GoogLeNetCaffe, PaperGoogLeNet
from convnet.nets.layers import Net
from convnet.nets.lenet5 import LeNet5
from convnet.nets.nin import NINCifar10, NINImageNet, NINSmall
from convnet.nets.vgg import VGG
from convnet.nets.zfnet import ZFNet

MODELS: dict[str, Callable[..., Net]] = {
    "lenet5": LeNet5,
    "alexnet": AlexNet,
    "alexnet_2012": AlexNet2012,
    "caffenet": CaffeNet,
    "alexnet_caffe": AlexNetCaffe,
    "alexnet_owt": AlexNetOWT,
    "alexnet_bn": AlexNetBN,
    "alexnet_conv6": AlexNetConv6,
    "alexnet_half": AlexNetHalf,
    "alexnet_1col": AlexNet1Col,
    "alexnet_4col": AlexNet4Col,
    "alexnet_no_lrn": AlexNetNoLRN,
    "alexnet_pool2": AlexNetPool2,
    "alexnet_no_exchange": AlexNetNoExchange,
    "alexnet_no_conv2": AlexNetNoConv2,
    "alexnet_no_conv3": AlexNetNoConv3,
    "alexnet_no_conv4": AlexNetNoConv4,
    "alexnet_no_conv5": AlexNetNoConv5,
    "alexnet_tanh": AlexNetTanh,
    "alexnet_half_2012": AlexNetHalf2012,
    "alexnet_no_lrn_2012": AlexNetNoLRN2012,
    "alexnet_pool2_2012": AlexNetPool2_2012,
    "alexnet_no_exchange_2012": AlexNetNoExchange2012,
    "cifar_26": Cifar26,
    "cifar_18": Cifar18,
    "cifar_13": Cifar13,
    "cifar_11": Cifar11,
    "cifar_relu": CifarReLU,
    "cifar_tanh": CifarTanh,
    "zfnet": ZFNet,
    "nin_cifar10": NINCifar10,
    "nin_imagenet": NINImageNet,
    "nin_small": NINSmall,
    "googlenet": PaperGoogLeNet,
    "googlenet_bn": GoogLeNetBN,
    "googlenet_caffe": GoogLeNetCaffe,
    "vgg_a": partial(VGG, "a", False),
    "vgg_a_lrn": partial(VGG, "a_lrn", False),
    "vgg_b": partial(VGG, "b", False),
    "vgg_b_shallow": partial(VGG, "b_shallow", False),
    "vgg_c": partial(VGG, "c", False),
    "vgg_d": partial(VGG, "d", False),
    "vgg_e": partial(VGG, "e", False),
    "vgg_a_bn": partial(VGG, "a", True),
    "vgg_b_bn": partial(VGG, "b", True),
    "vgg_d_bn": partial(VGG, "d", True),
    "vgg_e_bn": partial(VGG, "e", True),
    "vgg11": partial(VGG, "a", False),
    "vgg11_bn": partial(VGG, "a", True),
    "vgg13": partial(VGG, "b", False),
    "vgg13_bn": partial(VGG, "b", True),
    "vgg16": partial(VGG, "d", False),
    "vgg16_bn": partial(VGG, "d", True),
    "vgg19": partial(VGG, "e", False),
    "vgg19_bn": partial(VGG, "e", True),
}

# Nets that are trained by another's recipe; each of the others has a recipe of its own name.
RECIPES: dict[str, tuple[str, ...]] = {
    # the paper's variants, which are to be compared with its net; the layers but one of each are the same
    "alexnet": (
        *("alexnet_conv6", "alexnet_half", "alexnet_1col", "alexnet_4col", "alexnet_no_lrn", "alexnet_pool2"),
        *("alexnet_no_exchange", "alexnet_no_conv2", "alexnet_no_conv3", "alexnet_no_conv4", "alexnet_no_conv5"),
        "alexnet_tanh",
    ),
    # the nets of the settings files beside #145, which they were to be compared with
    "alexnet_2012": ("alexnet_half_2012", "alexnet_no_lrn_2012", "alexnet_pool2_2012", "alexnet_no_exchange_2012"),
    "caffenet": ("alexnet_caffe",),  # Caffe's settings for the two are the same
    "googlenet": ("googlenet_bn",),  # ours: torchvision's weights were not trained there, and no settings are published
    # the paper trains all configurations alike; ours for _bn, where torchvision's rate is ten times as large
    "vgg_a": ("vgg_a_lrn", "vgg_a_bn", "vgg11", "vgg11_bn"),
    "vgg_d": (
        *("vgg_b", "vgg_b_shallow", "vgg_c", "vgg_e", "vgg_b_bn", "vgg_d_bn", "vgg_e_bn"),
        *("vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    ),
}

# Recipes for small sets: (training pictures below which they are chosen, their nets); the nets' own don't start there.
SMALL_SETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "lenet5_small": (10_000, ("lenet5",)),
    "alexnet_small": (
        100_000,
        (
            *("alexnet", "alexnet_2012", "alexnet_conv6", "alexnet_half", "alexnet_1col", "alexnet_4col"),
            *("alexnet_pool2", "alexnet_no_exchange", "alexnet_tanh", "zfnet"),
            *("alexnet_half_2012", "alexnet_pool2_2012", "alexnet_no_exchange_2012"),
        ),
    ),
    "caffenet_small": (
        100_000,
        (
            *("caffenet", "alexnet_caffe", "alexnet_owt", "alexnet_no_lrn"),
            *("alexnet_no_conv2", "alexnet_no_conv3", "alexnet_no_conv4", "alexnet_no_conv5", "alexnet_no_lrn_2012"),
        ),
    ),
    "vgg_small": (100_000, tuple(name for name in MODELS if name.startswith("vgg"))),
}


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    init: str = "paper",
    seed: int | None = None,
    **options: Any,
) -> Net:
    """A net with fresh weights, on the CPU, in training mode.

    num_classes, in_channels: None is the paper's. init: one of the net's `inits`; "paper" is every net's. seed: the
    weights are a function of it; None draws one from torch's global generator. options: the net's own, as
    `output="linear"`.

    Raises: UsageError for a name, an init or an option that isn't known, or that doesn't fit the others.
    """
    if name not in MODELS:
        raise UsageError(unknown("net", name, MODELS))
    check_options(name, options)
    for count, value in {"num_classes": num_classes, "in_channels": in_channels}.items():
        if value is not None:
            if value < 1:
                raise UsageError(f"{count} is {value}; it must be at least 1")
            options[count] = value
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))  # whatever the default device is
    with torch.random.fork_rng(devices=[]):  # torch's own initial values are drawn and thrown away
        net = MODELS[name](**options)
    net.initialize(init, torch.Generator().manual_seed(seed))
    return net


def check_options(name: str, options: Iterable[str]) -> None:
    """Whether a net has these options of its own. Raises: UsageError for one that it lacks."""
    known = [each for each in inspect.signature(MODELS[name]).parameters if each not in ("num_classes", "in_channels")]
    for option in options:
        if option not in known:
            text = unknown("option", option, known) if known else f"unknown option '{option}': it has none"
            raise UsageError(f"{name}: {text}")


def recipe_of(name: str, pictures: int | None = None) -> str:
    """The name of the built-in recipe that a net is trained by, with so many training pictures; None is enough of them.

    Raises: UsageError for an unknown net.

    >>> recipe_of("vgg16"), recipe_of("alexnet_tanh"), recipe_of("alexnet_tanh", 4000)
    ('vgg_d', 'alexnet', 'alexnet_small')
    """
    if name not in MODELS:
        raise UsageError(unknown("net", name, MODELS))
    for small, (limit, nets) in SMALL_SETS.items():
        if name in nets and pictures is not None and pictures < limit:
            return small
    return next((recipe for recipe, nets in RECIPES.items() if name in nets), name)


def list_models(pattern: str = "*") -> list[str]:
    """The names of the nets that match a shell pattern, in alphabetical order.

    >>> list_models("lenet*")
    ['lenet5']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def trace(net: Net, images: Tensor, stages: Iterable[str] | None = None) -> dict[str, Tensor]:
    """{stage: activation} in eval mode and without gradients; the net is left as it was.

    stages: None is each stage of the net, in its order; else these, in this order; no others are held. Where a net has
    columns, "conv2.0" and "conv2.1" are the two columns' maps of conv2, and so for every stage but the last.

    Raises: UsageError for a stage that the net doesn't have.
    """
    asked = None if stages is None else list(stages)
    everything: dict[str, Tensor] = {} if asked is None else Only(asked)
    with torch.no_grad(), evaluating(net):
        net(images, everything)
    return everything if asked is None else {stage: stage_of(net, everything, stage) for stage in asked}


class Only(dict[str, Tensor]):
    """What a net fills with its stages; of those that nobody asked for it keeps the name, not the activation."""

    def __init__(self, asked: Sequence[str]) -> None:
        super().__init__()
        self.asked = {*asked, *(stage.rpartition(".")[0] for stage in asked)}

    def __setitem__(self, stage: str, x: Tensor) -> None:
        super().__setitem__(stage, x if stage in self.asked else x.new_empty(0))


def features(net: Net, images: Tensor, stage: str) -> Tensor:
    """The activation of a stage as features (N, D), in eval mode and without gradients; pictures (N, C, H, W) at once.

    Raises: UsageError for a stage that the net doesn't have.
    """
    return trace(net, images, [stage])[stage].flatten(1)


@contextmanager
def evaluating(net: Net) -> Iterator[None]:
    """Within the block the net is in eval mode; then it is as it was."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def stage_of(net: Net, everything: dict[str, Tensor], stage: str) -> Tensor:
    """The activation of a stage, or of a column of it, among all that a net recorded, as `trace` names them.

    Raises: UsageError for a stage that the net doesn't have.
    """
    if stage in everything:
        return everything[stage]
    whole, _, column = stage.rpartition(".")
    columns = [str(i) for i in range(net.columns)] if net.columns > 1 else []
    if whole in list(everything)[:-1] and column in columns:
        return everything[whole].chunk(net.columns, 1)[int(column)]
    known = list(everything)
    if "." in stage and columns:
        known += [f"{whole}.{column}" for whole in known[:-1] for column in columns]
    raise UsageError(unknown("stage", stage, known))
