"""How does a unit get its value? The numbers that it reads and what is done to them, for any unit of any stage.

kind      what the unit does                            told as
sum       weights times what it reads, plus a constant  the maps that count most, each with its window; the others' sum
max       the largest of a window                       the window
norm      x / (k + alpha sum of squares)^beta           the values that are squared
function  one number of one number                      that number
distance  minus the squared distance to a code          the differences that count most
pixel     (pixel - mean) x scale + offset               the three or one
other     what has no module of its own                 nothing

The weights of a sum are the derivatives of the unit by what it reads: of a convolution, a fully connected layer, a
mean or batch norm those that it has. Of several layers in one stage, as an inception, they are those with the ReLUs
and maxima inside as this picture sets them. A ReLU or tanh at the end of a stage is told as `then`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convnet.data.augment import LUMA
from convnet.errors import UsageError, unknown
from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.strict_json import Json
from convnet.nets import SelectedStages, evaluating
from convnet.nets.layers import Net, ResponseNorm, WithinMapNorm
from convnet.nets.lenet5 import RBF, ScaledTanh

PICTURE = "picture"  # the stage before the first
HALF = 1 << 15  # of 65536: rounds
MAPS = 12  # that are told one by one
FUNCTIONS = {nn.ReLU: "max(0, x)", nn.Tanh: "tanh(x)", ScaledTanh: "1.7159 tanh(2x/3)"}


@dataclass(frozen=True, eq=False)
class Walk:
    """A net on its way through one picture: each stage's activation, (1, C, H, W) or (1, D), and what its module read.

    sources: the stage whose activation a stage reads, or PICTURE; none where it reads something else.
    """

    net: Net
    stages: dict[str, Tensor]
    inputs: dict[str, Tensor]
    sources: dict[str, str]


def walk(net: Net, image: Tensor) -> Walk:
    """The way of an image (1, C, H, W), as the net takes it."""
    stages: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    modules = dict(net.named_modules())
    with torch.no_grad(), evaluating(net):
        net(image, names := SelectedStages([]))
        with ExitStack() as hooks:
            for name in names:
                if name in modules:
                    hooks.callback(modules[name].register_forward_pre_hook(_noting(inputs, name)).remove)
            net(image, stages)
    return Walk(net, stages, inputs, _sources(image, stages, inputs))


def _noting(inputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that notes what a module reads."""

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[name] = given[0].detach()

    return note


def _sources(image: Tensor, stages: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, str]:
    """By equal numbers: what a stage reads is an earlier activation, perhaps flat."""
    sources, before = {}, {PICTURE: image}
    for stage, activation in stages.items():
        if stage in inputs:
            given = inputs[stage].flatten()
            for name, earlier in reversed(before.items()):
                if earlier.numel() == given.numel() and torch.equal(earlier.flatten(), given):
                    sources[stage] = name
                    break
        before[stage] = activation
    return sources


def value_of(walked: Walk, stage: str, place: tuple[int, int, int]) -> float:
    """A unit's value. place: map, row, column. Raises: UsageError for a stage or unit that isn't there."""
    if stage not in walked.stages:
        raise UsageError(unknown("stage", stage, walked.stages))
    return _checked(stage, _maps(walked.stages[stage]), place)


def _checked(stage: str, maps: Tensor, place: tuple[int, int, int]) -> float:
    for what, number, size in zip(("map", "row", "column"), place, maps.shape, strict=True):
        if not 0 <= number < size:
            raise UsageError(f"{stage} has the {what}s 0 to {size - 1}, no {what} {number}")
    return float(maps[place])


def arithmetic(walked: Walk, stage: str, place: tuple[int, int, int]) -> Json:
    """How a unit gets its value, as the file's head tells. Raises: UsageError for a unit that isn't there."""
    told: Json = {"stage": stage, "place": list(place), "value": value_of(walked, stage, place)}
    told["source"] = walked.sources.get(stage)
    if stage not in walked.inputs:
        return told | {"kind": "other"}
    module, x = walked.net.get_submodule(stage), walked.inputs[stage]
    at = place if walked.stages[stage].ndim == 4 else place[:1]
    shape = tuple(_maps(walked.stages.get(told["source"], x)).shape)  # a flat input is told in its maps
    for kind, form in FUNCTIONS.items():
        if isinstance(module, kind):
            return told | {"kind": "function", "form": form, "x": float(x[(0, *at)])}
    if isinstance(module, nn.MaxPool2d):
        return told | _largest(module, x, place)
    if isinstance(module, ResponseNorm):
        return told | _norm_across(module, x, place)
    if isinstance(module, WithinMapNorm):
        return told | _norm_within(module, x, place)
    if isinstance(module, RBF):
        return told | _distance(module, x, at)
    with evaluating(walked.net):
        return told | _sum(module, x, at, shape, told["value"])


def _maps(activation: Tensor) -> Tensor:
    """(C, H, W) of one picture's activation; features (D,) are maps of one place."""
    return activation[0] if activation.ndim == 4 else activation[0][:, None, None]


