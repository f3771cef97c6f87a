"""Which places of a picture speak for a class? Class activation maps, and Grad-CAM for nets that have none.

CAM (Zhou, Khosla, Lapedriza, Oliva and Torralba 2016, eq. 1 and 2). Nets that end in global average pooling hold a map
for each class: M_k = sum over the last maps c of w_kc A_c. Its mean plus the class's bias is the class's logit. NIN's
last maps are the M_k themselves, without bias.

Grad-CAM (Selvaraju and others 2017, eq. 1 and 2). For every other net, and for any stage with maps: M_k = sum over c of
a_kc A_c, with a_kc the mean over the places of the derivative of the logit k by A_c. On the last maps of a net that
ends in global average pooling it is CAM divided by the number of places. The paper shows its positive part alone, and
so do our pictures, of both; the arrays keep both signs.

Which of the two a net gets is found on the picture itself: whether its logits are the means of its last maps, or linear
in these means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets.layers import Net
from convnet.visualize import plot
from convnet.visualize.stages import check_finite, check_has_maps, last_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["CAM", "Grad-CAM"]


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Where a picture speaks for a class."""

    picture: Seen
    kind: Kind
    layer: str  # the stage whose maps A_c it is made of
    label: int
    logit: float
    probability: float  # 0..1
    map: NDArray[np.float32]  # (h, w), in the logit's unit (Grad-CAM: in that of logit per place)
    bias: float  # CAM: the mean of `map` plus this is the logit; Grad-CAM: NaN
    on_picture: NDArray[np.float32]  # (crop, crop): the map, bilinear


def cam(
    net: TrainedNet, picture: Seen, *, labels: tuple[int, ...] | None = None, layer: str | None = None, top: int = 2
) -> list[ClassMap]:
    """The maps of the classes `labels`, in their order; None: of the `top` most probable, best first.

    layer: None is CAM where the net ends in global average pooling, else Grad-CAM at the last stage with maps, after
    its ReLU; a stage is Grad-CAM there. The net is in eval mode; all is float32.

    Raises: UsageError for a stage without maps; NotFinite.
    """
    image = net.images([picture]).requires_grad_()
    stages: dict[str, Tensor] = {}
    with torch.enable_grad():
        logits = net.net(image, stages)[0]
    numbers = logits.detach()
    check_finite("the net's output", numbers[None].cpu().numpy(), [picture.name])
    if layer is not None:
        check_has_maps(stages, layer)
    if labels is None:
        labels = tuple(numbers.argsort(descending=True, stable=True)[:top].tolist())
    head = _head(net.net, stages) if layer is None else None
    name = head.stage if head else layer or last_maps(stages)
    side = net.preprocessing.crop
    class_maps = []
    for label in labels:
        if head:
            weights, bias = head.weights[label], head.biases[label].item()
        else:
            (gradient,) = torch.autograd.grad(logits[label], stages[name], retain_graph=True)
            weights, bias = gradient[0].mean((1, 2)), float("nan")
        values = torch.einsum("chw,c->hw", stages[name].detach()[0], weights.detach())
        large = F.interpolate(values[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
        class_maps.append(
            ClassMap(
                picture=picture,
                kind="CAM" if head else "Grad-CAM",
                layer=name,
                label=label,
                logit=float(numbers[label]),
                probability=float(numbers.double().softmax(0)[label]),
                map=values.cpu().numpy(),  # a device synchronisation
                bias=bias,
                on_picture=large.cpu().numpy(),
            )
        )
    return class_maps


class _Head(NamedTuple):
    """Logits that are `weights` (K, C) of the means of a stage's maps, plus `biases` (K,)."""

    stage: str
    weights: Tensor
    biases: Tensor


def _head(net: Net, stages: dict[str, Tensor]) -> _Head | None:
    """The head of a net that ends in global average pooling; None for others."""
    *_, third, second, first = stages
    logits, below, n = stages[first], stages[second], net.num_classes
    if below.ndim == 4 and below.shape[1] == n and _equal(below.mean((2, 3)), logits):
        return _Head(second, torch.eye(n, device=below.device), torch.zeros(n, device=below.device))
    last, maps = net.get_submodule(net.last), stages[third]
    if not isinstance(last, nn.Linear) or below.ndim != 2 or maps.ndim != 4 or maps.shape[1] != last.in_features:
        return None
    return _Head(third, last.weight, last.bias) if _equal(last(maps.mean((2, 3))), logits) else None


def _equal(a: Tensor, b: Tensor) -> bool:
    """Up to rounding."""
    return float((a - b).detach().abs().max()) <= 1e-4 * float(b.detach().abs().max())


LETTERS = 18  # of a class's name
TILE = 1.75  # inches
METHODS = {
    "CAM": "the last maps by the class's weights; the mean, with its bias, is the logit",
    "Grad-CAM": "maps by the gradient of the class's logit",
}


def draw_cam(rows: Sequence[Sequence[ClassMap]], classes: Sequence[str]) -> "Figure":
    """A row for each picture: the picture, named by its true class if that is known, and the maps of its classes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    n, first = 1 + max(len(maps) for maps in rows), rows[0][0]
    names = [plot.shortened(name, LETTERS) for name in classes]
    with plot.figure(TILE * n + 0.7, (TILE + 0.25) * len(rows) + 0.6) as fig:
        cells = fig.subplots(len(rows), n, squeeze=False)
        for row, maps in zip(cells, rows, strict=True):
            seen = maps[0].picture
            plot.show_picture(row[0], seen.pixels, "" if seen.label is None else names[seen.label])
            for axes, each in zip(row[1:], maps, strict=False):
                plot.show_picture(axes, overlay(each), f"{names[each.label]}: {each.probability:.0%}")
            for axes in row[1 + len(maps) :]:
                axes.set_axis_off()
        ramp = ListedColormap(_mixed(np.linspace(0, 1, 64)[:, None], np.full((64, 1), 0.5)))
        scale = fig.colorbar(ScalarMappable(cmap=ramp), ax=cells[0, -1], ticks=[0, 1], fraction=0.06, shrink=0.8)
        scale.ax.set_yticklabels(["0", "its\nlargest"])
        text = f"{first.kind} of {first.layer}: {METHODS[first.kind]}."
        plot.note(fig, f"{text} Only what speaks for the class, each map by its largest value.")
    return fig


def overlay(shown: ClassMap) -> NDArray[np.float32]:
    """float32 (crop, crop, 3), 0..1: the picture in grey under the map's positive part."""
    largest = float(shown.on_picture.max())
    share = np.clip(shown.on_picture / largest, 0, 1) if largest > 0 else np.zeros_like(shown.on_picture)
    grey = shown.picture.pixels.mean(2, dtype=np.float32, keepdims=True) / 255
    return _mixed(share[..., None], grey)


def _mixed(share: NDArray[np.floating], grey: NDArray[np.floating]) -> NDArray[np.float32]:
    """float32 (..., 3): grey (..., 1), 0..1, in softer contrast, under as much colour as `share` (..., 1) says."""
    from matplotlib.colors import to_rgb

    weak, strong = (np.array(to_rgb(plot.COLOURS[i])) for i in (5, 6))
    alpha = 0.85 * share**0.6
    mixed = (1 - alpha) * (0.25 + 0.6 * grey) + alpha * ((1 - share) * weak + share * strong)
    return np.asarray(mixed, np.float32)
