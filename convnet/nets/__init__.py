"""The nets, by name: make one, list them, look inside one."""

import fnmatch
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError, unknown
from convnet.io import strict_json
from convnet.nets.initial import generator_of
from convnet.nets.layers import Net, record


def _nets() -> Iterator[type[Net]]:
    """The nets of each file of this folder that has some, as its NETS names them."""
    for file in pkgutil.iter_modules(__path__):
        if file.name != "describe":  # which describes them
            yield from getattr(import_module(f"{__name__}.{file.name}"), "NETS", ())


MODELS: dict[str, type[Net]] = {name: net for net in _nets() for name in (net.name, *net.aliases)}


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    init: str = "paper",
    seed: int | None = None,
    **options: object,
) -> Net:
    """A net with fresh weights, on the CPU, in training mode.

    num_classes, in_channels: None is the paper's. init: one of the net's `inits`; "paper" is every net's. seed: the
    weights are a function of it; None draws one from torch's global generator. options: the net's own, as
    `output="linear"`.

    Raises: UsageError for a name, an init or an option that isn't known, or that doesn't fit the others.
    """
    given = {"num_classes": num_classes, "in_channels": in_channels}
    sizes = {size: value for size, value in given.items() if value is not None}
    for size, value in sizes.items():
        if value < 1:
            raise UsageError(f"{size} is {value}; it must be at least 1")
    generator = generator_of(seed)
    net = make(name, options, **sizes)
    net.initialize(init, generator)
    return net


def model(name: str) -> type[Net]:
    """The class of a net. Raises: UsageError for an unknown name."""
    if name == LinearClassifier.name:
        return LinearClassifier
    if name not in MODELS:
        raise UsageError(unknown("net", name, MODELS))
    return MODELS[name]


def make(name: str, options: Mapping[str, object], **sizes: int) -> Net:
    """A net with torch's initial weights. Raises: UsageError for an unknown net, or an option that it lacks."""
    net: Callable[..., Net] = model(name)
    parameters = inspect.signature(net).parameters
    known = [option for option in parameters if option not in ("num_classes", "in_channels")]
    for option in options:
        if option not in parameters and net is not LinearClassifier:
            text = unknown("option", option, known) if known else f"unknown option '{option}': it has none"
            raise UsageError(f"{name}: {text}")
    with torch.random.fork_rng(devices=[]):  # torch's own initial values are sampled and thrown away
        return net(**sizes, **options)


def recipe_of(name: str, pictures: int | None = None) -> str:
    """The name of the built-in recipe that a net is trained by, with so many training pictures; None is enough of them.

    Raises: UsageError for an unknown net.

    >>> recipe_of("vgg16"), recipe_of("alexnet_tanh"), recipe_of("alexnet_tanh", 4000)
    ('vgg_d', 'alexnet', 'alexnet_small')
    """
    net = model(name)
    if net.small_recipe and pictures is not None and pictures < net.small_set:
        return net.small_recipe
    return net.recipe or net.name


def list_models(pattern: str = "*") -> list[str]:
    """The names of the nets that match a shell pattern, in alphabetical order.

    >>> list_models("lenet*")
    ['lenet5']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def trace(net: Net, images: Tensor, stages: Iterable[str] | None = None) -> dict[str, Tensor]:
    """{stage: activation} in eval mode and without gradients; the net is left as it was.

    stages: None is each stage of the net, in its order; else these, in this order; no others are held. Where a net has
    columns, "conv2.0" and "conv2.1" are the two columns' maps of conv2, and so for every stage but the last. The pass
    ends with the last of `stages`, where each is a whole stage.

    Raises: UsageError for a stage that the net doesn't have.
    """
    selected = None if stages is None else list(stages)
    activations: dict[str, Tensor] = {} if selected is None else SelectedStages(selected, end=True)
    with torch.no_grad(), evaluating(net), suppress(_Reached):
        net(images, activations)
    return activations if selected is None else {stage: stage_of(net, activations, stage) for stage in selected}


class SelectedStages(dict[str, Tensor]):
    """What a net fills with its stages; of those that aren't selected it keeps the name, not the activation.

    end: whether the net's pass ends when it has them all.
    """

    def __init__(self, selected: Sequence[str], end: bool = False) -> None:
        super().__init__()
        self.selected = {*selected, *(stage.rpartition(".")[0] for stage in selected)}
        self.wanted, self.end = set(selected), end

    def __setitem__(self, stage: str, x: Tensor) -> None:
        super().__setitem__(stage, x if stage in self.selected else x.new_empty(0))
        if self.end and self.wanted <= self.keys():
            raise _Reached


class _Reached(Exception):  # noqa: N818 - no error: the pass of a net ends here
    pass


def features(net: Net, images: Tensor, stage: str) -> Tensor:
    """The activation of a stage as features (N, D), in eval mode and without gradients; pictures (N, C, H, W) at once.

    Raises: UsageError for a stage that the net doesn't have.
    """
    return trace(net, images, [stage])[stage].flatten(1)


@contextmanager
def evaluating(net: Net) -> Iterator[None]:
    """Within the block the net is in eval mode; then it is as it was."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def stage_of(net: Net, activations: dict[str, Tensor], stage: str) -> Tensor:
    """The activation of a stage, or of a column of it, among all that a net recorded, as `trace` names them.

    Raises: UsageError for a stage that the net doesn't have.
    """
    if stage in activations:
        return activations[stage]
    known = list(activations)
    whole, _, column = stage.rpartition(".")
    columns = [str(i) for i in range(net.columns)] if net.columns > 1 else []
    if whole in known[:-1] and column in columns:
        return activations[whole].chunk(net.columns, 1)[int(column)]
    if "." in stage and columns:
        known += [f"{whole}.{column}" for whole in known[:-1] for column in columns]
    raise UsageError(unknown("stage", stage, known))


