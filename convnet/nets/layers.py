"""The base classes of all nets, and layers that PyTorch lacks: normalisation, fully connected layers that slide.

`Net` lists what a net's class tells the rest of the project. A stage is a module of its own, of the stage's name, so
that whoever hooks it finds what `trace` gives; ReLU, response norm and pooling are one pass where nobody does.
"""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as any_module
from torch.overrides import handle_torch_function, has_torch_function_unary

from convnet.errors import UsageError, unknown
from convnet.io.strict_json import Json
from convnet.kernels import ops, winograd
from convnet.kernels.ops import response_norm as response_norm
from convnet.kernels.plain import Block, norm_in_groups, wide
from convnet.nets.dropout import checked_rate, dropout
from convnet.nets.initial import NONE, contiguous, gaussian, generator_of, renew_layers, uniform_by_fan_in
from convnet.nets.published import Known


class LRN(NamedTuple):
    """The constants of `response_norm`; alpha multiplies the plain sum of n squares."""

    n: int
    k: float
    alpha: float
    beta: float


NO_LRN = LRN(n=0, k=1.0, alpha=0.0, beta=0.0)
PAPER_LRN = LRN(n=5, k=2.0, alpha=1e-4, beta=0.75)  # AlexNet 3.3
CAFFE_LRN = LRN(n=5, k=1.0, alpha=1e-4 / 5, beta=0.75)  # of its AlexNet, CaffeNet and GoogLeNet; it divides alpha by n


