"""Which pixels can a unit see? The exact bounds of the receptive field of every unit of every stage of a net.

The net's own forward pass is run without numbers, on torch's meta device: each function that it calls says which units
below a unit reads. A window that reaches over an edge reads less, so units at the edges see less; pixels that no window
reads, as past the last step of a stride, are seen by nobody.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convnet.errors import UsageError
from convnet.nets import evaluating, stage_of
from convnet.nets.layers import Net, response_norm
from convnet.nets.norms import within_map_norm

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
        (top, height), (left, width) = (
            _span(axis.first[i], axis.last[i]) for axis, i in ((self.rows, row), (self.columns, column))
        )
        return Field(top, left, height, width)

    def whole(self, row: int, column: int) -> Field:
        """What the unit would see if the picture had no edges: all units of a stage have fields of one size."""
        (top, height), (left, width) = (
            _span(axis.start[i], axis.end[i]) for axis, i in ((self.rows, row), (self.columns, column))
        )
        return Field(top, left, height, width)


def receptive_fields(net: Net, side: int | None = None) -> dict[str, Fields]:
    """{stage: its receptive fields}, for pictures of side x side pixels; None is the net's own input.

    Which maps a unit reads doesn't matter, nor do weights that happen to be 0: the columns of a net see the same.
    Normalisation across maps reads no other place; batch norm is that of evaluation.

    Raises: UsageError for a net that calls a function of which this isn't known.
    """
    side = side or net.input_size
    weights = {
        name: torch.empty_like(each, device="meta") for name, each in (*net.named_parameters(), *net.named_buffers())
    }
    dtype = next((each.dtype for each in net.parameters()), torch.float32)
    images = torch.empty(1, net.in_channels, side, side, dtype=dtype, device="meta")
    stages: dict[str, Tensor] = {}
    with torch.no_grad(), evaluating(net), _Reading(images) as reading:
        torch.func.functional_call(net, weights, (images, stages))
    return {name: reading.of(name, activation) for name, activation in stages.items()}


def fields_of(net: Net, stage: str, side: int | None = None) -> Fields:
    """The receptive fields of one stage, or of a column of it. Raises: UsageError as `fields`, or for its name."""
    found = receptive_fields(net, side)
    stage_of(net, {name: torch.empty(1, net.columns, 1, 1) for name in found}, stage)
    return found[stage] if stage in found else found[stage.rpartition(".")[0]]


class _Reading(TorchFunctionMode):
    """Within the block every function of torch that is called says what its result sees of the pictures."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        height, width = images.shape[2:]
        self.known: dict[int, tuple[Tensor, Fields]] = {}  # by id; the tensors are kept, so that no id comes twice
        self._note(images, Fields(_pixels(height), _pixels(width)))

    def of(self, stage: str, activation: Tensor) -> Fields:
        found = self.known[id(activation)][1]
        shape = tuple(activation.shape[2:]) or (1, 1)
        if (len(found.rows.first), len(found.columns.first)) != shape:
            raise UsageError(f"{stage} has units of shape {shape} whose receptive fields are not known one by one")
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = [each for each in (result if isinstance(result, (tuple, list)) else [result]) if _is_tensor(each)]
        given = args[0] if args and isinstance(args[0], (tuple, list)) else [*args, *(kwargs or {}).values()]
        below = [self.known[id(each)][1] for each in given if id(each) in self.known]
        if results and below:
            seen = self._through(func, below, args, kwargs or {}, results[0])
            for each in results:
                self._note(each, seen)
        return result

    def _through(
        self, func: Any, below: Sequence[Fields], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
    ) -> Fields:
        if func in WINDOWS:
            return WINDOWS[func](result, below[0], *args[1:], **kwargs)
        joined = below[0]
        for other in below[1:]:
            joined = Fields(_joined(joined.rows, other.rows), _joined(joined.columns, other.columns))
        if func in EVERYTHING:
            return Fields(_all(joined.rows), _all(joined.columns))
        if func in SAME_PLACE or len(joined.rows.first) == len(joined.columns.first) == 1:
            return joined
        name = getattr(func, "__name__", str(func))
        raise UsageError(f"the net calls {name}, of which it is not known which pixels its result sees")

    def _note(self, tensor: Tensor, seen: Fields) -> None:
        self.known[id(tensor)] = tensor, seen


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _span(first: Any, last: Any) -> tuple[int, int]:
    return (int(first), int(last - first + 1)) if first <= last else (0, 0)


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


