"""The verbs that look at the machine: doctor and benchmark; their arguments and what they print."""

import json
from pathlib import Path
from typing import Annotated

import typer

from convnet.terminal import columns, plain, shown

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")]


def doctor(
    folder: Annotated[Path, typer.Argument(help="Whose disk is measured.")] = Path(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What is on this machine, what is chosen, what would make it faster: convnet doctor

    Devices, processor, memory, threads, compilers, packages, and the rates of the disk (at most 256 MiB are written,
    read and gone). Exit code 0 whatever is missing.
    """
    from convnet.doctor import examine, lines

    with shown(quiet or as_json) as progress:
        told = examine(folder, progress)
    if as_json:
        print(json.dumps(told, indent=1))  # noqa: T201
        return
    for line in lines(told, columns()):
        print(plain(line))  # noqa: T201