class Net(nn.Module):
    """What every net is: a module that returns logits (N, K) and can say what happened on the way.

    `forward(images, stages)` fills the dict `stages`, when it is given one, with each stage's activation in order.
    """

    name: str  # as `create_model` and errors call it
    aliases: ClassVar[tuple[str, ...]] = ()  # and other names of it
    paper: str  # its authors and year, or the program whose net it is
    year: int
    recipe: ClassVar[str] = ""  # by which it is trained; "" is that of its own name
    small_recipe: ClassVar[str] = ""  # by which it is where its own doesn't start: on fewer pictures than `small_set`
    small_set: ClassVar[int] = 100_000

    in_channels: int
    input_size: int  # pixels: the side of the paper's square input
    sides: range  # pixels: those of the pictures that it takes
    num_classes: int
    last: ClassVar[str]  # the prefix of the last layer's parameters: what a new task replaces
    inits: ClassVar[tuple[str, ...]] = ("paper",)  # the names that `initialize` knows
    std: ClassVar[Mapping[str, float]] = NONE  # of a layer's initial weights; elsewhere 0.01
    bias: ClassVar[Mapping[str, float]] = NONE  # a layer's initial biases; elsewhere 0
    columns: int = 1  # equal parts of each stage's maps, by which `trace` takes a stage apart; the last stage has none

    normed: ClassVar[tuple[str, ...]] = ()  # the layers in columns whose maps are normalised across them
    dropout: float = 0.0  # the share of units dropped in training, where a net has one rate
    dropped: ClassVar[tuple[str, ...]] = ()  # the stages of which that share is
    float32_input: bool = False  # the first layer computes in float32, whatever the others do, and wants such pictures
    slides: bool = False  # over pictures that are larger than its own: see `sliding`
    fixed: ClassVar[str] = ""  # why it can't slide, where it can't
    other_sizes: ClassVar[str] = ""  # what to do about pictures of other sides
    loss_weights: Mapping[str, float] = MappingProxyType({"logits": 1.0})  # of the heads, in training
    starts: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # {another net: the layers that its training lends}

    # What Caffe must be told, as a stage's name and layer don't say it
    lrn: LRN = PAPER_LRN  # of its response normalisation
    norm_columns: int = 1  # equal parts of the maps, at whose edges the norms' windows end
    within: ClassVar[Mapping[str, LRN]] = MappingProxyType({})  # {stage that normalises within each map: constants}
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, False)  # size, stride, whether partial windows are kept
    average_pools: ClassVar[tuple[str, ...]] = ()  # the others take the largest value, but for those of whole maps
    relu_inside: bool = False  # the stage that has a convolution's name is what follows its ReLU
    caffe_channels: ClassVar[Literal["rgb", "bgr"]] = "bgr"  # the order of colours that Caffe's models of it read
    caffe_note: ClassVar[str] = ""  # what a reader of Caffe's weights must know

    # Others' weights
    layer_names: Mapping[str, Mapping[str, str]] = MappingProxyType({})  # {writer: {layer: its name there}}
    torchvision: str = ""  # the nearest net of torchvision
    pixels_note: ClassVar[str] = ""  # why a state dict of it doesn't say how its pixels were scaled
    published: ClassVar[Mapping[str, Known]] = MappingProxyType({})  # {name: a file of its own weights}

    def __init__(
        self, num_classes: int | None = None, in_channels: int | None = None, dropout: float | None = None
    ) -> None:
        """None is the class's own. Raises: UsageError for a dropout that isn't from 0 to below 1."""
        super().__init__()
        if num_classes is not None:
            self.num_classes = num_classes
        if in_channels is not None:
            self.in_channels = in_channels
        if dropout is not None:
            self.dropout = checked_rate(dropout)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        raise NotImplementedError

    def run(self, x: Tensor, stages: dict[str, Tensor] | None, *names: str) -> Tensor:
        """The stages `names` one after the other, each noted. ReLU, response norm and max-pooling that follow one
        another are one pass where that is at hand and nobody asks for what lies between. Paper: AlexNet 3.5."""
        asked = set(getattr(stages, "selected", names)) if isinstance(stages, dict) else set()
        at, by_layer = 0, ops.layer_by_layer(x)
        while at < len(names):
            layers = [getattr(self, name) for name in names[at : at + LONGEST]]
            n, block = (1, None) if by_layer else in_one_pass(layers)
            if not asked.isdisjoint(names[at : at + n - 1]):
                n, block = in_one_pass(layers[:1])
            for name in names[at : at + n - 1]:
                record(stages, name, x)  # the name alone
            x = ops.norm_pool(x, block) if block else connected(layers[0], x)
            at += n
            record(stages, names[at - 1], x)
        return x

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """All outputs by name; "logits" is always one of them."""
        return {"logits": self(images)}

    def initialize(self, init: str, generator: torch.Generator) -> None:
        """Sample all weights anew by one of `inits`; they are a function of the generator's state alone.

        Raises: UsageError for another name.
        """
        if init not in self.inits:
            raise UsageError(unknown("init", init, self.inits))
        with torch.no_grad(), contiguous(self):
            self.sample_weights(init, generator)

    def reset_classifier(self, num_classes: int, init: str = "paper", seed: int | None = None) -> None:
        """Fresh weights for so many classes in the layers that tell them apart; all else stays. init, seed: as
        `create_model`'s. Raises: UsageError."""
        last = [path for path, _ in self.named_modules() if self.is_of_classes(f"{path}.weight")]
        renew_layers(self, last, num_classes, lambda fresh: fresh.initialize(init, generator_of(seed)))
        self.num_classes = num_classes

    def sample_weights(self, init: str, generator: torch.Generator) -> None:
        """By "paper" N(0, `std`) and the constants `bias`, layer by layer; by "fan-in" `uniform_by_fan_in`."""
        if init == "fan-in":
            uniform_by_fan_in(self, self.last, generator)
        else:
            gaussian(self, generator, self.std, self.bias)

    def options_of(self, shapes: Mapping[str, tuple[int, ...]]) -> Json:
        """The options of its own with which a net has tensors of these names and shapes."""
        return {}

    def is_of_classes(self, name: str) -> bool:
        """Whether a tensor belongs to the classes that the net tells apart, so that it's worth nothing for others."""
        return name.rpartition(".")[0] == self.last


class Chain(Net):
    """A net whose stages follow one another.

    chain: their names, in order. Layers that learn are added by the net, in the order in which their weights are
    stored; the others by `add_functions`, each by what its name begins with. What is `dropped` is followed by dropout.
    """

    chain: tuple[str, ...]
    not_slid: ClassVar[tuple[str, ...]] = ()  # stages that it leaves out where it slides

    def add_functions(self) -> None:
        """The layers of the chain that learn nothing, but for those that are there already."""
        for name in self.chain:
            if name not in self._modules and (layer := self._function(name)):
                self.add_module(name, layer)

    def _function(self, name: str) -> nn.Module | None:
        size, stride, ceil = self.pooling
        if name in self.within:
            return WithinMapNorm(*self.within[name])
        if name in self.average_pools:  # partial windows count the pixels inside, as in cuda-convnet
            return nn.AvgPool2d(size, stride, ceil_mode=ceil, count_include_pad=False)
        match name.rstrip("0123456789_"):
            case "relu":
                return nn.ReLU()
            case "tanh":
                return nn.Tanh()
            case "norm":
                return ResponseNorm(*self.lrn, groups=self.norm_columns)
            case "pool":
                return nn.MaxPool2d(size, stride, ceil_mode=ceil)
        return None

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        check_images(images, self)
        names: list[str] = []
        x = images
        for name in self.chain:
            if self.slides and name in self.not_slid:
                continue
            names.append(name)
            if name in self.dropped:
                x = dropout(self.run(x, stages, *names), self.dropout, self.training)
                names = []
        return self.run(x, stages, *names)


