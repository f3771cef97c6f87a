"""What do others call the layers of our nets? For each net and each writer: source's name -> our names.

writer       AlexNet           VGG                     GoogLeNet
caffe        conv1 ... fc8     conv1_1 ... fc8         conv1/7x7_s2, inception_3a/3x3_reduce, loss3/classifier
             (ip1, ip2 too)
torchvision  features.0 ...    features.0 ...          conv1, inception3a.branch2.0, aux1, fc
timm                           features.0 ...,
                               pre_logits.fc1, head.fc
convnet      our own names: conv1 ... fc8, conv2.0 and conv2.1 for two columns

One source may fill several of ours: a grouped convolution's outputs are split into columns.
"""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Literal

from torch import nn

from convnet.nets.cifar import CifarNet
from convnet.nets.columns import Columns
from convnet.nets.googlenet import GoogLeNet
from convnet.nets.layers import Net
from convnet.nets.nin import NINCifar10, NINImageNet
from convnet.nets.vgg import VGG

Naming = dict[str, tuple[str, ...]]  # source's name -> our names, in the order of the columns

ALEXNET = MappingProxyType(
    {
        "conv1": "features.0",
        "conv2": "features.3",
        "conv3": "features.6",
        "conv4": "features.8",
        "conv5": "features.10",
        "fc6": "classifier.1",
        "fc7": "classifier.4",
        "fc8": "classifier.6",
    }
)
VGG_FC = MappingProxyType(
    {
        "torchvision": {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"},
        "timm": {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2", "fc8": "head.fc"},
    }
)
VGG_OF_TORCHVISION = ("vgg_a", "vgg_b", "vgg_d", "vgg_e")  # and their forms with batch norm
MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
VIEWS = MappingProxyType(
    {
        "caffe": {
            "conv1x1": "1x1",
            "reduce3x3": "3x3_reduce",
            "conv3x3": "3x3",
            "reduce5x5": "5x5_reduce",
            "conv5x5": "5x5",
            "pool_proj": "pool_proj",
        },
        "torchvision": {
            "conv1x1": "branch1",
            "reduce3x3": "branch2.0",
            "conv3x3": "branch2.1",
            "reduce5x5": "branch3.0",
            "conv5x5": "branch3.1",
            "pool_proj": "branch4.1",
        },
    }
)
GOOGLENET = MappingProxyType(
    {
        "caffe": {
            "conv1": "conv1/7x7_s2",
            "conv2_reduce": "conv2/3x3_reduce",
            "conv2": "conv2/3x3",
            "fc": "loss3/classifier",
            **{f"head{i}.conv": f"loss{i}/conv" for i in (1, 2)},
            **{f"head{i}.fc1": f"loss{i}/fc" for i in (1, 2)},
            **{f"head{i}.fc2": f"loss{i}/classifier" for i in (1, 2)},
            **{
                f"inception_{m}.{our}": f"inception_{m}/{view}" for m in MODULES for our, view in VIEWS["caffe"].items()
            },
        },
        "torchvision": {
            "conv1": "conv1",
            "conv2_reduce": "conv2",
            "conv2": "conv3",
            "fc": "fc",
            "head1": "aux1",
            "head2": "aux2",
            **{
                f"inception_{m}.{our}": f"inception{m}.{view}"
                for m in MODULES
                for our, view in VIEWS["torchvision"].items()
            },
        },
    }
)
NIN = MappingProxyType({layer: f"{layer}-1024" for layer in ("conv4", "cccp7", "cccp8")})  # of nin_imagenet, at Caffe
INNER_PRODUCT = re.compile(r"ip\d{1,3}\.")  # what Caffe's examples call fully connected layers
HEADS = ("loss1/", "loss2/", "aux1.", "aux2.", "head1.", "head2.")  # of GoogLeNet, in any writer's names


def caffe(net: Net, there: Collection[str] = ()) -> Naming:
    """Caffe's names: its layers', then `.weight` or `.bias`.

    there: a file's names; where it has as many layers ip1, ip2 ... as the net has fully connected ones, these are they.
    """
    if isinstance(net, GoogLeNet):
        return _renamed(net, GOOGLENET["caffe"])
    connected = [name for name, module in net.named_children() if isinstance(module, nn.Linear)]
    ips = sorted({name.partition(".")[0] for name in there if INNER_PRODUCT.match(name)}, key=lambda ip: int(ip[2:]))
    if ips and len(ips) == len(connected):
        return _renamed(net, dict(zip(connected, ips, strict=True)))
    return _renamed(net, NIN if isinstance(net, NINImageNet) else {})


def caffes_channels(net: Net) -> Literal["rgb", "bgr"]:
    """The order of colours that Caffe's models of a net read: OpenCV's, but for CIFAR's nets, whose data are RGB."""
    return "rgb" if isinstance(net, CifarNet | NINCifar10) else "bgr"


def layer_of(targets: tuple[str, ...]) -> str:
    """Our name of the layer that these parameters belong to; of several columns, that of the whole."""
    layer = targets[0].rpartition(".")[0]
    return layer.rpartition(".")[0] if len(targets) > 1 else layer


def in_state_dicts(net: Net) -> dict[str, Naming]:
    """{writer: its names} for everyone who writes state dicts of this net; "convnet" is our own."""
    namings: dict[str, Naming] = {"convnet": {name: (name,) for name in net.state_dict()}}
    if isinstance(net, GoogLeNet):
        if net.bn:
            namings["torchvision"] = _renamed(net, GOOGLENET["torchvision"])
    elif isinstance(net, VGG):
        if net.name.removesuffix("_bn") in VGG_OF_TORCHVISION:
            for writer, fc in VGG_FC.items():
                namings[writer] = _renamed(net, {**_features(net), **fc})
    elif {key.rpartition(".")[0] for key in net.state_dict()} == set(ALEXNET):
        namings["torchvision"] = _renamed(net, ALEXNET)
    return namings


def _features(net: VGG) -> dict[str, str]:
    """Where the convolutions stand in `features`: convolution, (batch norm,) ReLU; a pooling after each block."""
    prefixes, at = {}, 0
    for b, block in enumerate(net.blocks, 1):
        for i in range(1, len(block) + 1):
            prefixes[f"conv{b}_{i}"] = f"features.{at}"
            if net.batch_norm:
                prefixes[f"bn{b}_{i}"] = f"features.{at + 1}"
            at += 3 if net.batch_norm else 2
        at += 1
    return prefixes


def _renamed(net: Net, prefixes: Mapping[str, str]) -> Naming:
    """Our names with `prefixes` replaced; those of a layer's columns under the layer's one name."""
    columns = {name for name, module in net.named_modules() if isinstance(module, Columns)}
    naming: dict[str, list[str]] = {}
    for key in net.state_dict():
        layer, _, kind = key.rpartition(".")
        whole = layer.rpartition(".")[0]
        layer = whole if whole in columns else layer
        for prefix, theirs in prefixes.items():
            if layer == prefix or layer.startswith(f"{prefix}."):
                layer = theirs + layer[len(prefix) :]
                break
        naming.setdefault(f"{layer}.{kind}", []).append(key)
    return {source: tuple(targets) for source, targets in naming.items()}
