"""Where do lines and ticks of a chart lie? Curves as points of an SVG, so that a page draws them in its own colours."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convnet.io.strict_json import Json
from convnet.visualize.curves import Curves

WIDTH, HEIGHT = 420, 230  # of the drawing
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 26  # margins
TICKS = 5  # about so many on an axis


def charts(run: Curves) -> list[Json]:
    """Loss and errors of a run, for the page: lines as points, ticks, changes of the rate, and the values."""
    return [_chart(what, run, lines) for what, lines in run.lines().items()]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about TICKS of them.

    >>> ticks(0, 0.9), ticks(0, 2.3)
    ([0.0, 0.2, 0.4, 0.6, 0.8], [0.0, 0.5, 1.0, 1.5, 2.0])
    """
    rough = max(high - low, 1e-9) / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _chart(what: str, run: Curves, lines: dict[str, NDArray[np.float64]]) -> Json:
    share = what == "error"
    high = max((float(values[np.isfinite(values)].max()) for values in lines.values()), default=1.0) or 1.0
    first, last = int(run.epochs[0]), int(run.epochs[-1])

    def x(epoch: float) -> float:
        part = (epoch - first) / (last - first) if last > first else 0.5
        return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / high * (HEIGHT - TOP - BOTTOM), 1)

    marks = [int(tick) for tick in ticks(first, last) if tick == int(tick)] if last > first else [first]
    return {
        "title": what.capitalize(),
        "share": share,
        "epochs": run.epochs.tolist(),
        "x": [x(epoch) for epoch in run.epochs.tolist()],
        "lines": [
            {
                "name": name,
                "points": _points(run.epochs, values, x, y),
                "values": [value if math.isfinite(value) else None for value in values.tolist()],
            }
            for name, values in lines.items()
        ],
        "across": [(x(epoch), str(epoch)) for epoch in marks],
        "up": [(y(tick), f"{tick:.0%}" if share else f"{tick:g}") for tick in ticks(0, high)],
        "drops": [(x(epoch - 0.5), f"{rate:g}") for epoch, rate in run.lr_changes()],
    }


Scale = Callable[[float], float]


def _points(
    epochs: NDArray[np.int64], values: NDArray[np.float64], x: Scale, y: Scale
) -> list[list[tuple[float, float]]]:
    """The pieces of a line that is broken where a value isn't finite."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for epoch, value in zip(epochs.tolist(), values.tolist(), strict=True):
        if math.isfinite(value):
            pieces[-1].append((x(epoch), y(value)))
        else:
            pieces.append([])
    return [piece for piece in pieces if piece]
