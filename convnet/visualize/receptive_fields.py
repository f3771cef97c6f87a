"""Which pixels can a unit see? The exact bounds of the receptive field of every unit of every stage of a net.

The net's own forward pass is run without numbers, on torch's meta device: each function that it calls says which units
below a unit reads. A window that reaches over an edge reads less, so units at the edges see less; pixels that no window
reads, as past the last step of a stride, are seen by nobody.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convnet.errors import UsageError
from convnet.kernels.ops import locally_connected
from convnet.nets import evaluating, stage_of
from convnet.nets.layers import Net, response_norm, within_map_norm

Ints = NDArray[np.int64]
NOWHERE = 2**31  # the first pixel of a unit that sees none; its last is -1


class Field(NamedTuple):
    """A box of the picture, pixels. Its top and left are negative where it reaches over an edge."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Axis:
    """What n units that follow each other see along one axis, int64 (n,) each, pixels.

    first, last: the first and last pixel of the picture. start, end: the same if the picture had no edges.
    jump: pixels from one unit to the next.
    """

    first: Ints
    last: Ints
    start: Ints
    end: Ints
    jump: int


@dataclass(frozen=True, eq=False)
class Fields:
    """The receptive fields of a stage's units: rows x columns of them; one of each where it has features (N, D)."""

    rows: Axis
    columns: Axis

    def of(self, row: int, column: int) -> Field:
        """What the unit sees of the picture; height or width is 0 where it sees nothing of it."""
        top, bottom = int(self.rows.first[row]), int(self.rows.last[row])
        left, right = int(self.columns.first[column]), int(self.columns.last[column])
        height, width = max(0, bottom - top + 1), max(0, right - left + 1)
        return Field(top if height else 0, left if width else 0, height, width)

    def whole(self, row: int, column: int) -> Field:
        """What the unit would see if the picture had no edges: all units of a stage have fields of one size."""
        top, left = int(self.rows.start[row]), int(self.columns.start[column])
        return Field(top, left, int(self.rows.end[row]) - top + 1, int(self.columns.end[column]) - left + 1)


def receptive_fields(net: Net, side: int | None = None) -> dict[str, Fields]:
    """{stage: its receptive fields}, for pictures of side x side pixels; None is the net's own input.

    Which maps a unit reads doesn't matter, nor do weights that happen to be 0: the columns of a net see the same.
    Normalisation across maps reads no other place; batch norm is that of evaluation.

    Raises: UsageError for a net that calls a function of which this isn't known.
    """
    side = side or net.input_size
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    weights = {name: torch.empty_like(each, device="meta") for name, each in tensors.items()}
    dtype = next((each.dtype for each in net.parameters()), torch.float32)
    images = torch.empty(1, net.in_channels, side, side, dtype=dtype, device="meta")
    stages: dict[str, Tensor] = {}
    with torch.no_grad(), evaluating(net), _Reading(images) as reading:
        torch.func.functional_call(net, weights, (images, stages))
    return {name: reading.of(name, activation) for name, activation in stages.items()}


def fields_of(net: Net, stage: str, side: int | None = None) -> Fields:
    """The receptive fields of one stage, or of a column of it. Raises: UsageError as `fields`, or for its name."""
    fields = receptive_fields(net, side)
    stage_of(net, {name: torch.empty(1, net.columns, 1, 1) for name in fields}, stage)
    return fields[stage] if stage in fields else fields[stage.rpartition(".")[0]]


class _Reading(TorchFunctionMode):
    """Within the block every function of torch that is called says what its result sees of the pictures."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        height, width = images.shape[2:]
        self.known: dict[int, tuple[Tensor, Fields]] = {}  # by id; the tensors are kept, so that no id comes twice
        self.known[id(images)] = images, Fields(_pixels(height), _pixels(width))

    def of(self, stage: str, activation: Tensor) -> Fields:
        fields = self.known[id(activation)][1]
        shape = tuple(activation.shape[2:]) or (1, 1)
        if (len(fields.rows.first), len(fields.columns.first)) != shape:
            raise UsageError(f"{stage} has units of shape {shape} whose receptive fields are not known one by one")
        return fields

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        options = kwargs or {}
        result = func(*args, **options)
        results = result if isinstance(result, tuple | list) else [result]
        tensors = [each for each in results if isinstance(each, Tensor)]
        given = args[0] if args and isinstance(args[0], tuple | list) else [*args, *options.values()]
        below = [self.known[id(each)][1] for each in given if id(each) in self.known]
        if tensors and below:
            seen = _through(func, below, args, options, tensors[0].shape)
            self.known |= {id(each): (each, seen) for each in tensors}
        return result


def _through(
    func: Callable[..., object],
    below: Sequence[Fields],
    args: Sequence[object],
    options: Mapping[str, object],
    shape: Sequence[int],
) -> Fields:
    """What the result of a function, of that shape, sees. Raises: UsageError for a function that isn't known."""
    if func in PARAMETERS:
        settings = dict(zip(PARAMETERS[func], args[1:], strict=False), **options)
        if func is F.adaptive_avg_pool2d:
            return Fields(_resized(below[0].rows, shape[-2]), _resized(below[0].columns, shape[-1]))
        return _windows(func, settings, below[0], shape)
    joined = below[0]
    for other in below[1:]:
        joined = Fields(_joined(joined.rows, other.rows), _joined(joined.columns, other.columns))
    if func in EVERYTHING:
        return Fields(_all(joined.rows), _all(joined.columns))
    if func in SAME_PLACE or len(joined.rows.first) == len(joined.columns.first) == 1:
        return joined
    name = getattr(func, "__name__", str(func))
    raise UsageError(f"the net calls {name}, of which it is not known which pixels its result sees")


