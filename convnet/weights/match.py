"""Which tensor of a file fills which of the net? By name and shape; what is missing or left over is reported."""

import math
from pathlib import Path

import torch

from convnet.nets.layers import Net
from convnet.weights.found import Found
from convnet.weights.names import Naming
from convnet.weights.report import Report

SHOWN = 6  # problems that an error lists


def match(net: Net, naming: Naming, found: list[Found], report: Report) -> dict[str, Found]:
    """{source: tensor} of all that fits, in the order of the net; the rest goes into the report."""
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    here = {each.name: each for each in found}
    chosen: dict[str, Found] = {}
    for source, targets in naming.items():
        wanted = whole(source, [shapes[target] for target in targets])
        each = here.pop(source, None)
        if each is not None and fits(each.shape, wanted):
            chosen[source] = each
            continue
        if each is None and source.endswith(".num_batches_tracked"):  # files from before PyTorch 0.4.1
            chosen[source] = Found(source, (), "int64", lambda: torch.zeros((), dtype=torch.int64))
            continue
        if each is not None:
            report.left_over[source] = f"its shape is {each.shape}, {', '.join(targets)} needs {wanted}"
        report.missing |= dict.fromkeys(targets, "initial values")
    report.left_over |= dict.fromkeys(here, "the net has no such tensor")
    return chosen


def misfit(path: Path, net_name: str, report: Report, n_fit: int, n_found: int) -> str:
    problems = [f"{name}: {text}" for name, text in report.left_over.items()]
    problems += [f"{name}: not in the file" for name in report.missing]
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    lines = "\n  ".join(problems[:SHOWN])
    advice = "a partial file needs --partial" if n_fit else "is it another net's?"
    if n_fit and report.missing and report.left_over:
        advice += ", a layer of another name --rename THEIRS=OURS"
    return f"{path} doesn't fit {net_name}, {n_fit} of its {n_found} tensors do; {advice}:\n  {lines}{more}"


def whole(source: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a layer's columns end to end."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]


def squeezed(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """Without the ones in front by which Caffe's legacy shapes have more than n sides: (1, 1, 10, 64) -> (10, 64)."""
    while len(shape) > n and shape[0] == 1:
        shape = shape[1:]
    return shape


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor can take the wanted shape with its numbers in their order."""
    if len(wanted) == 2 and len(shape) == 4 and shape[0] == wanted[0] and shape[2] == shape[3]:
        return math.prod(shape) == math.prod(wanted)  # a fully connected layer as a convolution: maps, rows, columns
    return squeezed(shape, len(wanted)) == wanted
