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

from torch import nn

from convnet.nets.columns import Columns
from convnet.nets.layers import Net

Naming = dict[str, tuple[str, ...]]  # source's name -> our names, in the order of the columns

INNER_PRODUCT = re.compile(r"ip\d{1,3}\.")  # what Caffe's examples call fully connected layers


def caffe(net: Net, there: Collection[str] = ()) -> Naming:
    """Caffe's names: its layers', then `.weight` or `.bias`.

    there: a file's names; where it has as many layers ip1, ip2 ... as the net has fully connected ones, these are they.
    """
    prefixes = net.layer_names.get("caffe", {})
    connected = [name for name, module in net.named_children() if isinstance(module, nn.Linear)]
    ips = sorted({name.partition(".")[0] for name in there if INNER_PRODUCT.match(name)}, key=lambda ip: int(ip[2:]))
    if ips and len(ips) == len(connected) and not prefixes:
        prefixes = dict(zip(connected, ips, strict=True))
    return _renamed(net, prefixes)


def layer_of(targets: tuple[str, ...]) -> str:
    """Our name of the layer that these parameters belong to; of several columns, that of the whole."""
    layer = targets[0].rpartition(".")[0]
    return layer.rpartition(".")[0] if len(targets) > 1 else layer


def in_state_dicts(net: Net) -> dict[str, Naming]:
    """{writer: its names} for everyone who writes state dicts of this net; "convnet" is our own."""
    theirs = {writer: _renamed(net, names) for writer, names in net.layer_names.items() if writer != "caffe"}
    return {"convnet": {name: (name,) for name in net.state_dict()}, **theirs}


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