def without(chain: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """A chain's stages but for some."""
    return tuple(name for name in chain if name not in names)


def record(stages: dict[str, Tensor] | None, name: str, x: Tensor) -> Tensor:
    """`x` itself, noted in `stages` under its name if anyone asked."""
    if isinstance(stages, dict):  # torch.fx gives a proxy
        stages[name] = x
    return x


NO_LIMIT = 2**31  # `range(smallest, NO_LIMIT)`: sides without an upper limit


def check_images(images: Tensor, net: Net) -> None:
    """Hold the pictures against what a net can take: on its device, (N, its channels, H, W) with H and W in `sides`.

    A range that ends at `NO_LIMIT` is said as "at least"; a net that slides takes all larger ones too.

    Raises: UsageError with the shape and the rule.
    """
    if ops.is_proxy(images):
        return
    shape = tuple(images.shape)
    if images.ndim != 4:
        raise UsageError(f"{net.name} takes pictures (N, C, H, W), got a tensor of shape {shape}")
    if images.shape[1] != net.in_channels:
        raise UsageError(f"{net.name} takes {net.in_channels} channel(s), got {images.shape[1]}: shape {shape}")
    height, width = images.shape[2:]
    sides = range(net.sides.start, NO_LIMIT) if net.slides else net.sides
    if height not in sides or width not in sides:
        rule = f"{sides[0]}" if len(sides) == 1 else f"{sides[0]} to {sides[-1]}"
        rule = f"at least {sides[0]}" if sides.stop == NO_LIMIT else rule
        raise UsageError(
            f"{net.name} takes pictures with sides of {rule} pixels, got {height} x {width}{net.other_sizes}"
        )
    device = next(net.parameters()).device
    if images.device != device:
        raise UsageError(f"{net.name} is on {device}, the pictures on {images.device}; move one: net.to(images.device)")


def connected(layer: nn.Module, x: Tensor) -> Tensor:
    """A fully connected layer on features (N, D) or on maps (N, C, H, W), as `linear`; other layers as they are called.
    One in columns (`ConnectedColumns`) does so column by column."""
    if type(layer) is nn.Linear:
        return linear(layer, x)
    y = by_winograd(layer, x) if type(layer) is nn.Conv2d and not hooked(layer) else None
    called: Tensor = layer(x) if y is None else y
    return called


def by_winograd(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """A convolution by Winograd's form; None where that doesn't serve (kernels/winograd.py)."""
    if ops.layer_by_layer(x):
        return None
    before, stride, *others = (layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode)
    if others != [(1, 1), 1, "zeros"] or stride[0] != stride[1] or isinstance(before, str) or before[0] != before[1]:
        return None
    serves = winograd.serves(x, layer.weight, before[0], stride[0])
    return ops.tiled_conv(x, layer.weight, layer.bias, before[0], stride[0]) if serves else None


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A layer's product with features (N, D), or with maps (N, C, H, W), which it reads in the order (C, H, W).

    On maps that are larger than its own it slides as a convolution: (N, D', h, w). Paper: VGG 3.2.
    """
    if ops.is_proxy(x):  # of a net's own size
        return _product(layer, x.flatten(1))
    if x.ndim == 2:
        return _product(layer, x)
    side = math.isqrt(layer.in_features // x.shape[1])
    height, width = x.shape[2:]
    if height == width == side:
        return _product(layer, x.flatten(1))
    windows = x.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5)  # (N, h, w, C, side, side)
    y = _product(layer, windows.reshape(-1, layer.in_features))  # in two dimensions: see docs/log.md
    return y.reshape(*windows.shape[:3], -1).permute(0, 3, 1, 2)


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    if type(layer) is nn.Linear and (hooked(layer) or ops.layer_by_layer(x)):
        y: Tensor = layer(x)
        return y
    return ops.linear(x, layer.weight, layer.bias)


def hooked(layer: nn.Module) -> bool:
    """Whether someone waits for the layer's own call, which a faster form would not make, or has put another there."""
    own = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(own) or "forward" in layer.__dict__ or bool(any_module._has_any_global_hook())


def sliding(net: Net) -> Net:
    """`net` with the same layers for pictures of its own size and every larger one: dense evaluation.

    Its fully connected layers slide over the maps as convolutions, so that the logits of larger pictures are a map of
    class scores (N, K, h, w); nets that end in global average pooling give (N, K), averaged over the picture.

    Raises: UsageError for a net that can't slide. Paper: VGG 3.2.
    """
    if net.fixed:
        raise UsageError(f"{net.fixed}, so it cannot slide over larger pictures; choose crops with --views")
    slid = copy(net)  # its own flags, the same weights
    slid.slides = True
    return slid


class ResponseNorm(nn.Module):
    """`response_norm` of (N, C, ...), in `groups` equal parts of the maps, at whose edges its windows end."""

    def __init__(self, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, groups: int = 1) -> None:
        super().__init__()
        self.n, self.k, self.alpha, self.beta, self.groups = n, k, alpha, beta, groups

    @property
    def constants(self) -> dict[str, float]:
        """By the names that they have in a `Block`."""
        return {name: getattr(self, name) for name in ("n", "k", "alpha", "beta", "groups")}

    def forward(self, x: Tensor) -> Tensor:
        return norm_in_groups(x, Block(**self.constants), response_norm)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.constants.items())


class WithinMapNorm(nn.Module):
    """`within_map_norm` of (N, C, H, W)."""

    def __init__(self, size: int, k: float, alpha: float, beta: float) -> None:
        super().__init__()
        self.size, self.k, self.alpha, self.beta = size, k, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return within_map_norm(x, self.size, self.k, self.alpha, self.beta)

    def extra_repr(self) -> str:
        return f"size={self.size}, k={self.k:g}, alpha={self.alpha:g}, beta={self.beta:g}"


LONGEST = 4  # layers that can be one pass


def in_one_pass(layers: Sequence[nn.Module]) -> tuple[int, Block | None]:
    """How many of the first of `layers` are [ReLU,] [response norm,] max-pooling [, ReLU], as one pass does them, and
    what it does; (1, None) for others, and for those whose own call somebody waits for."""
    done: dict[str, Any] = {}
    n = 0
    for layer in layers:
        if hooked(layer):
            break
        kind = type(layer)  # exactly: another's forward may do anything
        if kind is nn.ReLU and not done:
            done["relu_before"] = True
        elif isinstance(layer, ResponseNorm) and kind is ResponseNorm and not {"n", "size"} & done.keys():
            done |= layer.constants
        elif isinstance(layer, nn.MaxPool2d) and kind is nn.MaxPool2d and "size" not in done and _is_plain(layer):
            done |= {"size": layer.kernel_size, "stride": layer.stride, "ceil": layer.ceil_mode}
        elif kind is nn.ReLU and "size" in done and "relu_before" not in done:
            done["relu_after"] = True
            n += 1
            break
        else:
            break
        n += 1
    return (n, Block(**done)) if "size" in done else (1, None)


def _is_plain(pool: nn.MaxPool2d) -> bool:
    """Whether a pooling is square, without padding, and says no places."""
    sizes = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    return all(isinstance(each, int) for each in sizes) and sizes[2:] == (0, 1) and not pool.return_indices


def within_map_norm(x: Tensor, size: int, k: float, alpha: float, beta: float) -> Tensor:
    """Local response normalisation within each map, of (N, C, H, W); `x`'s dtype; the sums are float32 or better.

    Pixel (i, j) is divided by (k + alpha * sum of the squares in the size x size window of its own map)^beta: the plain
    sum, over the pixels of the window that exist. The window begins size // 2 above and left of the pixel.

    cuda-convnet's settings and Caffe's WITHIN_CHANNEL hold size^2 times this alpha.
    """
    if has_torch_function_unary(x):  # as in `response_norm`
        seen: Tensor = handle_torch_function(within_map_norm, (x,), x, size, k, alpha, beta)
        return seen
    x_wide, before = wide(x), size // 2
    after = size - 1 - before
    means = F.avg_pool2d(F.pad(x_wide.square(), (before, after, before, after)), size, stride=1)
    return (x_wide * (k + alpha * size**2 * means) ** -beta).to(x.dtype)
