"""How does a class's map look on a picture? Grey, and from orange to yellow where the picture speaks for the class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convnet.look import draw
from convnet.look.cam import ClassMap

LETTERS = 18  # of a class's name
TILE = 1.75  # inches
SAID = {
    "CAM": "the last maps by the class's weights; the mean, with its bias, is the logit",
    "Grad-CAM": "maps by the gradient of the class's logit",
}


def draw_cam(found: Sequence[Sequence[ClassMap]], classes: Sequence[str]) -> Figure:
    """A row for each picture: the picture, named by its true class if that is known, and the maps of its classes."""
    n, first = 1 + max(len(maps) for maps in found), found[0][0]
    with draw.figure(TILE * n + 0.7, (TILE + 0.25) * len(found) + 0.6) as made:
        cells = made.subplots(len(found), n, squeeze=False)
        for row, maps in zip(cells, found, strict=True):
            seen = maps[0].picture
            draw.show_picture(row[0], seen.pixels, "" if seen.label is None else _name(classes[seen.label]))
            for axes, each in zip(row[1:], maps, strict=False):
                draw.show_picture(axes, overlay(each), f"{_name(classes[each.label])}: {each.probability:.0%}")
            for axes in row[1 + len(maps) :]:
                axes.set_axis_off()
        ramp = ListedColormap(_mixed(np.linspace(0, 1, 64)[:, None], np.full((64, 1), 0.5)))
        scale = made.colorbar(ScalarMappable(cmap=ramp), ax=cells[0, -1], ticks=[0, 1], fraction=0.06, shrink=0.8)
        scale.ax.set_yticklabels(["0", "its\nlargest"])
        text = f"{first.kind} of {first.layer}: {SAID[first.kind]}."
        draw.note(made, f"{text} Only what speaks for the class, each map by its largest value.")
    return made


def overlay(each: ClassMap) -> NDArray[np.float32]:
    """float32 (crop, crop, 3), 0..1: the picture in grey under the map's positive part."""
    largest = float(each.on_picture.max())
    share = np.clip(each.on_picture / largest, 0, 1) if largest > 0 else np.zeros_like(each.on_picture)
    grey = each.picture.pixels.mean(2, dtype=np.float32, keepdims=True) / 255
    return _mixed(share[..., None], grey)


def _mixed(share: NDArray[Any], grey: NDArray[Any]) -> NDArray[np.float32]:
    """float32 (..., 3): grey (..., 1), 0..1, in softer contrast, under as much colour as `share` (..., 1) says."""
    weak, strong = (np.array(to_rgb(draw.COLOURS[i])) for i in (5, 6))
    alpha = 0.85 * share**0.6
    mixed = (1 - alpha) * (0.25 + 0.6 * grey) + alpha * ((1 - share) * weak + share * strong)
    return np.asarray(mixed, np.float32)


def _name(text: str) -> str:
    return draw.shortened(text, LETTERS)
