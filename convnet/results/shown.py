"""How results are shown to people: as lines of a table, and on a page."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from convnet import __version__, hardware
from convnet.io import atomic
from convnet.io.strict_json import Json
from convnet.report import render
from convnet.results import ERROR, Experiment, Result, published, wanted
from convnet.results.data import Data
from convnet.results.plan import CORE, GPU, cost


def lines(content: Json) -> list[list[str]]:
    """The table of results.json: a head, and a line for each arm."""
    percent = content["rows"][0]["measure"] == ERROR
    head = ["net", "rate", "epochs", "seeds", *(["views"] if percent else []), content["rows"][0]["measure"]]
    head += ["95 %", "top-5 error", "n"] if percent else ["each seed"]
    head += ["against the first", "95 %" if percent else "each seed"]
    return [head, *(_percents(row) if percent else _numbers(row) for row in content["rows"])]


def _percents(row: Json) -> list[str]:
    cells = [*_first(row), row["views"], f"{row['mean']:.2%}", _range(row["interval"])]
    cells += [f"{row['top5_error']:.2%}", f"{row['n']:,}"]
    if "difference" not in row:
        return [*cells, "", ""]
    return [*cells, f"{100 * row['difference']:+.2f} points", _range(row["difference_interval"], "{:+.2f}", 100)]


def _numbers(row: Json) -> list[str]:
    cells = [*_first(row), _number(row["mean"]), ", ".join(map(_number, row["values"]))]
    return [*cells, _number(row.get("ratio")) if "ratio" in row else "", ", ".join(map(_number, row.get("ratios", [])))]


def _first(row: Json) -> list[str]:
    rate, epochs = ("" if value is None else f"{value:g}" for value in (row["lr"], row["epochs"]))
    return [row["arm"], rate, epochs, ", ".join(map(str, row["seeds"]))]


def _number(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.2f}"


def _range(ends: list[float], form: str = "{:.2%}", times: float = 1) -> str:
    low, high = (form.format(times * end) for end in ends)
    return f"{low} to {high}"


def remarks(content: Json) -> list[str]:
    """What must be known of the figures."""
    told = []
    if (share := content["share_of_epochs"]) < 1:
        told.append(f"Shortened to {share:.2%} of the epochs: the nets are not at their end.")
    if any(row.get("split") == "val" for row in content["rows"]):
        told.append("Tested on the pictures by which each net's epoch was chosen: the errors are a little too small.")
    return told


def page(out: Path, content: Json) -> Path:
    """Writes page.html: the published numbers and those here, with the curves, in one file."""
    figure = out / "figure.png"
    data = base64.b64encode(figure.read_bytes()).decode() if figure.exists() else ""
    cores = hardware.cores().n
    shown = {
        **content,
        "title": content["result"],
        "lines": lines(content),
        "remarks": remarks(content),
        "figure": f"data:image/png;base64,{data}" if data else "",
        "machine": f"convnet {__version__}, {hardware.processor().name}, {cores} processor{'s' if cores != 1 else ''}",
    }
    text = render("page.html", shown, files("convnet.results"))
    atomic.write_atomic(out / "page.html", text.encode())
    return out / "page.html"


def ours() -> list[str]:
    """docs/results.md's table: each result of the papers, what others published, what was measured here or why not."""
    rows = [
        "| result | paper | published reproduction | ours | machine | n | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in published().values():
        paper, others = (
            "; ".join(f"{what}: {value}" for what, value in row) for row in (each.published, each.reproduced)
        )
        command = f"`convnet reproduce {each.id} --data DIR`" if each.experiments else "none"
        own = {"value": _not_measured(each), "machine": "", "n": "", "command": command} | {**each.ours}
        cells = f"`{each.id}`", f"{each.where}: {paper}", others or "none known", *own.values()
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _not_measured(result: Result) -> str:
    """Why there is no number of ours: what the smallest experiment takes, or why there is none."""
    if not result.experiments:
        return result.why_not
    least = min((_entry(result, each, None) for each in result.experiments), key=lambda row: row["CPU hours"])
    hours = f"{_cell(least['GPU hours'])} hours of a GPU, or {_cell(least['CPU hours'])} of a core"
    return f"not measured: on {least['experiment on']} it takes {hours}"


def catalogue(data: Data | None = None) -> list[Json]:
    """A row for each experiment: the result, where it was published, on which data, what all of it costs; with data
    whether they suffice."""
    return [_entry(each, one, data) for each in published().values() for one in (each.experiments or (None,))]


def _entry(result: Result, experiment: Experiment | None, data: Data | None) -> Json:
    row: Json = {"result": result.id, "published in": f"{result.paper}, {result.where}"}
    if experiment is None:
        return row | {"experiment on": "none", "CPU hours": None, "GPU hours": None, "your data": None}
    fits = data is not None and data.serves(result) is experiment
    n = data.n["train"] if data is not None and fits else wanted()[experiment.data].train
    row |= {"experiment on": experiment.data}
    row |= {"CPU hours": cost(experiment, n, CORE), "GPU hours": cost(experiment, n, GPU)}
    lacks = ", ".join(data.lacks(experiment)) if data is not None and fits else "other data"
    return row | {"your data": lacks or "suffice"}


def listing(rows: Sequence[Json], own: bool) -> list[list[str]]:
    """The catalogue as cells of text. own: with what it says of the user's data."""
    names = [name for name in rows[0] if own or name != "your data"]
    return [names, *([_cell(row[name]) for name in names] for row in rows)]


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
    return value or ""