def _windows(
    func: Callable[..., object], settings: Mapping[str, object], below: Fields, shape: Sequence[int]
) -> Fields:
    """Units that read windows."""
    weight, pad = settings.get("weight"), settings.get("pad")
    size = _pair(
        weight.shape[-2:] if isinstance(weight, Tensor) else settings.get("kernel_size", settings.get("size", 1))
    )
    stride = _pair(settings.get("stride") or (size if func in POOLS else 1))
    dilation = _pair(settings.get("dilation", 1))
    padding = _pair(settings.get("padding", 0))
    if isinstance(pad, tuple | list):
        padding = pad[2], pad[0]
    elif func is within_map_norm:
        padding = size[0] // 2, size[1] // 2
    axes = []
    for i, axis in enumerate((below.rows, below.columns)):
        places = np.arange(shape[i - 2])[:, None] * stride[i] - padding[i] + np.arange(size[i]) * dilation[i]
        axes.append(_read(axis, places, axis.jump * stride[i]))
    return Fields(*axes)


def _pair(value: object) -> tuple[int, int]:
    """A setting for rows and for columns; torch takes one number for both."""
    if isinstance(value, tuple | list):
        return int(value[0]), int(value[1])
    assert isinstance(value, int)
    return value, value


def _resized(axis: Axis, n: int) -> Axis:
    """n units that read equal parts of `axis`, as adaptive pooling does."""
    n_below = len(axis.first)
    firsts, ends = np.arange(n) * n_below // n, -(-np.arange(1, n + 1) * n_below // n)
    places = np.minimum(firsts[:, None] + np.arange((ends - firsts).max()), ends[:, None] - 1)
    return _read(axis, places, axis.jump * n_below // n)


def _pixels(side: int) -> Axis:
    places = np.arange(side)
    return Axis(places, places, places, places, 1)


def _read(axis: Axis, places: Ints, jump: int) -> Axis:
    """Units that each read several units of `axis`: `places` (n, window), of which some may lie over its edges."""
    n = len(axis.first)
    near = places.clip(0, n - 1)
    beyond = (places - near) * axis.jump
    inside = places == near
    first = np.where(inside, axis.first[near], NOWHERE).min(1)
    last = np.where(inside, axis.last[near], -1).max(1)
    return Axis(first, last, (axis.start[near] + beyond).min(1), (axis.end[near] + beyond).max(1), jump)


def _all(axis: Axis) -> Axis:
    """One unit that reads all."""
    return _read(axis, np.arange(len(axis.first))[None], axis.jump)


def _joined(a: Axis, b: Axis) -> Axis:
    """Units that read one unit of `a` and one of `b` each."""
    first, last = np.minimum(a.first, b.first), np.maximum(a.last, b.last)
    return Axis(first, last, np.minimum(a.start, b.start), np.maximum(a.end, b.end), a.jump)


POOLS = (F.max_pool2d, torch.max_pool2d, F.avg_pool2d)  # whose stride is their size where none is given
PARAMETERS: dict[Callable[..., object], tuple[str, ...]] = {  # of what reads windows: torch's names after the first
    torch.conv2d: ("weight", "bias", "stride", "padding", "dilation"),
    **dict.fromkeys(POOLS[:2], ("kernel_size", "stride", "padding", "dilation")),
    F.avg_pool2d: ("kernel_size", "stride", "padding"),
    F.adaptive_avg_pool2d: ("output_size",),
    F.pad: ("pad",),
    locally_connected: ("weight", "bias", "padding"),
    within_map_norm: ("size",),
}
EVERYTHING = {F.linear, Tensor.mean}
SAME_PLACE = {
    *(F.relu, torch.relu, Tensor.relu, torch.tanh, Tensor.tanh, torch.sigmoid, F.dropout, F.batch_norm, response_norm),
    *(torch.cat, Tensor.chunk, Tensor.flatten, Tensor.view, Tensor.to, Tensor.float, Tensor.contiguous),
    *(Tensor.add, Tensor.sub, Tensor.mul, Tensor.neg),
}
