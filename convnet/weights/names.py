"""What do others call the layers of our nets? For each net and each writer: the key in its state dict -> our keys.

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

from convnet.nets.convolutions import Columns
from convnet.nets.layers import Net

KeyMap = dict[str, tuple[str, ...]]  # source's key -> our keys, in the order of the columns

INNER_PRODUCT = re.compile(r"ip\d{1,3}\.")  # what Caffe's examples call fully connected layers


def caffe(net: Net, keys: Collection[str] = ()) -> KeyMap:
    """Caffe's names: its layers', then `.weight` or `.bias`.

    keys: a file's; where it has as many layers ip1, ip2 ... as the net has fully connected ones, these are they.
    """
    prefixes = net.layer_names.get("caffe", {})
    connected = [name for name, module in net.named_children() if isinstance(module, nn.Linear)]
    ips = sorted({key.partition(".")[0] for key in keys if INNER_PRODUCT.match(key)}, key=lambda ip: int(ip[2:]))
    if ips and len(ips) == len(connected) and not prefixes:
        prefixes = dict(zip(connected, ips, strict=True))
    return _renamed(net, prefixes)


def layer_of(targets: tuple[str, ...]) -> str:
    """Our name of the layer that these parameters belong to; of several columns, that of the whole."""
    layer = targets[0].rpartition(".")[0]
    return layer.rpartition(".")[0] if len(targets) > 1 else layer


def in_state_dicts(net: Net) -> dict[str, KeyMap]:
    """{writer: its keys} for everyone who writes state dicts of this net; "convnet" is our own."""
    theirs = {writer: _renamed(net, names) for writer, names in net.layer_names.items() if writer != "caffe"}
    return {"convnet": {name: (name,) for name in net.state_dict()}, **theirs}


def _renamed(net: Net, prefixes: Mapping[str, str]) -> KeyMap:
    """Our keys with `prefixes` replaced; those of a layer's columns under the layer's one name."""
    columns = {name for name, module in net.named_modules() if isinstance(module, Columns)}
    key_map: KeyMap = {}
    for key in net.state_dict():
        layer, _, kind = key.rpartition(".")
        whole = layer.rpartition(".")[0]
        layer = whole if whole in columns else layer
        for prefix, theirs in prefixes.items():
            if layer == prefix or layer.startswith(f"{prefix}."):
                layer = theirs + layer[len(prefix) :]
                break
        source = f"{layer}.{kind}"
        key_map[source] = (*key_map.get(source, ()), key)
    return key_map
