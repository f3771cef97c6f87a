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
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.overrides import TorchFunctionMode

from convnet.errors import UsageError, unknown
from convnet.nets import evaluating, stage_of
from convnet.nets.layers import Net, response_norm, within_map_norm
from convnet.visualize.stages import check_maps

Form = Literal["deconv", "guided", "gradient"]
Layer = Callable[[Tensor], Tensor]

RELU = (F.relu, torch.relu, Tensor.relu)
UNCHANGED = (response_norm, within_map_norm, torch.tanh, Tensor.tanh)


class Unit(NamedTuple):
    """One activation of a stage: its map, row and column. Without a place: the whole map.

    A stage of features (N, D) has the unit `map` at row 0, column 0.
    """

    map: int
    row: int | None = None
    column: int | None = None


class Projections(NamedTuple):
    """The units of N pictures, taken down to the pixels."""

    activations: NDArray[np.float32]  # (N,), the unit's; of a whole map its largest
    pixels: NDArray[np.float32]  # (N, H, W, C), signed, on the scale of the input: what the activation is made of


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
    (projected,) = torch.autograd.grad(activation, pixels, (signal * chosen).view_as(activation))
    strongest = maps.masked_fill(chosen == 0, -torch.inf).amax((1, 2, 3))
    return Projections(_array(strongest), _array(projected.permute(0, 2, 3, 1)))


def checked_form(name: str) -> Form:
    """Raises: UsageError for an unknown form."""
    forms: tuple[Form, ...] = get_args(Form)
    if name not in forms:
        raise UsageError(unknown("form", name, forms))
    return forms[forms.index(name)]


def peaks(maps: Tensor, channels: Sequence[int]) -> list[Unit]:
    """The strongest unit of a map for each picture: maps (N, C, H, W) or features (N, D), and N numbers of maps."""
    places = maps.flatten(2) if maps.ndim > 2 else maps[..., None]
    width = maps.shape[-1] if maps.ndim > 2 else 1
    return [Unit(channel, *divmod(int(places[n, channel].argmax()), width)) for n, channel in enumerate(channels)]


class _WaysBack(TorchFunctionMode):
    """Within the block layers have the ways back of a form. `rectifies`: whether a ReLU was among them."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.rectifies = False
        self.ways: dict[Callable[..., object], Callable[[Tensor, Layer], Tensor]] = {}
        if form != "gradient":
            self.ways |= dict.fromkeys(RELU, _Rectified.apply if form == "deconv" else _Guided.apply)
        if form == "deconv":
            self.ways |= dict.fromkeys(UNCHANGED, _Unchanged.apply)

    def __torch_function__(
        self,
        func: Callable[..., Tensor],
        types: object,
        args: tuple[Tensor, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Tensor:
        self.rectifies |= func in RELU
        options = kwargs or {}
        if func not in self.ways:
            return func(*args, **options)
        return self.ways[func](args[0], lambda x: func(x, *args[1:], **options))


class _Unchanged(torch.autograd.Function):
    """A layer that passes the signal unchanged."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layer: Layer) -> Tensor:
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx: BackwardCFunction, *signals: Tensor) -> tuple[Tensor, None]:
        return signals[0], None


class _Rectified(_Unchanged):
    """A layer that passes what is positive of the signal."""

    @staticmethod
    def backward(ctx: BackwardCFunction, *signals: Tensor) -> tuple[Tensor, None]:
        return signals[0].clamp(min=0), None


class _Guided(_Unchanged):
    """A layer that passes what is positive of the signal where its input is positive."""

    @staticmethod
    def backward(ctx: BackwardCFunction, *signals: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return signals[0].clamp(min=0) * (x > 0), None


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


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.detach().float().contiguous().cpu().numpy())  # a device synchronisation
