"""A deploy.prototxt for Caffe: the layers of the net as text, from the picture to the probabilities.

Caffe takes the weights of a `.caffemodel` into the layers of the same names here. Blobs have the names of the stages
that `trace` gives, so that each can be compared. In words of Caffe 1.0:

here                                      Caffe
columns                                   Convolution with `group`
conv1 reads zeros past two edges only     padding on every side, its first row and column sliced off
response normalisation, alpha of a sum    LRN, alpha times the window
norm or fully connected within columns    Slice, an LRN or InnerProduct for each, Concat
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from convnet import __version__
from convnet.errors import UsageError
from convnet.nets.convolutions import Columns, ConnectedColumns, StridedConv2d
from convnet.nets.describe import on_meta
from convnet.nets.layers import Net
from convnet.weights.names import caffe

KNOWN = (nn.Conv2d, nn.Linear)  # the layers with weights that Caffe has, in columns or not
DEFAULTS = {"pad": 0, "stride": 1, "group": 1}  # of a convolution: what Caffe takes by itself
INCEPTION_POOL = {"pool": "MAX", "kernel_size": 3, "stride": 1, "pad": 1}
Message = Mapping[str, object]  # {"k": 2} is written { k: 2 }


@dataclass
class Text:
    """The layers so far; `at` is the blob that the next one reads."""

    names: dict[str, str]  # our layer -> Caffe's
    at: str = "data"
    lines: list[str] = field(default_factory=list)

    def layer(
        self, name: str, kind: str, top: str | list[str], bottom: str | list[str] | None = None, **parameters: Message
    ) -> None:
        """Adds a layer that reads `bottom` (`at` if None) and writes `top`; its last top is the next one's bottom.

        parameters: one message, as `lrn_param={"k": 2}`.
        """
        bottoms = [self.at] if bottom is None else [bottom] if isinstance(bottom, str) else bottom
        tops = [top] if isinstance(top, str) else top
        self.lines += ["layer {", f'  name: "{self.names.get(name, name)}"', f'  type: "{kind}"']
        self.lines += [f'  bottom: "{each}"' for each in bottoms] + [f'  top: "{each}"' for each in tops]
        for name, message in parameters.items():
            defaults = DEFAULTS if kind == "Convolution" else {}
            values = (f"{key}: {_value(value)}" for key, value in message.items() if defaults.get(key) != value)
            self.lines.append(f"  {name} {{ {' '.join(values)} }}")
        self.lines.append("}")
        self.at = tops[-1] if tops else self.at


def deploy(net: Net, name: str, crop: int, about: list[str]) -> str:
    """The text of a deploy.prototxt for pictures (1, C, crop, crop); `about` is said at its top.

    Raises: UsageError for a net with layers that Caffe lacks, or where Caffe's would give other sizes at this crop.
    """
    check(net, name)
    text = Text({targets[0].rpartition(".")[0]: source.rpartition(".")[0] for source, targets in caffe(net).items()})
    sides = " ".join(f"dim: {side}" for side in (1, net.in_channels, crop, crop))
    text.lines = [*(f"# {line}" for line in (*about, f"Written by convnet {__version__} for Caffe 1.0.")),
                  f'name: "{name}"', "layer {", '  name: "data"', '  type: "Input"', '  top: "data"',
                  f"  input_param {{ shape {{ {sides} }} }}", "}"]  # fmt: skip
    stages: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        on_meta(net)(torch.empty(1, net.in_channels, crop, crop, device="meta"), stages)
    before: tuple[int, ...] = (net.in_channels, crop, crop)
    for stage, x in stages.items():
        if stage in net.loss_weights:  # the heads: they are for training only
            continue
        shape = tuple(x.shape[1:])
        _stage(text, net, stage, before, shape)
        if stage in net.dropped and net.dropout:
            text.layer(f"drop_{stage}", "Dropout", text.at, dropout_param={"dropout_ratio": net.dropout})
        before = shape
    text.layer("prob", "Softmax", "prob")
    return "\n".join(text.lines) + "\n"


def check(net: Net, name: str) -> None:
    """Whether Caffe has all layers of a net. Raises: UsageError naming the one that it lacks."""
    for module in net.modules():
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if tensors and not isinstance(module, KNOWN):
            raise UsageError(f"Caffe can't run {name}: its {type(module).__name__} layers aren't written in Caffe's "
                             "words; export it as .onnx or .safetensors")  # fmt: skip


def _stage(text: Text, net: Net, stage: str, before: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """The layers of a stage, from maps of the shape `before` to `shape`."""
    kind, module = stage.rstrip("0123456789_"), dict(net.named_children()).get(stage)
    if branches := getattr(module, "branches", None):
        _inception(text, net, stage, branches)
    elif isinstance(module, nn.Conv2d | Columns):
        _convolution(text, net, stage, before[1], shape[1])
        if net.relu_inside:
            text.layer(f"relu_{stage}", "ReLU", stage)
    elif isinstance(module, nn.Linear | ConnectedColumns):
        n_columns = len(module) if isinstance(module, ConnectedColumns) else 1
        _in_columns(text, stage, n_columns, "InnerProduct", inner_product_param={"num_output": shape[0] // n_columns})
    elif kind in ("relu", "tanh"):
        text.layer(stage, {"relu": "ReLU", "tanh": "TanH"}[kind], stage)
    elif kind in ("norm", "within"):
        _norm(text, net, stage)
    elif kind.endswith("pool"):
        _pool(text, net, stage, before, shape)
    else:
        raise UsageError(f"Caffe can't run {net.name}: its stage {stage} isn't written in Caffe's words")


def _convolution(text: Text, net: Net, stage: str, before: int, side: int) -> None:
    module = net.get_submodule(stage)
    columns = list(module) if isinstance(module, Columns) else [module]
    first = columns[0]
    assert isinstance(first, nn.Conv2d)
    values = _of_convolution(first) | {"num_output": first.out_channels * len(columns), "group": len(columns)}
    if not isinstance(first, StridedConv2d) or not first.edge:
        text.layer(stage, "Convolution", stage, convolution_param=values)
        return
    stride = first.stride[0]
    assert first.edge <= stride
    assert values["pad"] == 0
    whole = (before + 2 * stride - first.kernel_size[0]) // stride + 1  # its first row and column read the padding only
    if whole != side + 1:
        raise UsageError(f"Caffe can't pad a crop of {before} pixels as this net does; it can at {net.input_size}")
    text.layer(stage, "Convolution", f"{stage}_padded", convolution_param=values | {"pad": stride})
    text.layer(f"{stage}_rows", "Slice", [f"{stage}_row0", f"{stage}_rows"], slice_param={"axis": 2, "slice_point": 1})
    text.layer(f"{stage}_columns", "Slice", [f"{stage}_column0", stage], slice_param={"axis": 3, "slice_point": 1})
    text.layer(f"{stage}_unused", "Silence", [], [f"{stage}_row0", f"{stage}_column0"])


def _of_convolution(conv: nn.Conv2d) -> dict[str, int]:
    return {
        "num_output": conv.out_channels,
        "kernel_size": conv.kernel_size[0],
        "pad": int(conv.padding[0]),
        "stride": conv.stride[0],
    }


def _in_columns(text: Text, stage: str, n_columns: int, kind: str, **parameters: Message) -> None:
    """One layer, or one for each column of the blob before, whose outputs lie side by side."""
    if n_columns == 1:
        text.layer(stage, kind, stage, None, **parameters)
        return
    columns = [f"{stage}.{i}" for i in range(n_columns)]
    text.layer(f"{stage}_columns", "Slice", [f"{each}_in" for each in columns], slice_param={"axis": 1})
    for each in columns:
        text.layer(each, kind, each, f"{each}_in", **parameters)
    text.layer(stage, "Concat", stage, columns)


def _inception(text: Text, net: Net, stage: str, branches: tuple[tuple[str, ...], ...]) -> None:
    """Several views of the blob before, side by side."""
    below, views = text.at, []
    for branch in branches:
        text.at = below
        for part in branch:
            name = f"{stage}.{part}"
            if part == "pool":
                text.layer(name, "Pooling", name, pooling_param=INCEPTION_POOL)
                continue
            conv = net.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            text.layer(name, "Convolution", name, convolution_param=_of_convolution(conv))
            text.layer(f"{name}_relu", "ReLU", name)
        views.append(text.at)
    text.layer(stage, "Concat", stage, views)


def _norm(text: Text, net: Net, stage: str) -> None:
    """Caffe's alpha is ours times the number of elements in the window. (k + s)^-beta is written as k^-beta times
    (1 + s / k)^-beta, as OpenCV's reader of Caffe's files takes every k for 1."""
    if stage in net.within:
        n, _, alpha, beta = net.within[stage]  # Caffe's k is 1 there
        values = {"local_size": n, "alpha": n * n * alpha, "beta": beta, "norm_region": "WITHIN_CHANNEL"}
        text.layer(stage, "LRN", stage, lrn_param=values)
        return
    n, k, alpha, beta = net.lrn
    values = {"local_size": n, "alpha": n * alpha / k, "beta": beta}
    _in_columns(text, stage, net.norm_columns, "LRN", lrn_param=values)
    if k != 1:
        text.layer(f"{stage}_k", "Power", stage, power_param={"scale": repr(k**-beta)})


def _pool(text: Text, net: Net, stage: str, before: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """A pooling layer. Caffe keeps partial windows always. Raises: UsageError where that gives another size."""
    if stage == "avgpool":  # of alexnet_owt
        if shape != before:
            raise UsageError(f"Caffe can't average {before[1]} x {before[1]} maps to {shape[1]} x {shape[1]}; it needs "
                             f"crops of {net.input_size} pixels")  # fmt: skip
        return
    if len(shape) == 1:
        text.layer(stage, "Pooling", stage, pooling_param={"pool": "AVE", "global_pooling": True})
        return
    size, stride, _ = net.pooling
    side = math.ceil((before[1] - size) / stride) + 1
    if side != shape[1]:
        raise UsageError(f"Caffe keeps partial windows, so that its {stage} has {side} x {side} pixels and this net's "
                         f"{shape[1]} x {shape[1]}; they agree where the windows cover the maps whole")  # fmt: skip
    values = {"pool": "AVE" if stage in net.average_pools else "MAX", "kernel_size": size, "stride": stride}
    text.layer(stage, "Pooling", stage, pooling_param=values)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
