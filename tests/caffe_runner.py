"""Caffe as its documentation gives it, in torch: a reader of .prototxt and the layers that our files use, for tests."""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F

TOKEN = re.compile(r'#[^\n]*|"[^"\n]*"|[{}:]|[^\s{}:#"]+')


def parse(text):
    """Protocol buffers' text format: {field: list of values}, a message is such a dict."""
    assert not TOKEN.sub("", text).strip()
    tokens = iter([token for token in TOKEN.findall(text) if not token.startswith("#")])

    def message(end):
        fields = {}
        for name in tokens:
            if name == end:
                return fields
            assert name.isidentifier(), name
            token = next(tokens)
            if token == "{":
                value = message("}")
            else:
                assert token == ":", (name, token)
                value = scalar(next(tokens))
            fields.setdefault(name, []).append(value)
        assert end is None, "a message doesn't end"
        return fields

    return message(None)


def scalar(token):
    if token.startswith('"'):
        return token[1:-1]
    if re.fullmatch(r"-?\d+", token):
        return int(token)
    try:
        return float(token)
    except ValueError:
        return token


def one(message, name, default=None):
    (value,) = message.get(name, [default])
    return value


def run(text, weights, data):
    """{blob: numbers} and {layer: shape of its first top}. weights: {LAYER.weight, LAYER.bias: tensor}; data: BGR."""
    net, blobs, shapes, used = parse(text), {}, {}, set()
    for layer in net["layer"]:
        name, kind = one(layer, "name"), one(layer, "type")
        bottoms, tops = layer.get("bottom", []), layer.get("top", [])
        assert name not in shapes, f"two layers {name}"
        inputs = [blobs[bottom] for bottom in bottoms]
        if kind == "Input":
            (shape,) = one(layer, "input_param")["shape"]
            assert (1, *data.shape[1:]) == tuple(shape["dim"])
            outputs = [data]
        else:
            own = [weights[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in weights]
            used |= {f"{name}.{part}" for part in ("weight", "bias") if own}
            outputs = LAYERS[kind](layer, inputs, own)
        assert len(outputs) == len(tops)
        for top, output in zip(tops, outputs, strict=True):
            assert top not in blobs or top in bottoms, f"{name} writes over {top}"
            blobs[top] = output
        shapes[name] = tuple(outputs[0].shape[1:]) if outputs else ()
    return blobs, shapes, used


def convolution(layer, inputs, own):
    given = one(layer, "convolution_param")
    (x,), (weight, bias) = inputs, own
    assert weight.shape[0] == one(given, "num_output")
    assert weight.shape[2:] == (one(given, "kernel_size"),) * 2
    groups = one(given, "group", 1)
    assert weight.shape[1] * groups == x.shape[1]
    return [F.conv2d(x, weight, bias, one(given, "stride", 1), one(given, "pad", 0), groups=groups)]


def inner_product(layer, inputs, own):
    (x,), (weight, bias) = inputs, own
    assert weight.shape[0] == one(one(layer, "inner_product_param"), "num_output")
    return [F.linear(x.flatten(1), weight, bias)]


def pooling(layer, inputs, _):
    """Windows begin inside the padded picture; an average is divided by what lies inside picture and padding."""
    given, (x,) = one(layer, "pooling_param"), inputs
    if one(given, "global_pooling", "false") == "true":
        return [x.mean((2, 3), keepdim=True)]
    size, stride, pad = one(given, "kernel_size"), one(given, "stride", 1), one(given, "pad", 0)
    method, n = one(given, "pool", "MAX"), x.shape[2]
    side = math.ceil((n + 2 * pad - size) / stride) + 1
    if pad and (side - 1) * stride >= n + pad:
        side -= 1
    rows = []
    for i in range(side):
        row = []
        for j in range(side):
            (top, bottom), (left, right) = (
                (start, min(start + size, n + pad)) for start in (i * stride - pad, j * stride - pad)
            )
            window = x[:, :, max(top, 0) : min(bottom, n), max(left, 0) : min(right, n)]
            total = (bottom - top) * (right - left)
            row.append(window.amax((2, 3)) if method == "MAX" else window.sum((2, 3)) / total)
        rows.append(torch.stack(row, -1))
    return [torch.stack(rows, -2)]


def lrn(layer, inputs, _):
    given, (x,) = one(layer, "lrn_param"), inputs
    assert "k" not in given, "OpenCV's reader of Caffe's files takes every k for 1, without a word"
    size, alpha, beta = one(given, "local_size", 5), one(given, "alpha", 1.0), one(given, "beta", 0.75)
    squares = (x * x).numpy().astype(np.float64)
    half, sums = size // 2, np.zeros_like(squares)
    if one(given, "norm_region", "ACROSS_CHANNELS") == "WITHIN_CHANNEL":
        padded = np.pad(squares, ((0, 0), (0, 0), (half, half), (half, half)))
        for dy in range(size):
            for dx in range(size):
                sums += padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]
        scale = 1 + alpha * sums / size**2
    else:
        for i in range(x.shape[1]):
            sums[:, i] = squares[:, max(i - half, 0) : i + half + 1].sum(1)
        scale = 1 + alpha / size * sums
    return [x * torch.from_numpy(scale**-beta).to(x.dtype)]


def slices(layer, inputs, _):
    given, (x,) = one(layer, "slice_param"), inputs
    axis, n_tops = one(given, "axis"), len(layer["top"])
    points = given.get("slice_point", [x.shape[axis] // n_tops * i for i in range(1, n_tops)])
    return list(torch.tensor_split(x, points, axis))


LAYERS = {
    "Convolution": convolution,
    "InnerProduct": inner_product,
    "Pooling": pooling,
    "LRN": lrn,
    "Slice": slices,
    "Concat": lambda layer, inputs, _: [torch.cat(inputs, 1)],
    "ReLU": lambda layer, inputs, _: [inputs[0].clamp(min=0)],
    "Power": lambda layer, inputs, _: [inputs[0] * one(one(layer, "power_param"), "scale")],
    "TanH": lambda layer, inputs, _: [inputs[0].tanh()],
    "Dropout": lambda layer, inputs, _: inputs,
    "Silence": lambda layer, inputs, _: [],
    "Softmax": lambda layer, inputs, _: [inputs[0].softmax(1)],
}
