"""The result of a benchmark as one picture: how much of the machine's matrix products each form of each net reaches."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from convnet.benchmark import WHAT
from convnet.benchmark.forms import COMPILED, OURS, PLAIN
from convnet.benchmark.table import machine_line
from convnet.io.strict_json import Json
from convnet.visualize import plot

BAR, GAP = 0.8, 0.7  # in bars: a bar's height with its room, and the room between two nets
INSIDE, ROOM = 0.6, 0.015  # shares: from here on a figure stands in its bar; the room beside it


def benchmark_figure(result: Json) -> Figure:
    """Bars as long as a form's share of the ceiling, training and inference side by side; the figures are rates."""
    rows = [row for row in result["nets"] if any(form[what] for form in row["forms"] for what in WHAT)]
    n_bars = sum(len(row["forms"]) for row in rows)
    height = 1.3 + 0.19 * n_bars + 0.22 * len(rows)
    with plot.figure(8.0, max(height, 2.0)) as made:
        panels = made.subplots(1, 2, sharex=True, sharey=True)
        engine = made.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        engine.set(wspace=0.08)  # or 100% and the other panel's 0% meet
        for axes, what in zip(panels, WHAT, strict=True):
            _panel(axes, rows, what)
        kinds = _kinds(rows)
        handles = [panels[0].barh([0], [0], color=colour, label=plot.in_legend(kind)) for kind, colour in kinds.items()]
        if len(kinds) > 1:
            made.legend(handles=handles, loc="outside upper right", ncols=len(kinds), fontsize=7)
        plot.note(made, _note(result))
    return made


def _kinds(rows: list[Json]) -> dict[str, str]:
    """A colour for each form's name."""
    kinds = dict.fromkeys(_kind(form["form"]) for row in rows for form in row["forms"])
    return {kind: plot.COLOURS[(OURS, PLAIN, "torchvision", "timm", COMPILED).index(kind)] for kind in kinds}


def _kind(form: str) -> str:
    return form if form in (OURS, PLAIN) else form.split()[0]


def _panel(axes: Axes, rows: list[Json], what: str) -> None:
    colours, y = _kinds(rows), 0.0
    ticks: dict[float, str] = {}
    most = max((_share(form, what) for row in rows for form in row["forms"] for what in WHAT), default=0.0)
    for row in rows:
        first = y
        for form in row["forms"]:
            _bar(axes, y, form, what, colours[_kind(form["form"])], row)
            y += 1
        ticks[(first + y - 1) / 2] = f"{row['net']}\nbatch {row['batch']:,}"
        y += GAP
    axes.set_title(f"{what}, pictures/s", loc="left")
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params("y", length=0)
    axes.set_xlim(0, max(1.0, most) * 1.02)
    axes.set_ylim(y - GAP - 0.4, -0.6)
    axes.axvline(1.0, color=plot.FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("share of the ceiling")


def _share(form: Json, what: str) -> float:
    return float(form[what]["share"] or 0.0) if form[what] else 0.0


def _bar(axes: Axes, y: float, form: Json, what: str, colour: str, row: Json) -> None:
    """A bar with a line from its least to its most, and its rate in figures."""
    measured = form[what]
    if measured is None:
        axes.text(0.01, y, "not measured", va="center", fontsize=7, color=plot.QUIET)
        return
    share, rate = _share(form, what), measured["rate"]
    axes.barh(y, share, BAR, color=colour)
    ends = [share * rate[name] / rate["median"] for name in ("least", "most")]
    axes.plot(ends, [y, y], color=plot.INK, linewidth=0.8, solid_capstyle="butt")
    times = f"  {measured['times_plain']:.1f} x plain" if measured["times_plain"] and form["form"] != PLAIN else ""
    text = f"{rate['median']:,.0f}" if rate["median"] >= 10 else f"{rate['median']:.2g}"
    if max(share, ends[1]) > INSIDE:
        at, side, ink = min(share, ends[0]) - ROOM, "right", plot.PAPER
    else:
        at, side, ink = max(share, ends[1]) + ROOM, "left", plot.INK
    axes.text(at, y, text + times, va="center", ha=side, fontsize=7, color=ink)


def _note(result: Json) -> str:
    names = {row[f"ceiling_{what}"]["name"] for row in result["nets"] for what in WHAT if f"ceiling_{what}" in row}
    tops = [f"{name} {result['ceilings'][name]['median'] / 1e9:,.0f} GFLOP/s" for name in sorted(names - {None})]
    quick = "a quick run, whose rates say nothing; " if result["quick"] else ""
    n = result["budget"]["repeats"]
    return (
        f"{quick}The ceiling is this machine's own {' or '.join(tops) or 'matrix product'}, measured in the same "
        f"turns; medians of {n}, black lines from the least to the most. {machine_line(result)}."
    )
