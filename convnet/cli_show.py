"""The verb show: `convnet show WHAT CHECKPOINT ...`; each WHAT is a command of its own, with its own options.

The commands that need only a net stand in `cli_show_net.py`, those that need pictures in `cli_show_data.py`.
"""

from pathlib import Path
from typing import Annotated

import typer

from convnet.terminal import plain

Out = Annotated[Path | None, typer.Option("--out", help="The picture to write, .png or .svg [WHAT.png].")]
Layer = Annotated[str | None, typer.Option("--layer", help="A stage of the net, as convnet explain lists them.")]


def written(path: Path) -> None:
    """Tells where a picture is."""
    print(f"written: {plain(str(path))}")  # noqa: T201
