"""How does a picture of results look? One style for all: fonts, colours that colour-blind people can tell apart, files.

Arrays come in, PNG or SVG goes out; nothing else draws. The colours are Okabe and Ito's (2008); for amounts the maps
cividis (from nothing up) and a blue-white-orange one (around zero).
"""

import io
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnet.data.store import Pixels
from convnet.errors import UsageError
from convnet.io import atomic
from convnet.visualize.labels import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType  # since 3.11

INK, QUIET, FAINT, PAPER = "#222222", "#555555", "#8a8a8a", "#ffffff"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
RIGHT, WRONG = "#CC0000", "#0072B2"  # AlexNet's figure 4: the right class's bar is red, others are blue
AMOUNT = "cividis"
SUFFIXES = (".png", ".svg")
NOTE_LETTERS = 18  # of a note, for each inch of the figure's width
DPI = 150  # dots an inch of a PNG
FONT = "DejaVu Sans"  # comes with matplotlib
FONTS = (  # asked in this order, where they are installed, for letters that FONT lacks
    *("Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI", "Arial Unicode MS", "Unifont"),
)
FONT_SIZE = 8.0  # points
STYLE: "dict[RcKeyType, object]" = {
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "svg.hashsalt": "convnet",
    "svg.fonttype": "none",
    "image.interpolation": "nearest",
    "text.parse_math": False,  # a class called $x$ is a name
}


@cache
def signed() -> "LinearSegmentedColormap":
    """The map of numbers around zero."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blue-white-orange", ["#0072B2", "#ffffff", "#D55E00"])


class Unwritten(UserWarning):
    """Letters of a picture that no font here has; boxes stand in their place."""


@contextmanager
def figure(width: float, height: float) -> "Iterator[Figure]":
    """A figure of that size in inches, in the common style; within the block the style holds."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_style()):
        fig = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(fig)
        yield fig


def save(fig: "Figure", path: Path) -> Path:
    """Writes a figure as the file's ending says, .png or .svg. Raises: UsageError for another; DiskError.

    Warns `Unwritten` of letters that a PNG lacks; in an SVG who looks at it has the fonts.
    """
    check_suffix(path)
    atomic.write_atomic(path, encoded(fig, path.suffix[1:]))
    return path


def encoded(fig: "Figure", kind: str = "png") -> bytes:
    """The figure's bytes, "png" or "svg"; equal figures give equal bytes. Warns: as `save`."""
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context(_style()), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "Glyph")
        fig.savefig(out, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else {"Software": None})
    lacking: dict[str, None] = {}
    for warning in caught:
        if match := re.match(r"Glyph (\d+) ", str(warning.message)):
            lacking[chr(int(match[1]))] = None
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if lacking and kind == "png":
        text = f"no font here has {''.join(lacking)}; boxes stand in their place"
        warnings.warn(f"{text}: install one that has, as Noto Sans CJK, or write an .svg", Unwritten, stacklevel=2)
    return out.getvalue()


def _style() -> "dict[RcKeyType, object]":
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return STYLE | {"font.family": [FONT, *(font for font in FONTS if font in installed)]}


def check_suffix(path: Path) -> None:
    """Raises: UsageError when a picture can't be written under that name."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: a picture's name ends in {' or '.join(SUFFIXES)}")


def show_picture(axes: "Axes", pixels: Pixels | NDArray[np.float32], title: str = "") -> None:
    """A picture (H, W, 3), uint8 or float 0..1, without axes."""
    axes.imshow(pixels)
    bare(axes, title)


def bare(axes: "Axes", title: str = "") -> None:
    """No ticks and no frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title)


def note(fig: "Figure", text: str) -> None:
    """A sentence under the picture, broken into lines that fit."""
    lines = textwrap.wrap(text, int(fig.get_figwidth() * NOTE_LETTERS))
    fig.supxlabel("\n".join(lines), fontsize=7, color=QUIET, x=0.01, ha="left")


def name_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]], inches: float) -> None:
    """The names (y, name, colour) of lines beside their ends at the right edge, moved apart where they would overlap.

    To be called when the limits of y are set. inches: about the height of the axes.
    """
    low, high = axes.get_ylim()
    step = (high - low) * 1.3 * FONT_SIZE / (72 * inches)
    ordered = sorted(ends)
    heights = [y for y, _, _ in ordered]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + step)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], high - (len(heights) - 1 - i) * step)
    for height, (_, name, colour) in zip(heights, ordered, strict=True):
        place = axes.get_yaxis_transform()
        axes.text(1.01, height, name, transform=place, color=colour, va="center", ha="left")


def tiles(
    pictures: Sequence[NDArray[np.float32]], columns: int, gap: int = 1, ground: float = 1.0
) -> NDArray[np.float32]:
    """float32 (H, W, 3), 0..1: pictures of one size, (h, w, 3) or (h, w) in 0..1, side by side in rows of `columns`."""
    height, width = pictures[0].shape[:2]
    n_rows = -(-len(pictures) // columns)
    sheet = np.full((n_rows * (height + gap) - gap, columns * (width + gap) - gap, 3), ground, np.float32)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture if picture.ndim == 3 else picture[..., None]
    return sheet


def in_legend(text: str) -> str:
    """A name for a legend: matplotlib leaves out those that begin with an underscore."""
    return f" {text}" if text.startswith("_") else text


def shortened(text: str, letters: int) -> str:
    """A label that fits: in at most that many letters, of which wide ones count twice, without control characters.

    >>> shortened("tench", 20), shortened("a very long name of a class", 12), shortened("乾酪乾酪乾酪", 8)
    ('tench', 'a very long…', '乾酪乾…')
    """
    name = printable(text.strip()) or "?"
    widths = np.cumsum([1 + (unicodedata.east_asian_width(c) in "WF") for c in name])
    return name if widths[-1] <= letters else name[: int((widths < letters).sum())].rstrip() + "…"
