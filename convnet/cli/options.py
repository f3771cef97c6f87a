"""The options that several verbs have, each declared once, and the help that shows them in the same panels everywhere.

Beside those in `PANELS` a verb has at most eight of its own.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

PANELS = ("Reading the source", "Computing", "Output")
reading, computing, output = (partial(typer.Option, rich_help_panel=panel) for panel in PANELS)

Layout = Annotated[
    str | None, reading(metavar="folders|outer|inner", help="What decides where folders could mean two things.")
]
NameColumn = Annotated[str | None, reading(metavar="HEADER", help="A list's column of pictures' names.")]
LabelColumn = Annotated[str | None, reading(metavar="HEADER", help="A list's column of classes.")]
SplitColumn = Annotated[str | None, reading(metavar="HEADER", help="A list's column of train, val, test.")]
Megapixels = Annotated[
    float | None, reading(metavar="MEGAPIXELS", help="A larger picture is refused; it bounds memory too [268].")
]
Fit = Annotated[str | None, reading(help="crop: the central square; pad, squash: whole pictures [crop].")]
Workers = Annotated[int | None, reading(help="Threads [one for each core].")]

Device = Annotated[str, computing(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")]
MicroBatch = Annotated[
    str | None,
    computing("--batch", metavar="N|auto", help="Pictures in memory at once; the recipe's batch stays [all]."),
]
Resident = Annotated[
    str, computing(metavar="auto|raw|420|no", help="CUDA: pictures in its memory, as they are or as 4:2:0.")
]
Precision = Annotated[str, computing(help="auto, fp32, or bf16: faster, less exact.")]
Processes = Annotated[int, computing(min=1, help="That work together, each with its part of a batch.")]
Parallel = Annotated[
    str, computing(metavar="data|columns|fully-connected", help="What of the net each process holds: docs/scale.md.")
]

Quiet = Annotated[bool, output("--quiet", "-q", help="No progress, only warnings.")]
AsJson = Annotated[bool, output("--json", help="Print the result as JSON.")]
AsCsv = Annotated[bool, output("--csv", help="Print a table for programs.")]

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder (its best).")]
Split = Annotated[str | None, typer.Option(help="Of the store: train, val or test [test if there is one, else val].")]
Names = Annotated[Path | None, typer.Option(help="Classes' names: lines such as n01440764 tench [the net's own].")]


class Verb(TyperCommand):
    """A verb whose help shows its arguments, its own options, and then the shared ones panel by panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # click's classes; where they are is typer's own affair
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", "Options", *PANELS)}
        for parameter in self.get_params(ctx):
            if row := parameter.get_help_record(ctx):
                panels[panel_of(parameter)].append(row)
        for name, rows in panels.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows)


def panel_of(parameter: Any) -> str:
    """The part of the help in which an argument or option of click's stands."""
    if parameter.param_type_name == "argument":
        return "Arguments"
    return PANELS[-1] if parameter.name == "help" else getattr(parameter, "rich_help_panel", None) or "Options"