def _window(axis: Axis, n: int, size: int, stride: int, padding: int, dilation: int = 1) -> Axis:
    """n units whose windows of `size` begin `padding` before the first unit of `axis`."""
    places = np.arange(n)[:, None] * stride - padding + np.arange(size) * dilation
    return _read(axis, places, axis.jump * stride)


def _all(axis: Axis) -> Axis:
    """One unit that reads all."""
    return _read(axis, np.arange(len(axis.first))[None], axis.jump)


def _joined(a: Axis, b: Axis) -> Axis:
    """Units that read one unit of `a` and one of `b` each."""
    first, last = np.minimum(a.first, b.first), np.maximum(a.last, b.last)
    return Axis(first, last, np.minimum(a.start, b.start), np.maximum(a.end, b.end), a.jump)


# How each function reads: as torch's own, without the first argument, but for the result and what is seen below.


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _windows(result: tuple[int, ...], below: Fields, size: Any, stride: Any, padding: Any, dilation: Any = 1) -> Fields:
    settings = [_pair(each) for each in (size, stride, padding, dilation)]
    rows, columns = ([each[axis] for each in settings] for axis in (0, 1))
    return Fields(_window(below.rows, result[-2], *rows), _window(below.columns, result[-1], *columns))


def _conv2d(
    result: Tensor,
    below: Fields,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Fields:
    return _windows(result.shape, below, weight.shape[2:], stride, padding, dilation)


def _max_pool2d(
    result: Tensor,
    below: Fields,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Fields:
    return _windows(result.shape, below, kernel_size, stride or kernel_size, padding, dilation)


def _avg_pool2d(
    result: Tensor,
    below: Fields,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Fields:
    return _windows(result.shape, below, kernel_size, stride or kernel_size, padding)


def _adaptive_avg_pool2d(result: Tensor, below: Fields, output_size: Any) -> Fields:
    def resized(axis: Axis, n: int) -> Axis:
        n_below = len(axis.first)
        firsts = [i * n_below // n for i in range(n)]
        ends = [-(-(i + 1) * n_below // n) for i in range(n)]
        widest = max(end - first for first, end in zip(firsts, ends, strict=True))
        places = np.minimum(np.array(firsts)[:, None] + np.arange(widest), np.array(ends)[:, None] - 1)
        return _read(axis, places, axis.jump * n_below // n)

    return Fields(resized(below.rows, result.shape[-2]), resized(below.columns, result.shape[-1]))


def _pad(
    result: Tensor, below: Fields, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Fields:
    return _windows(result.shape, below, 1, 1, (pad[2], pad[0]))


def _unfold(
    result: Tensor, below: Fields, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Fields:
    """Patches (N, C size size, places), which become maps of rows x columns later."""
    sides = [
        (len(axis.first) + 2 * p - d * (k - 1) - 1) // s + 1
        for axis, k, s, p, d in zip(
            (below.rows, below.columns), *map(_pair, (kernel_size, stride, padding, dilation)), strict=True
        )
    ]
    return _windows((*sides,), below, kernel_size, stride, padding, dilation)


def _within_map_norm(result: Tensor, below: Fields, size: int, *constants: float) -> Fields:
    return _windows(result.shape, below, size, 1, size // 2)


WINDOWS: dict[Any, Callable[..., Fields]] = {
    torch.conv2d: _conv2d,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.pad: _pad,
    F.unfold: _unfold,
    within_map_norm: _within_map_norm,
}
EVERYTHING = {F.linear, Tensor.mean}
SAME_PLACE = {
    *(F.relu, torch.relu, Tensor.relu, torch.tanh, Tensor.tanh, torch.sigmoid, F.dropout, F.batch_norm, response_norm),
    *(torch.cat, Tensor.chunk, Tensor.flatten, Tensor.view, Tensor.to, Tensor.float, Tensor.contiguous),
    *(Tensor.add, Tensor.sub, Tensor.mul, Tensor.neg, torch.einsum),
}
