"""Which pixels made a unit fire? The deconvnet of Zeiler and Fergus (2013), section 2.1: from a unit to the pixels.

All other activations of the unit's layer are set to zero. Then, layer by layer: unpool (each value goes to its switch,
the place of the window's maximum; what meets there is added, as windows overlap), rectify, filter with the transposed
kernels. Response normalisation is passed unchanged.

No net needs a second description: its own forward pass runs with other ways back through a few kinds of layers, and
autograd takes them. A way back has the incoming signal g and the layer's input x:

layer                    deconv          guided                 gradient
ReLU                     max(g, 0)       max(g, 0) where x > 0  g where x > 0
LRN, within maps too     g               its gradient           its gradient
tanh                     g               its gradient           its gradient
convolution, linear      transposed      transposed             transposed
max-pool                 to the switch   to the switch          to the switch

Averages spread the signal evenly, and batch norm scales it, in all three. Differs: the paper has neither of them, nor
tanh. "guided" is Springenberg and others' (2014), "gradient" Simonyan and others' (2013).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convnet.errors import UsageError, unknown
from convnet.nets import evaluating, stage_of
from convnet.nets.layers import Net, response_norm
from convnet.nets.norms import within_map_norm

Form = Literal["deconv", "guided", "gradient"]
Back = Callable[[Tensor, Tensor], Tensor]  # (incoming signal, the layer's input) -> outgoing signal

RELU = (F.relu, torch.relu, Tensor.relu)
UNCHANGED = (response_norm, within_map_norm, torch.tanh, Tensor.tanh)


class Unit(NamedTuple):
    """One activation of a stage: its map, row and column. Without a place: the whole map.

    A stage of features (N, D) has the unit `map` at row 0, column 0.
    """

    map: int
    row: int | None = None
    column: int | None = None


@dataclass(frozen=True, eq=False)
class Projections:
    """The units of N pictures, taken down to the pixels.

    units: one for each picture. activations: float32 (N,), the unit's; of a whole map its largest.
    pixels: float32 (N, H, W, C), signed, on the scale of the net's input: what the unit's activation is made of.
    """

    stage: str
    form: Form
    units: tuple[Unit, ...]
    activations: NDArray[np.float32]
    pixels: NDArray[np.float32]


def deconv(net: Net, images: Tensor, stage: str, units: Sequence[Unit], form: Form = "deconv") -> Projections:
    """Projects one unit of each picture down to the pixels.

    images: float32 (N, C, H, W), as the net takes them. stage: of the net, or a column of it, as "conv2.0". All forms
    begin with the unit's activation; "deconv" in a net that rectifies begins with max(activation, 0).

    Raises: UsageError for a stage or a unit that the net doesn't have. Paper: Zeiler and Fergus 2.1.
    """
    form = checked_form(form)
    if len(units) != len(images):
        raise UsageError(f"{len(units)} units for {len(images)} pictures: each picture has one")
    pixels = images.detach().requires_grad_()
    stages: dict[str, Tensor] = {}
    with torch.enable_grad(), evaluating(net), _WaysBack(form) as ways:
        net(pixels, stages)
    activation = stage_of(net, stages, stage)
    maps = activation.detach()[..., None, None] if activation.ndim == 2 else activation.detach()
    chosen = _chosen(maps, stage, units)
    signal = maps.clamp(min=0) if form == "deconv" and ways.rectifies else maps
    (found,) = torch.autograd.grad(activation, pixels, (signal * chosen).view_as(activation))
    strongest = maps.masked_fill(chosen == 0, -torch.inf).amax((1, 2, 3))
    return Projections(stage, form, tuple(units), _array(strongest), _array(found.permute(0, 2, 3, 1)))


def checked_form(name: str) -> Form:
    """Raises: UsageError for an unknown form."""
    if name not in get_args(Form):
        raise UsageError(unknown("form", name, get_args(Form)))
    return cast(Form, name)


def peaks(maps: Tensor, channels: Sequence[int]) -> list[Unit]:
    """The strongest unit of a map for each picture: maps (N, C, H, W) or features (N, D), and N numbers of maps."""
    places = maps.flatten(2) if maps.ndim > 2 else maps[..., None]
    width = maps.shape[-1] if maps.ndim > 2 else 1
    found = [int(places[n, channel].argmax()) for n, channel in enumerate(channels)]
    return [Unit(channel, *divmod(place, width)) for channel, place in zip(channels, found, strict=True)]


class _WaysBack(TorchFunctionMode):
    """Within the block layers have the ways back of a form. `rectifies`: whether a ReLU was among them."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.rectifies = False
        self.ways: dict[Any, Back] = {}
        if form != "gradient":
            self.ways |= dict.fromkeys(RELU, _rectified if form == "deconv" else _guided)
        if form == "deconv":
            self.ways |= dict.fromkeys(UNCHANGED, _unchanged)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.rectifies |= func in RELU
        if func not in self.ways:
            return func(*args, **(kwargs or {}))
        others = args[1:]
        return _Layer.apply(args[0], lambda x: func(x, *others, **(kwargs or {})), self.ways[func])  # type: ignore[no-untyped-call]


class _Layer(torch.autograd.Function):
    """A layer with a way back of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Callable[[Tensor], Tensor], back: Back) -> Tensor:
        ctx.save_for_backward(x)
        ctx.back = back
        return layer(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return cast(Back, ctx.back)(grads[0], ctx.saved_tensors[0]), None, None


def _rectified(signal: Tensor, x: Tensor) -> Tensor:
    return signal.clamp(min=0)


def _guided(signal: Tensor, x: Tensor) -> Tensor:
    return signal.clamp(min=0) * (x > 0)


def _unchanged(signal: Tensor, x: Tensor) -> Tensor:
    return signal


def _chosen(maps: Tensor, stage: str, units: Sequence[Unit]) -> Tensor:
    """1 at the units and 0 elsewhere, of the shape of the maps (N, C, H, W). Raises: UsageError."""
    chosen = torch.zeros_like(maps)
    for n, (channel, row, column) in enumerate(units):
        check_maps(stage, maps.shape[1], [channel])
        if row is None or column is None:
            chosen[n, channel] = 1
            continue
        if not (0 <= row < maps.shape[2] and 0 <= column < maps.shape[3]):
            size = f"{maps.shape[2]} x {maps.shape[3]}"
            raise UsageError(f"{stage} has maps of {size}, no unit in row {row}, column {column}; the first is 0")
        chosen[n, channel, row, column] = 1
    return chosen


def check_maps(stage: str, n_maps: int, chosen: Sequence[int]) -> None:
    """Raises: UsageError for a map that the stage doesn't have."""
    for channel in chosen:
        if not 0 <= channel < n_maps:
            raise UsageError(f"{stage} has the maps 0 to {n_maps - 1}, no map {channel}")


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.detach().float().contiguous().cpu().numpy())  # a device synchronisation