def _sum(module: nn.Module, x: Tensor, at: tuple[int, ...], shape: tuple[int, ...], value: float) -> Json:
    """The local weights, and what they are multiplied with, map by map."""
    before, then = _before(module, x, at)
    (weights,) = torch.autograd.grad(before[0], before[1])
    weights, read = (each.detach()[0].reshape(shape).double() for each in (weights, x))
    products = (weights * read).sum((1, 2))
    order = products.abs().argsort(descending=True, stable=True)
    reads = weights.abs().sum((1, 2)) > 0
    order = order[reads[order]]
    top, left, bottom, right = _window(weights)
    total, whole = float(before[0].detach()), float(products.sum())
    maps = [
        {
            "map": int(c),
            "inputs": read[c, top:bottom, left:right].tolist(),
            "weights": weights[c, top:bottom, left:right].tolist(),
            "sum": float(products[c]),
        }
        for c in order[:MAPS].tolist()
    ]
    rest = {"n": max(0, len(order) - MAPS), "sum": float(products[order[MAPS:]].sum())}
    bends = sum(isinstance(each, (*FUNCTIONS, nn.MaxPool2d)) for each in module.modules()) - (then is not None)
    told = {"kind": "sum", "window": [top, left, bottom - top, right - left], "maps": maps, "rest": rest}
    return told | {
        "is_bent": bends > 0,  # by functions inside
        "constant": total - whole,
        "before": total,
        "then": then if total != value else None,
    }


def _before(module: nn.Module, x: Tensor, at: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], str | None]:
    """(the unit, before the function with which its stage ends, and what it is a function of), and that function."""
    leaf, kept = x.detach().requires_grad_(), list[Tensor]()
    ending = next((each for each in list(module.children())[-1:] if type(each) in FUNCTIONS), None)
    hook = ending.register_forward_pre_hook(lambda _, given: kept.append(given[0])) if ending else None
    with torch.enable_grad():
        result = module(leaf)
    if hook:
        hook.remove()
    return ((kept[-1] if kept else result)[(0, *at)], leaf), FUNCTIONS[type(ending)] if ending else None


def _window(weights: Tensor) -> tuple[int, int, int, int]:
    """The smallest box of places outside of which all maps' weights are 0: top, left, bottom, right."""
    rows, columns = (weights.abs().sum(other).nonzero().flatten().tolist() for other in ((0, 2), (0, 1)))
    return (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if rows else (0, 0, 1, 1)


def _largest(pool: nn.MaxPool2d, x: Tensor, place: tuple[int, int, int]) -> Json:
    channel, row, column = place
    size, stride, padding = (int(each) for each in (pool.kernel_size, pool.stride, pool.padding))  # type: ignore[arg-type]
    top, left = (max(0, each * stride - padding) for each in (row, column))
    bottom, right = (each * stride - padding + size for each in (row, column))
    inputs = x[0, channel, top:bottom, left:right]
    window = [top, left, *inputs.shape]
    return {"kind": "max", "window": window, "maps": [{"map": channel, "inputs": inputs.double().tolist()}]}


def _norm_across(norm: ResponseNorm, x: Tensor, place: tuple[int, int, int]) -> Json:
    channel, row, column = place
    size, half = x.shape[1] // norm.groups, norm.n // 2
    first = channel // size * size
    maps = range(max(first, channel - half), min(first + size, channel + half + 1))
    inputs = _maps(x)[maps.start : maps.stop, row, column].double()
    rows = [{"map": c, "inputs": [[value]]} for c, value in zip(maps, inputs.tolist(), strict=True)]
    told = {"kind": "norm", "window": [row, column, 1, 1], "maps": rows, "x": float(_maps(x)[place])}
    return told | _divided(norm, inputs)


def _norm_within(norm: WithinMapNorm, x: Tensor, place: tuple[int, int, int]) -> Json:
    channel, *at = place
    starts = [each - norm.size // 2 for each in at]
    top, left = (max(0, each) for each in starts)
    inputs = x[0, channel, top : starts[0] + norm.size, left : starts[1] + norm.size].double()
    rows = [{"map": channel, "inputs": inputs.tolist()}]
    told = {"kind": "norm", "window": [top, left, *inputs.shape], "maps": rows, "x": float(x[(0, *place)])}
    return told | _divided(norm, inputs)


def _divided(norm: ResponseNorm | WithinMapNorm, inputs: Tensor) -> Json:
    squares = float(inputs.square().sum())
    constants = {name: float(getattr(norm, name)) for name in ("k", "alpha", "beta")}
    return {"constants": constants, "squares": squares, "divisor": (norm.k + norm.alpha * squares) ** norm.beta}


def _distance(layer: RBF, x: Tensor, at: tuple[int, ...]) -> Json:
    read, code = x[0].double(), layer.codes[at[0]].double()
    squares = (read - code).square()
    order = squares.argsort(descending=True, stable=True).tolist()
    maps = [
        {"map": d, "inputs": [[float(read[d])]], "weights": [[float(code[d])]], "sum": -float(squares[d])}
        for d in order[:MAPS]
    ]
    rest = {"n": max(0, len(order) - MAPS), "sum": -float(squares[order[MAPS:]].sum())}
    return {"kind": "distance", "window": [0, 0, 1, 1], "maps": maps, "rest": rest}


def pixel(net: TrainedNet, picture: Seen, place: tuple[int, int, int]) -> Json:
    """How a number of the net's input comes from the picture's pixel. Raises: UsageError for one that isn't there."""
    image, how = net.images([picture]), net.preprocessing
    value = _checked(PICTURE, image[0], place)
    told: Json = {"stage": PICTURE, "place": list(place), "value": value, "source": None}
    channel, row, column = place
    colours = picture.pixels[row, column]
    grey = how.channels == "grey"
    level = int(colours.astype(np.int64) @ LUMA + HALF >> 16) if grey else int(colours[channel])
    mean = round(level - (value - how.offset) / how.scale, 3)  # what was subtracted there
    colour = {"colours": colours.tolist(), "level": level, "mean": mean, "scale": how.scale, "offset": how.offset}
    return told | {"kind": "pixel", "is_grey": grey} | colour
