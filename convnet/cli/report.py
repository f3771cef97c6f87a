"""The verbs report and serve, pages of a run in a file and in the browser; and the report that ends a training."""

from pathlib import Path
from typing import Annotated

import typer

from convnet import hardware
from convnet.cli.options import Device, Names, Quiet, output
from convnet.cli.progress_bar import plain, shown
from convnet.cli.verb import choose_device
from convnet.errors import UsageError
from convnet.progress import Progress


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path | None, output(help="The page to write, .html [report.html in the folder].")] = None,
    store: Annotated[Path | None, typer.Option(help="The run's store, if it moved.")] = None,
    names: Names = None,
    pictures: Annotated[int, typer.Option(help="The most test or validation pictures to look at.")] = 2000,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """A run on one page, in one file: convnet report runs/photos

    Errors with intervals, recipe, curves, kernels, pictures with what the net says, confusion, classes, neighbours, and
    what was left out. It needs no network; what is missing, as a store that is gone, is said there.
    """
    from convnet.report import report as write

    if out is not None and out.suffix != ".html":
        raise UsageError(f"--out {out}: a page's name ends in .html")
    with shown(quiet) as progress:
        path = write(run, out, store=store, names=names, pictures=pictures, device=device, progress=progress)
    print(f"written: {plain(str(path))}")


def serve(
    place: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT|RUN|FOLDER", help="A net, a run, or a folder of runs.")
    ] = Path("runs"),
    index: Annotated[Path | None, typer.Option(help="Neighbours are looked for in it: convnet index.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="Who can reach it: 0.0.0.0 is everybody on the network.")] = "127.0.0.1",
    names: Names = None,
    device: Device = "auto",
) -> None:
    """A page in the browser: convnet serve runs/photos

    Classify pictures and see why; walk through the net's layers down to the arithmetic of a pixel; watch runs train.
    Works offline. The JSON API is described at /api: docs/serve.md. Ctrl-C ends it.
    """
    try:
        from convnet.serve import serve as start
        from convnet.serve import server_of
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is missing: pip install "{hardware.DISTRIBUTION}[serve]"') from error
    server = server_of(place, index, names, choose_device(device))
    start(server, host, port, lambda address: print(f"convnet: {address}", flush=True))


def after_training(run: Path, progress: Progress, device: str = "auto") -> Path | None:
    """The report of a run that has just ended; None where there is none: the run is complete without it."""
    again = f"the run is complete without it; convnet report {run} writes it"
    try:
        from convnet.report import report as write

        return write(run, device=device, progress=progress)
    except KeyboardInterrupt:
        progress.finish()
        progress.warn(f"the report was stopped; {again}")
    except Exception as error:  # whatever it is: hours of training must not end in an error for the sake of a page
        progress.finish()
        progress.warn(f"no report: {error or type(error).__name__}; {again}")
    return None