class LinearClassifier(Net):
    """Pictures (N, C, side, side) to logits (N, num_classes): a linear layer on the features of other nets' stages.

    Each net ends at its stage: the layers of later ones are left out. What `convnet fit-classifier` makes.
    """

    name = "linear_classifier"
    last: ClassVar[str] = "classes"
    fixed: ClassVar[str] = "a linear classifier has a weight for each place of its features"

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int | None = None,
        *,
        net: str = "",
        stage: str = "",
        side: int = 0,
        normalize: bool = True,
        own_classes: int | None = None,
        others: str = "[]",
        **options: object,
    ) -> None:
        """net, options, own_classes: the first net's. stage: one of its stages. side: of its pictures, pixels. others:
        JSON, of each further net what `Other` takes. normalize: each net's features are divided by their Euclidean
        length. Raises: UsageError."""
        sizes = {} if in_channels is None else {"in_channels": in_channels}
        classes = {} if own_classes is None else {"num_classes": own_classes}
        body, shape = _until(net, stage, side, {**options, **sizes, **classes})
        super().__init__(num_classes, body.in_channels)
        self.stage, self.normalize, self.input_size, self.sides = stage, normalize, side, range(side, side + 1)
        self.paper, self.year = body.paper, body.year
        self.relu_inside, self.float32_input = body.relu_inside, body.float32_input
        self.body = body
        further = [Other(**each) for each in strict_json.value(others)]
        self.others = nn.ModuleList(further)
        self.classes = nn.Linear(shape.numel() + sum(other.n_features for other in further), num_classes)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        parts = [_reached(self.body, images, self.stage, stages), *(other(images) for other in self.others)]
        parts = [F.normalize(part) if self.normalize else part for part in parts]
        x = record(stages, "features", torch.cat(parts, 1))
        return record(stages, "classes", self.classes(x))


class Other(nn.Module):
    """Images of another net's preprocessing, at least as large, to this one's features: (N, n_features).

    Its crop is the middle of the other one; what is subtracted, and the scale, are turned into its own by a factor and
    by `bias`, (C, 1, 1) or, where one subtracts a mean picture, (C, side, side).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, net: str, stage: str, side: int, options: Mapping[str, object], mean: int = 1) -> None:
        """mean: the side of `bias`. Raises: UsageError."""
        super().__init__()
        self.body, shape = _until(net, stage, side, options)
        self.stage, self.side, self.n_features = stage, side, shape.numel()
        self.register_buffer("weight", torch.ones(1))
        self.register_buffer("bias", torch.zeros(self.body.in_channels, mean, mean))

    def forward(self, images: Tensor) -> Tensor:
        edge = (images.shape[-1] - self.side) // 2
        own = images[..., edge : edge + self.side, edge : edge + self.side] * self.weight + self.bias
        return _reached(self.body, own.to(images.dtype), self.stage, None)


def _until(net: str, stage: str, side: int, options: Mapping[str, object]) -> tuple[Net, torch.Size]:
    """A net without the layers after a stage, and that stage's shape for a picture. Raises: UsageError."""
    with torch.device("meta"):
        empty = make(net, options)
        seen = trace(empty, torch.empty(1, empty.in_channels, side, side))
    if stage not in seen:
        raise UsageError(unknown("stage", stage, seen))
    body = make(net, options)
    for later in list(seen)[list(seen).index(stage) + 1 :]:
        if later in dict(body.named_children()):
            setattr(body, later, nn.Identity())
    return body, seen[stage].shape[1:]


def _reached(body: Net, images: Tensor, stage: str, stages: dict[str, Tensor] | None) -> Tensor:
    """(N, D): the activation of a stage; the net's pass ends there."""
    until = _Until(stage, stages)
    with suppress(_Reached):
        body.forward(images, until)  # torch.export loses count of a module whose call an error ends
    return until.x.flatten(1)


class _Until(dict[str, Tensor]):
    """What a net fills with its stages until it comes to `stage`; `outer` is told each."""

    x: Tensor

    def __init__(self, stage: str, outer: dict[str, Tensor] | None) -> None:
        super().__init__()
        self.stage, self.outer = stage, outer

    def __setitem__(self, name: str, x: Tensor) -> None:
        record(self.outer, name, x)
        if name == self.stage:
            self.x = x
            raise _Reached
