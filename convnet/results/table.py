"""What did an experiment give? Its nets compared, as numbers and curves: results.json, results.csv, figure.png."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convnet.evaluation.metrics import Z, interval
from convnet.io import atomic, strict_json
from convnet.io.strict_json import Json
from convnet.results.plan import Plan
from convnet.results.reproduce import Measured
from convnet.visualize import plot
from convnet.visualize.curves import curves, draw_curves


def table(made: Plan, measured: Sequence[Measured]) -> list[Json]:
    """A row for each of what was measured: its values, and how they compare with the first, with a 95 % interval."""
    return [_row(made, measured[0], each) for each in measured]


def _row(made: Plan, first: Measured, own: Measured) -> Json:
    recipe = made.recipes.get(own.arm)  # an average of nets has none
    row: Json = {"arm": own.arm, "recipe": recipe and recipe.name, "net": recipe and recipe.net, "lr": own.lr}
    row |= {"epochs": recipe and recipe.epochs, "seeds": list(made.seeds), "values": list(own.values)}
    row |= {"measure": made.experiment.measure, "mean": own.mean}
    if own.ranks is not None:
        n, wrong = own.ranks.shape[1], float((own.ranks >= 1).mean())
        row |= {"views": own.views, "top5_error": float((own.ranks >= 5).mean())}
        row |= {"split": own.split, "n": n, "interval": list(interval(wrong, n))}
    if own is first:
        return row
    if made.experiment.compare == "ratio":
        known = own.mean is not None and first.mean is not None
        row["ratio"] = own.mean / first.mean if known and own.mean and first.mean else None
        pairs = zip(own.values, first.values, strict=True)
        row["ratios"] = [a / b if a is not None and b else None for a, b in pairs]
    elif own.ranks is not None and first.ranks is not None:
        gaps = (own.ranks >= 1).mean(0) - (first.ranks >= 1).mean(0)  # of each picture, over the nets
        row["difference"] = float(gaps.mean())
        spread = Z * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
        row["difference_interval"] = [row["difference"] - spread, row["difference"] + spread]
    return row


def write(out: Path, made: Plan, measured: Sequence[Measured]) -> Json:
    """Writes results.json, results.csv, and figure.png with the curves of the nets that count; the former's content."""
    result, experiment, compared = made.result, made.experiment, table(made, measured)
    content: Json = {
        "result": result.id,
        "paper": result.paper,
        "where": result.where,
        "claim": result.claim,
        "published": [list(row) for row in result.published],
        "reproduced_by_others": [list(row) for row in result.reproduced],
        "data": experiment.data,
        "shows": experiment.shows,
        "share_of_epochs": made.shortened,
        "rows": compared,
    }
    atomic.write_atomic(out / "results.json", strict_json.seal(content))
    names = list(dict.fromkeys(name for row in compared for name in row))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([names, *([row.get(name) for name in names] for row in compared)])
    atomic.write_atomic(out / "results.csv", text.getvalue().encode())
    arms = {each.arm: each.runs for each in measured}  # once, by however many views it was tested
    runs = [
        replace(curves(folder), name=f"{arm}, seed {seed}")
        for arm, folders in arms.items()
        for seed, folder in zip(made.seeds, folders, strict=False)  # an average has none
    ]
    plot.save(draw_curves(runs), out / "figure.png")
    return content
