"""Which tensor of a file fills which of the net? By name and shape; missing and unexpected keys are reported."""

import math
from pathlib import Path

import torch

from convnet.errors import DataError
from convnet.nets.layers import Net
from convnet.weights.names import KeyMap
from convnet.weights.report import Report
from convnet.weights.state_dict import FileTensor

SHOWN = 6  # problems that an error lists


def match(
    path: Path, net: Net, key_map: KeyMap, tensors: list[FileTensor], partial: bool, report: Report
) -> dict[str, FileTensor]:
    """{source: tensor} of all that fits, in the order of the net; the rest goes into the report.

    Raises: DataError when keys are missing or unexpected, unless `partial`, and when nothing fits.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    by_name = {tensor.name: tensor for tensor in tensors}
    matched: dict[str, FileTensor] = {}
    for source, targets in key_map.items():
        expected = joined_shape([shapes[target] for target in targets])
        tensor = by_name.pop(source, None)
        if tensor is not None and fits(tensor.shape, expected):
            matched[source] = tensor
        elif tensor is None and source.endswith(".num_batches_tracked"):  # files from before PyTorch 0.4.1
            matched[source] = FileTensor(source, (), "int64", lambda: torch.zeros((), dtype=torch.int64))
        else:
            if tensor is not None:
                report.unexpected[source] = f"its shape is {tensor.shape}, {', '.join(targets)} needs {expected}"
            report.missing |= dict.fromkeys(targets, "initial values")
    report.unexpected |= dict.fromkeys(by_name, "the net has no such tensor")
    if (report.missing or report.unexpected) and not partial:
        raise DataError(_misfit(path, report, len(matched), len(tensors)))
    if not matched:
        raise DataError(f"{path}: no tensor of it fits {report.net}")
    return matched


def _misfit(path: Path, report: Report, n_fit: int, n_tensors: int) -> str:
    problems = [f"unexpected: {name}: {text}" for name, text in report.unexpected.items()]
    problems += [f"missing: {name}: not in the file" for name in report.missing]
    if len(problems) > SHOWN:
        problems[SHOWN:] = [f"and {len(problems) - SHOWN} more"]
    advice = "a partial file needs --partial" if n_fit else "is it another net's?"
    if n_fit and report.missing and report.unexpected:
        advice += ", a layer of another name --rename THEIRS=OURS"
    counts = f"{n_fit} of its {n_tensors} tensors do; {advice}"
    return "\n  ".join([f"{path} doesn't fit {report.net}, {counts}:", *problems])


def joined_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a layer's columns end to end."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]


def squeezed(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """Without the ones in front by which Caffe's legacy shapes have more than n sides: (1, 1, 10, 64) -> (10, 64)."""
    while len(shape) > n and shape[0] == 1:
        shape = shape[1:]
    return shape


def fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a tensor can take the expected shape with its numbers in their order."""
    if len(expected) == 2 and len(shape) == 4 and shape[0] == expected[0] and shape[2] == shape[3]:
        return math.prod(shape) == math.prod(expected)  # a fully connected layer as a convolution: maps, rows, columns
    return squeezed(shape, len(expected)) == expected
